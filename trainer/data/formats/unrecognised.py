"""The error for a folder that is of no known format, with what nearly fits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.data.formats import class_folders
from trainer.data.formats.base import Format
from trainer.data.image_files import GLANCE, entries, passed_over, walk
from trainer.data.tables.reading import IMAGE_COLUMNS, TABLE_SUFFIXES, read_table
from trainer.errors import DataError, some

ARCHIVE = re.compile(r"\.(zip|rar|7z|tar|tgz|tar\.\w+)$", re.IGNORECASE)
HEAD_BYTES = 20_000
TOOLS = {
    "labelme": (b'"shapes"', b'"version"'),
    "CVAT for images": (b"<annotations>", b"<image "),
    "Label Studio": (b'"annotations"', b'"completed_by"'),
    "VIA": (b'"regions"', b'"shape_attributes"'),
}
"""What the annotations of a tool hold near their beginning."""
LARGEST = 50_000_000
"""Bytes of a table that is opened only for a hint."""


def unrecognised(root: Path, formats: Sequence[Format]) -> DataError:
    """The error for the folder ``root``, which none of ``formats`` recognises."""
    names = [path.name for path in entries(root)]
    listing = some(names, 8) or "nothing"
    hints = list(_hints(root, formats)) or ["wsss-trainer check --help shows the formats"]
    return DataError(
        f"{root} holds no data set that can be recognised (found: {listing})",
        "; or ".join(form.layout for form in formats if form.layout),
        "; ".join(hints),
    )


def _hints(root: Path, formats: Sequence[Format]) -> Iterator[str]:
    folders = _folders(root)
    if _is_yolo(root):
        yield (
            "this looks like YOLO (labels/*.txt), which is not read: export it as COCO or as masks,"
            " as Roboflow, CVAT and Label Studio do"
        )
    yield from _of_tools(root)
    obstacles = class_folders.obstacles(root)
    if obstacles:
        yield (
            f"as one folder a class it has {'; '.join(obstacles)}. Move these away, or write a"
            " labels.csv (image,tag)"
        )
    below = walk(root, limit=GLANCE)
    inner = [folder for folder in folders if any(form.recognises(folder) for form in formats)]
    tables = [table for folder in (root, *folders) for table in _tables(folder)]
    if inner:
        yield f"pass a folder below it that is a data set: {some(inner)}"
    elif tables:
        names = some(path.relative_to(root).as_posix() for path in tables)
        yield f"a table of images is there ({names}): save it as {root / 'labels.csv'}"
    elif not obstacles and below.images:
        yield (
            f"{len(below.images)} images are there, and nothing says what they show: write"
            f" {root / 'labels.csv'} (image,tag), or make one folder a class"
        )
    yield from below.notes()


def _folders(root: Path) -> list[Path]:
    return [
        path
        for path in entries(root)
        if passed_over(path.name) is None and path.is_dir() and os.access(path, os.R_OK | os.X_OK)
    ]


def _of_tools(root: Path) -> Iterator[str]:
    """What to do with archives, and with annotations of tools that are not read."""
    files = [path for folder in (root, *_folders(root)) for path in entries(folder)]
    archives = [path.name for path in files if ARCHIVE.search(path.name)]
    if archives:
        yield f"unpack {some(archives)}"
    notes = [p for p in files if p.suffix.lower() in (".json", ".xml") and p.is_file()]
    heads = [_head(path) for path in notes[:20]]
    for tool, marks in TOOLS.items():
        if any(all(mark in head for mark in marks) for head in heads):
            yield f"this looks like annotations of {tool}, which are not read: export them as COCO"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def _is_yolo(root: Path) -> bool:
    config = [*root.glob("*.yaml"), *root.glob("*.yml")]
    folders = [folder for folder in (root / "labels", *root.glob("*/labels")) if folder.is_dir()]
    texts = (file for folder in folders for p in ("*.txt", "*/*.txt") for file in folder.glob(p))
    return bool(folders) and (bool(config) or any(texts))


def _tables(folder: Path) -> Iterator[Path]:
    for path in entries(folder):
        is_table = path.suffix.lower() in (*TABLE_SUFFIXES, ".txt") and path.is_file()
        if not is_table or path.name.startswith(".") or path.stat().st_size > LARGEST:
            continue
        try:
            if read_table(path).find(IMAGE_COLUMNS) is not None:
                yield path
        except DataError as error:
            # It cannot be looked into, and most workbooks beside images are such tables.
            if "workbook" in error.found:
                yield path

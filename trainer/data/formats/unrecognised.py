"""What to say about a folder that is no data set of a known format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.data.dataset import some
from trainer.data.formats import class_folders
from trainer.data.formats.tables import IMAGE_COLUMNS, read_table
from trainer.data.image_files import GLANCE, entries, passed_over, walk
from trainer.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".xlsx", ".xls", ".ods")
LARGEST = 50_000_000
"""Bytes of a table that is only looked into for a hint."""
FORMATS = (
    "VOC (JPEGImages/ and ImageSets/Segmentation/), COCO (annotations/*.json), images with a"
    " labels.csv, or one folder a class"
)


def unrecognised(root: Path, recognises: Callable[[Path], bool]) -> DataError:
    """The error for a folder that no reader takes, with what nearly fits.

    Args:
        recognises: whether some reader takes a folder.
    """
    names = [path.name for path in entries(root)]
    found = (
        f"{root} holds no data set that can be recognised (found: {some(names, 8) or 'nothing'})"
    )
    hints = list(_hints(root, recognises)) or ["wsss-trainer check --help shows the formats"]
    return DataError(found, FORMATS, "; ".join(hints))


def _hints(root: Path, recognises: Callable[[Path], bool]) -> Iterator[str]:
    folders = [
        path
        for path in entries(root)
        if passed_over(path.name) is None and path.is_dir() and os.access(path, os.R_OK | os.X_OK)
    ]
    if _is_yolo(root):
        yield (
            "this looks like YOLO (labels/*.txt), which is not read: export it as COCO or as masks,"
            " as Roboflow, CVAT and Label Studio do"
        )
    obstacles = class_folders.obstacles(root)
    if obstacles:
        yield (
            f"as one folder a class it has {'; '.join(obstacles)}. Take away or move what is in the"
            " way, or write a labels.csv (image,tag)"
        )
    below = walk(root, limit=GLANCE)
    inner = [folder for folder in folders if recognises(folder)]
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


def _is_yolo(root: Path) -> bool:
    yaml = [*root.glob("*.yaml"), *root.glob("*.yml")]
    labels = [folder for folder in (root / "labels", *root.glob("*/labels")) if folder.is_dir()]
    return bool(labels) and (
        bool(yaml)
        or any(f for folder in labels for p in ("*.txt", "*/*.txt") for f in folder.glob(p))
    )


def _tables(folder: Path) -> Iterator[Path]:
    for path in entries(folder):
        suffix = path.suffix.lower()
        if suffix not in TABLE_SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if path.stat().st_size > LARGEST:
            continue
        try:
            if read_table(path).find(IMAGE_COLUMNS) is not None:
                yield path
        except DataError as error:
            if "workbook" in error.found:
                yield path

"""Segments of images, one file an image: parts without a class, such as those of SAM.

A label PNG or TIFF holds a number for each pixel, 0 for none. A JSON holds COCO outlines, which may
overlap. A segment is kept as the positions of its pixels, counted row by row.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.coco.outlines import Shape, compress, pieces_of
from trainer.data.dataset import Dataset, Record
from trainer.data.mask_files import name_owner, name_tables
from trainer.data.names import composed
from trainer.data.pixels import as_shown, open_header
from trainer.errors import DataError, some

SUFFIXES = (".png", ".tif", ".tiff", ".json")
NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B")
"""Modes of Pillow that hold one whole number a pixel."""
EXPECTED = "a label PNG or TIFF, or a JSON of COCO run lengths, called like its image"
Positions = npt.NDArray[np.int64]


def find_segments(folder: Path, dataset: Dataset) -> dict[str, Path]:
    """The file of each image that has one, by id.

    Raises:
        DataError: no folder, two files for one image, or files that belong to no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of segments", f"a folder with {EXPECTED}")
    images = {record.id: record.image for record in dataset.records.values()}
    tables = name_tables(dataset.root, images)
    owners: dict[str, list[str]] = defaultdict(list)
    strangers = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        owner = name_owner(composed(name.with_suffix("").as_posix()).casefold(), tables)
        if owner is None:
            strangers.append(str(name))
        else:
            owners[owner].append(str(name))
    twice = [" and ".join(names) for names in owners.values() if len(names) > 1]
    if strangers or twice:
        parts = [
            f"{len(strangers)} files belong to no image: {some(strangers)}" if strangers else "",
            f"{len(twice)} images have two files: {some(twice)}" if twice else "",
        ]
        raise DataError(
            f"segments in {folder}: {'; '.join(filter(None, parts))}",
            EXPECTED,
            "rename the files, or take them out of the folder; SAM's amg.py writes one JSON an"
            " image with --convert-to-rle",
        )
    return {owner: folder / names[0] for owner, names in owners.items()}


def segment_files(
    folder: Path, dataset: Dataset, records: Sequence[Record], instead: str
) -> dict[str, Path]:
    """The file of each of ``records`` that may show a class, and of others that have one, by id.

    Args:
        folder: see ``find_segments``.
        dataset: of the records.
        records: images that need segments.
        instead: what to type where there are none.

    Raises:
        DataError: see ``find_segments``; also images without a file.
    """
    files = find_segments(folder, dataset)
    missing = [record.id for record in records if record.possible and record.id not in files]
    if missing:
        others = [p.name for p in sorted(folder.rglob("*")) if p.is_file() and _is_other(p)]
        more = f"; files of other kinds are there: {some(others)}" if others else ""
        raise DataError(
            f"{len(missing)} of {len(records)} images have no segments in {folder}:"
            f" {some(missing)}{more}",
            EXPECTED,
            f"make them for all images, or {instead}",
        )
    return files


def _is_other(path: Path) -> bool:
    return path.suffix.lower() not in SUFFIXES and not path.name.startswith(".")


def read_segments(path: Path, size: tuple[int, int]) -> list[Positions]:
    """The segments of an image of ``size`` (height, width), without empty ones.

    Raises:
        DataError: damaged, of another size, or something else.
    """
    if path.suffix.lower() == ".json":
        return _outlined(path, size)
    with open_header(path) as header:
        image = header.image
        is_lossless = header.kind in ("PNG", "TIFF")
        if not is_lossless or image.mode not in NUMBERS:
            raise DataError(
                f"segments {path}: a {image.mode if is_lossless else header.kind} picture",
                "one whole number a pixel: a palette or grey PNG or TIFF",
            )
        labels = as_shown(np.array(image), header)
    if labels.shape != size:
        raise DataError(
            f"segments {path}: {labels.shape[0]} x {labels.shape[1]} pixels",
            f"{size[0]} x {size[1]}, those of its image",
        )
    return label_segments(labels)


def label_segments(labels_HW: npt.NDArray[Any]) -> list[Positions]:
    """The segment of each number but 0."""
    flat = labels_HW.ravel()
    order = np.argsort(flat, kind="stable")
    numbers, starts = np.unique(flat[order], return_index=True)
    parts = np.split(order, starts[1:])
    return [part for number, part in zip(numbers, parts, strict=True) if number]


def _outlined(path: Path, size: tuple[int, int]) -> list[Positions]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"segments {path}: {error}", "a JSON file") from error
    entries = content.get("annotations") if isinstance(content, Mapping) else content
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
        raise DataError(
            f"segments {path}: no list of segments",
            'a list, or "annotations", of {"segmentation": {"size": [H, W], "counts": ...}}',
        )
    if len({str(entry.get("image_id")) for entry in entries}) > 1:
        raise DataError(
            f"segments {path}: its annotations belong to several images (image_id)",
            EXPECTED,
            "write those of each image to a file of its own",
        )
    segments = []
    for number, entry in enumerate(entries, 1):
        # SAM's lists have the run lengths below "segmentation", others the run lengths themselves.
        outline = entry.get("segmentation", entry)
        try:
            shape = Shape(size, compress([pieces_of(outline, size)]), (1,))
            segments.append(np.flatnonzero(shape.draw(*size)))
        except ValueError as error:
            raise DataError(
                f"segments {path}: segment {number} of {len(entries)}: {error}",
                f"outlines in an image of {size[0]} x {size[1]} pixels (height x width)",
            ) from error
    return [segment for segment in segments if len(segment)]

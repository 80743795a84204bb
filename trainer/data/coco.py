"""COCO instances JSON (spec refine-segment 10). Masks are drawn from the annotations when they are asked for."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE, Dataset, Record, check_classes, complain, some
from trainer.errors import DataError

Problems = list[DataError] | None


@dataclass(frozen=True)
class CocoDataset(Dataset):
    """A data set whose masks are drawn from annotations.

    Attributes:
        shapes: by id, compressed JSON ``[height, width, [[value, segmentation], ...]]`` in painting order;
            compressed because the 600,000 outlines of COCO as Python lists would take gigabytes in every worker.
    """

    shapes: dict[str, bytes] = field(default_factory=dict, repr=False)

    def has_mask(self, record: Record) -> bool:
        """Whether every object of the image has an outline (an image without objects is all background)."""
        return record.id in self.shapes

    def read_mask(self, record: Record) -> npt.NDArray[np.uint8]:
        """Label map ``uint8 [H,W]``: annotations painted in file order, later ones on top; crowds are 255.

        Raises:
            DataError: an object of the image has no outline, or one that cannot be drawn.
        """
        if record.id not in self.shapes:
            raise DataError(
                f"image {record.id!r} has objects without an outline", "a segmentation for every annotation"
            )
        height, width, painted = json.loads(zlib.decompress(self.shapes[record.id]))
        label = np.zeros((height, width), np.uint8)
        for value, segmentation in painted:
            label[_draw(segmentation, height, width, record.id)] = value
        return label


def recognises(root: Path) -> bool:
    """Whether ``root`` has ``annotations/*.json``."""
    return (root / "annotations").is_dir() and bool(_files(root))


def read(root: Path, problems: Problems = None) -> CocoDataset:
    """Read every ``annotations/instances_*.json`` (without such names: every ``annotations/*.json``).

    Each file is a list called after it (``instances_train2014.json``: ``train2014``). Images are looked for in the
    folder of that name, in ``images/``, in both together, beside ``annotations/`` and in ``JPEGImages/``. Classes are
    the categories in order of their COCO id; tags are the categories of the annotations that are not crowds. Images
    without annotations stay, without tags.

    Args:
        problems: collects what is wrong instead of raising it; the entries concerned are left out.

    Raises:
        DataError: damaged JSON, files that disagree about the categories, unknown categories, images not found.
    """
    classes: dict[int, str] = {}
    records: dict[str, Record] = {}
    shapes: dict[str, bytes] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for path in _files(root):
        table = _load(path)
        if not classes:
            classes = _categories(table, path)
        elif _categories(table, path) != classes:
            complain(DataError(f"{path} has other categories than the files before it", "one class table"), problems)
            continue
        name = path.stem.removeprefix("instances_")
        index = {category: k for k, category in enumerate(classes)}
        lists[name] = _read_list(table, path, root, name, index, records, shapes, problems)
    if not records:
        raise DataError(
            f"{root / 'annotations'} describes no image that is there", "COCO instances JSON and its images"
        )
    notes = []
    empty = sum(not record.tags for record in records.values())
    if empty:
        notes.append(f"{empty} of {len(records)} images have no annotation and so no tag")
    if len(shapes) < len(records):
        notes.append(f"{len(records) - len(shapes)} images have objects without outline and so no mask")
    lists["all"] = tuple(records)
    return CocoDataset(
        root,
        "coco",
        tuple(classes.values()),
        tuple(range(1, len(classes) + 1)),
        records,
        lists,
        "COCO annotations, crowds left out",
        tuple(notes),
        shapes,
    )


def _files(root: Path) -> list[Path]:
    files = sorted(p for p in (root / "annotations").glob("*.json") if not p.name.startswith("."))
    return [p for p in files if p.name.startswith("instances_")] or files


def _load(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", "COCO instances JSON") from error
    absent = [key for key in ("images", "annotations", "categories") if not isinstance(table, dict) or key not in table]
    if absent:
        raise DataError(f"{path} has no {some(absent)}", "COCO instances JSON: images, annotations, categories")
    return dict(table)


def _categories(table: dict[str, Any], path: Path) -> dict[int, str]:
    try:
        ranked = sorted((int(entry["id"]), str(entry["name"])) for entry in table["categories"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} has a damaged category: {error!r}", 'entries {"id": 1, "name": "person"}') from error
    check_classes([name for _, name in ranked], path)
    if len(dict(ranked)) < len(ranked):
        raise DataError(f"{path} gives two categories the same id", "one id a category")
    return dict(ranked)


def _read_list(
    table: dict[str, Any],
    path: Path,
    root: Path,
    name: str,
    index: dict[int, int],
    records: dict[str, Record],
    shapes: dict[str, bytes],
    problems: Problems,
) -> tuple[str, ...]:
    """Add the images of one file to ``records`` and ``shapes``; returns their ids."""
    try:
        entries = {image["id"]: (str(image["file_name"]), image["height"], image["width"]) for image in table["images"]}
        annotations: dict[Any, list[tuple[int, bool, Any]]] = {key: [] for key in entries}
        strange, stray = set(), 0
        for note in table["annotations"]:
            if note["category_id"] not in index:
                strange.add(note["category_id"])
            elif note["image_id"] not in annotations:
                stray += 1
            else:
                crowd = bool(note.get("iscrowd", 0))
                annotations[note["image_id"]].append((index[note["category_id"]], crowd, note.get("segmentation")))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} has a damaged entry: {error!r}", "COCO instances JSON") from error
    if len(entries) < len(table["images"]):
        complain(DataError(f"{path} gives several images the same id", "one id an image"), problems)
    if strange or stray:
        found = f"annotations of unknown categories ({some(sorted(strange, key=str))}) or unknown images ({stray})"
        complain(DataError(f"{path} has {found}", "every category_id and image_id in its tables"), problems)
    ids, missing = [], []
    for key, (file_name, height, width) in entries.items():
        image = _find(root, name, file_name)
        if image is None:
            missing.append(file_name)
            continue
        record_id = _free_id(file_name, name, image, records)
        tags = tuple(sorted({k for k, crowd, _ in annotations[key] if not crowd}))
        if record_id in records and records[record_id].tags != tags:
            complain(DataError(f"{path} and another file disagree about {file_name}", "the same annotations"), problems)
        records.setdefault(record_id, Record(record_id, image, tags))
        painted = [(IGNORE if crowd else k + 1, outline) for k, crowd, outline in annotations[key]]
        if all(_drawable(outline) for _, outline in painted):
            shapes.setdefault(record_id, zlib.compress(json.dumps([height, width, painted]).encode(), 1))
        ids.append(record_id)
    if missing:
        complain(
            DataError(
                f"{path} names {len(missing)} images that are not there: {some(missing)}",
                f"them in {root / name}, {root / 'images'}, {root / 'images' / name} or {root}",
                "bring the images, or take the entries out of the JSON",
            ),
            problems,
        )
    return tuple(dict.fromkeys(ids))


def _find(root: Path, name: str, file_name: str) -> Path | None:
    folders = (root / name, root / "images" / name, root / "images", root, root / "JPEGImages")
    return next((folder / file_name for folder in folders if (folder / file_name).is_file()), None)


def _free_id(file_name: str, name: str, image: Path, records: dict[str, Record]) -> str:
    """File name without suffix; with the list's name before it where another file has the id already."""
    plain = "__".join(Path(file_name).with_suffix("").parts)
    taken = plain in records and records[plain].image != image
    return f"{name}__{plain}" if taken else plain


def _drawable(segmentation: object) -> bool:
    if isinstance(segmentation, dict):
        return {"size", "counts"} <= segmentation.keys()
    return isinstance(segmentation, list) and any(isinstance(ring, list) and len(ring) >= 6 for ring in segmentation)


def _draw(segmentation: Any, height: int, width: int, where: str) -> npt.NDArray[np.bool_]:
    """Pixels of one outline: polygons, or run lengths (plain or compressed)."""
    from pycocotools import mask as rle

    try:
        if isinstance(segmentation, dict):
            runs = segmentation
            if list(runs["size"]) != [height, width]:
                raise ValueError(f"run lengths of a {runs['size']} picture in one of {[height, width]}")
            if isinstance(runs["counts"], list):
                runs = rle.frPyObjects(runs, height, width)
        else:
            runs = rle.merge(rle.frPyObjects(_rings(segmentation), height, width))
        with warnings.catch_warnings():
            # pycocotools hands numpy 2 an array in a way that numpy deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            return np.asarray(rle.decode(runs), dtype=np.bool_)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(
            f"an outline of image {where!r} cannot be drawn: {error}", "COCO polygons or run lengths"
        ) from error


def _rings(polygons: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    # pycocotools takes a list of four numbers for a box.
    return [ring for ring in polygons if len(ring) >= 6]

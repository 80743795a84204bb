"""The class table of a VOC tree."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from trainer.data.classes import ClassTable, check_classes
from trainer.data.dataset import IGNORE
from trainer.data.names import folded, one_spelling
from trainer.data.voc.labelmap import NAME as LABELMAP
from trainer.data.voc.labelmap import read_labelmap
from trainer.errors import DataError, some

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
VOC_ID = re.compile(r"20(07|08|09|10|11|12)_\d{6}")
VOC_TABLE = ClassTable(VOC_CLASSES, tuple(range(1, 21)))
SHAPE = '{"classes": [{"voc_index": 8, "name": "cat"}, ...], "ignore": 255}'


def voc_class_table(
    root: Path, ids: list[str], objects: dict[str, set[str]], has_masks: bool
) -> ClassTable:
    """The table that the data set brings, else that of VOC or the names of the objects.

    Args:
        root: of the VOC tree.
        ids: of its images.
        objects: names of the objects in the XML file of each image.
        has_masks: whether there are masks, whose values must then be known.

    Raises:
        DataError: a damaged table; or masks of classes that are not VOC's, and no table.
    """
    if (root / "classes.json").is_file():
        return read_classes_json(root / "classes.json")
    if (root / LABELMAP).is_file():
        return read_labelmap(root / LABELMAP)
    counts = Counter(name for of_image in objects.values() for name in of_image)
    names = set(one_spelling(counts).values())
    in_voc = {folded(name) for name in names} & set(VOC_CLASSES)
    from_voc = 2 * sum(bool(VOC_ID.fullmatch(i)) for i in ids) >= len(ids)
    # With VOC's photographs and classes VOC's table holds, also for classes that no image here
    # shows.
    if not names or (from_voc and in_voc):
        return VOC_TABLE
    if len(in_voc) == len(names):
        # Masks of VOC's tools have VOC's numbers, whatever the photographs.
        return _some_of_voc(in_voc)
    if has_masks and len(names) > 1:
        example = SHAPE.replace("8", "1").replace("cat", min(names))
        raise DataError(
            f"{root} has masks and no class table, and its annotations name other classes than"
            f" VOC's: {some(sorted(names))}",
            f"classes.json: {example}, with the value of each class in the masks",
        )
    check_classes(sorted(names), root / "Annotations")
    return ClassTable(tuple(sorted(names)), tuple(range(1, len(names) + 1)))


def _some_of_voc(names: Iterable[str]) -> ClassTable:
    values = sorted(VOC_CLASSES.index(name) + 1 for name in names)
    return ClassTable(tuple(VOC_CLASSES[value - 1] for value in values), tuple(values))


def read_classes_json(path: Path) -> ClassTable:
    """The table of ``classes.json``.

    Raises:
        DataError: damaged, or values that masks cannot have.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        entries = [(str(entry["name"]), int(entry["voc_index"])) for entry in table["classes"]]
        ignore = int(table.get("ignore", IGNORE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}", SHAPE) from error
    names, values = tuple(name for name, _ in entries), tuple(value for _, value in entries)
    check_classes(names, path)
    in_range = all(0 < value < IGNORE for value in values)
    if ignore != IGNORE or len(set(values)) < len(values) or not in_range:
        raise DataError(
            f"{path} has the mask values {list(values)} and ignores {ignore}",
            "different values from 1 to 254, and 255 for ignore",
        )
    return ClassTable(names, values)

"""Corrections of a data set: a folder with masks and tags that somebody has mended.

    corrections/
        classes.txt         class names, one a line: line k has the value k in the masks
        masks/<id>.png      palette or grey: 0 background, 1..K, 255 open
        corrections.json    {"tags": {"<id>": {"added": ["cat"], "removed": []}},
                             "images": {"<id>": {"image": "images/<file>"}}}

The files of the data set itself stay as they are. Masks or tags may be missing. ``images`` brings
images that the data set lacks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE, Dataset, Record, map_mask_values, read_index_png
from trainer.data.pixels import image_size
from trainer.data.tables.classes import class_lines
from trainer.errors import DataError, UserError, nearest, some
from trainer.outputs import is_inner
from trainer.pool import raise_together

TABLE, MASKS, CLASSES = "corrections.json", "masks", "classes.txt"
SHAPE = f'{TABLE} with {{"tags": {{"<id>": {{"added": ["name"], "removed": ["name"]}}}}}}'
CHANGES = ("added", "removed")
TagChanges = Mapping[str, Mapping[str, list[str]]]
"""By image id, class names under ``added`` and ``removed``."""


@dataclass(frozen=True)
class Corrections:
    """What a folder of corrections says of a data set.

    Attributes:
        folder: of the corrections.
        files: mask files by image id.
        labels: label in the data set of each value 0..K in these files.
        tags: changes of tags; classes that a mask shows are among those added.
        images: image files by id, of images that the data set lacks.
        runs: folders of the runs whose masks were corrected, as far as the table names them.
    """

    folder: Path
    files: dict[str, Path]
    labels: tuple[int, ...]
    tags: TagChanges
    images: dict[str, Path]
    runs: tuple[Path, ...] = ()

    def read(self, record_id: str) -> npt.NDArray[np.uint8]:
        """The label map ``uint8 [H,W]`` of an image in the data set's labels, 255 open.

        Raises:
            DataError: unreadable, or a value that no class has.
        """
        file = self.files[record_id]
        values = map_mask_values(read_index_png(file), range(1, len(self.labels)), file)
        table = np.full(256, IGNORE, np.uint8)
        table[: len(self.labels)] = self.labels
        return table[values]


def read_corrections(folder: Path, dataset: Dataset) -> Corrections:
    """Read and check a folder of corrections of ``dataset``.

    Raises:
        DataError: no such folder, nothing in it, ids or classes that the data lack, masks of
            another size or with other values, or tags that contradict them.
    """
    if not folder.is_dir():
        hint = "wsss-trainer answer RUN REVIEW writes one"
        raise DataError(f"{folder} is not a folder", "a folder of corrections", hint)
    files = _mask_files(folder / MASKS)
    tags, images, runs = _table(folder, dataset)
    if not files and not tags:
        raise DataError(
            f"{folder} has no corrections", f"{MASKS}/<id>.png with {CLASSES}, or {TABLE}"
        )
    if strangers := sorted((files.keys() | tags.keys()) - dataset.records.keys() - images.keys()):
        raise DataError(
            f"{folder} corrects {len(strangers)} images that {dataset.root} lacks:"
            f" {some(strangers)}",
            "corrections of this data set",
            "take their entries out, or name the data set that they belong to",
        )
    labels = _labels(folder, dataset) if files else (0,)
    corrections = Corrections(folder, files, labels, tags, images, runs)
    return replace(corrections, tags=_with_shown(corrections, dataset))


def extended(dataset: Dataset, corrections: Corrections, name: str) -> Dataset:
    """The data set with the images that it lacks, in list ``name``.

    Of an image without a mask, only the classes that were added or removed are known.
    """
    every, lists = tuple(range(len(dataset.classes))), dict(dataset.lists)
    records = {
        i: Record(i, path, (), unknown=() if i in corrections.files else every)
        for i, path in corrections.images.items()
    }
    for each in {name, "all"} & lists.keys():
        lists[each] = (*lists[each], *records)
    return replace(dataset, records={**dataset.records, **records}, lists=lists)


def corrected(dataset: Dataset, tags: TagChanges) -> Dataset:
    """The data set with other tags. What is added or removed is not unknown any more."""
    records = dict(dataset.records)
    # A data set that is opened again lacks the images that only the corrections have.
    tags = {i: change for i, change in tags.items() if i in records}
    for record_id, change in tags.items():
        records[record_id] = _changed(records[record_id], change, dataset.classes)
    changes = sum(records[i] != dataset.records[i] for i in tags)
    if not changes:
        return dataset
    source = f"{dataset.tags_from}, of {changes} images corrected"
    return replace(dataset, records=records, tags_from=source)


def _changed(record: Record, change: Mapping[str, list[str]], classes: tuple[str, ...]) -> Record:
    added, removed = ({classes.index(n) for n in change.get(way, ())} for way in CHANGES)
    return replace(
        record,
        tags=tuple(sorted({*record.tags, *added} - removed)),
        unknown=tuple(k for k in record.unknown if k not in added | removed),
    )


def _mask_files(folder: Path) -> dict[str, Path]:
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    if others := [str(p.relative_to(folder)) for p in paths if p.suffix.lower() != ".png"]:
        raise DataError(
            f"{folder} holds files that are no PNG ({len(others)}): {some(others)}",
            "masks called <id>.png",
        )
    return {str(path.relative_to(folder).with_suffix("")): path for path in paths}


def _table(
    folder: Path, dataset: Dataset
) -> tuple[dict[str, dict[str, list[str]]], dict[str, Path], tuple[Path, ...]]:
    """The changes of tags, the images that the data set lacks, and the runs that were corrected."""
    path = folder / TABLE
    if not path.exists():
        return {}, {}, ()
    try:
        content: Any = json.loads(path.read_bytes())
        tags = {
            str(record_id): {way: [str(name) for name in change.get(way, [])] for way in CHANGES}
            for record_id, change in content.get("tags", {}).items()
        }
        images = {str(i): dict(entry) for i, entry in content.get("images", {}).items()}
    # Anything but this shape fails in its own way, and each of them means the same.
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}", SHAPE) from error
    files = {i: str(entry.get("image") or "") for i, entry in images.items()}
    new = {i: name for i, name in files.items() if name and i not in dataset.records}
    for record_id, name in new.items():
        # Names come from a file that anybody may have written.
        if not is_inner(record_id) or not is_inner(name) or not (folder / name).is_file():
            raise DataError(
                f"{path}: the image {name!r} of {record_id!r} is not in {folder}",
                "images that lie in the folder of corrections",
            )
    runs = dict.fromkeys(Path(str(entry["run"])) for entry in images.values() if entry.get("run"))
    return tags, {record_id: folder / name for record_id, name in new.items()}, tuple(runs)


def _labels(folder: Path, dataset: Dataset) -> tuple[int, ...]:
    """The data set's label of background and of each class in ``classes.txt``."""
    names = class_lines(folder)
    if not names:
        raise DataError(
            f"{folder} has masks and no {CLASSES}",
            f"{CLASSES} with the class names, one a line: line k has the value k in the masks",
        )
    return (0, *(_position(name, dataset, folder / CLASSES) + 1 for name in names))


def _position(name: str, dataset: Dataset, where: Path) -> int:
    if name not in dataset.classes:
        raise DataError(
            f"{where} has the class {name!r}, which {dataset.root} lacks",
            nearest(name, dataset.classes),
            "the names of the data set's own class table",
        )
    return dataset.classes.index(name)


def _with_shown(corrections: Corrections, dataset: Dataset) -> TagChanges:
    """The changes of tags, and the classes that masks show."""
    tags = {
        i: {way: list(change[way]) for way in CHANGES} for i, change in corrections.tags.items()
    }
    for record_id, change in tags.items():
        names = change["added"] + change["removed"]
        for name in names:
            _position(name, dataset, corrections.folder / TABLE)
        if len(names) > len(set(names)):
            raise DataError(
                f"{corrections.folder / TABLE} adds and removes a class of {record_id!r}",
                "each class once, added or removed",
            )
    problems: list[UserError] = []
    for record_id in corrections.files:
        try:
            shown = _shown(corrections, dataset, record_id)
        except DataError as error:
            problems.append(error)
            continue
        change = tags.setdefault(record_id, {way: [] for way in CHANGES})
        if wrong := sorted(shown & {*change["removed"]}):
            what = f"the mask of {record_id!r} shows {some(wrong)}, which {TABLE} removes"
            problems.append(DataError(what, "a mask and tags that fit"))
        change["added"] = sorted({*change["added"], *shown})
    raise_together(problems, len(corrections.files), "masks cannot be used as corrections")
    return tags


def _shown(corrections: Corrections, dataset: Dataset, record_id: str) -> set[str]:
    """Names of the classes that a mask shows.

    Raises:
        DataError: the mask is not one of its image.
    """
    mask = corrections.read(record_id)
    image = corrections.images.get(record_id) or dataset.records[record_id].image
    height, width = image_size(image)
    if mask.shape != (height, width):
        raise DataError(
            f"the mask of {record_id!r} is {mask.shape[1]}x{mask.shape[0]}, its image"
            f" {width}x{height}",
            "masks of the image's size",
        )
    labels = set(np.unique(mask).tolist()) - {0, IGNORE}
    return {dataset.classes[label - 1] for label in labels}

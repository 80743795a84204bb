"""COCO instances JSON; masks are drawn from the annotations when they are read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.classes import complement
from trainer.data.coco.categories import unite
from trainer.data.coco.classes import COCO_CLASSES, COCO_UNUSED
from trainer.data.coco.dataset import CocoDataset
from trainer.data.coco.records import CocoRecords
from trainer.data.coco.table import ABSENT, CocoTable, is_instances, read_table
from trainer.data.dataset import IGNORE, Record
from trainer.data.formats import folder
from trainer.data.formats.base import Format
from trainer.data.formats.writing import GROUP, Writer, lost_objects
from trainer.data.image_files import entries
from trainer.data.knobs import DataConfig
from trainer.data.remarks import Remarks
from trainer.errors import DataError, some

TAGS = {False: "COCO annotations, crowds left out", True: "COCO annotations, crowds included"}
CROWDS = {
    "drop": "crowds left out",
    "ignore": "crowds ignored (255)",
    "keep": "crowds painted like objects",
}


def recognises(root: Path) -> bool:
    """Whether ``root`` has ``annotations/*.json``, or instances JSON in itself or in its
    folders.
    """
    return bool(_sources(root))


def read(root: Path, config: DataConfig, remarks: Remarks) -> CocoDataset:
    """Read every ``annotations/instances_*.json``; without such names every
    ``annotations/*.json``; without that folder every instances JSON in ``root``, else in the
    folders of ``root``.

    Each file is a list called after it (``instances_train2014.json``: ``train2014``), or after its
    folder (``train/_annotations.coco.json``: ``train``). Tags are the categories of the
    annotations. An annotation with ``"ignore": 1`` is 255 and no tag.

    Raises:
        DataError: no file can be read, no image is there, or the categories are no class table.
    """
    sources = _sources(root)
    categories, tables = unite(_tables(sources, config, remarks), remarks)
    others = [path.name for path in _annotation_files(root) if path not in sources]
    if others:
        remarks.note(f"{len(others)} other JSON files are not read: {some(others)}")
    content = CocoRecords(root, config, categories, remarks)
    for table in tables:
        content.add(table)
    records, shapes = content.records, content.shapes
    if not records:
        names = some(path.relative_to(root) for path in sources)
        raise DataError(
            f"{root} describes no image that is there ({names})",
            "COCO instances JSON and its images",
        )
    if len(shapes) < len(records):
        remarks.note(
            f"{len(records) - len(shapes)} images have objects without outline and so no mask"
        )
    remarks.notes += content.images.notes
    return CocoDataset(
        root=root,
        format="coco",
        classes=categories.names,
        mask_values=tuple(range(1, len(categories.names) + 1)),
        records=records,
        lists=content.lists,
        tags_from=TAGS[config.crowd_tags],
        masks_from=f"annotations painted in file order, {CROWDS[config.crowd]}" if shapes else "",
        shapes=shapes,
        empty=content.empty,
    )


def _sources(root: Path) -> dict[Path, str]:
    """JSON files and the names of their lists."""
    inside = _annotation_files(root)
    if inside:
        instances = [path for path in inside if path.name.lower().startswith("instances_")]
        chosen = instances or [path for path in inside if is_instances(path)] or inside
        return {path: path.stem[len("instances_") * (path in instances) :] for path in chosen}
    if folder.recognises(root):
        return {}
    loose = [path for path in _json_files(root) if is_instances(path)]
    if loose:
        return {path: path.stem for path in loose}
    sources: dict[Path, str] = {}
    for place in _folders(root):
        inside = [path for path in _json_files(place) if is_instances(path)]
        for path in inside:
            sources[path] = place.name if len(inside) == 1 else f"{place.name}_{path.stem}"
    return sources


def _annotation_files(root: Path) -> list[Path]:
    folders = (place for place in _folders(root) if place.name.lower() == "annotations")
    return list(chain.from_iterable(map(_json_files, folders)))


def _folders(root: Path) -> list[Path]:
    return [p for p in entries(root) if p.is_dir() and not p.name.startswith(".")]


def _json_files(place: Path) -> list[Path]:
    return [
        path
        for path in entries(place)
        if path.suffix.lower() == ".json" and not path.name.startswith(".") and path.is_file()
    ]


def _tables(sources: dict[Path, str], config: DataConfig, remarks: Remarks) -> list[CocoTable]:
    """The files that can be read.

    Raises:
        DataError: none of them can.
    """
    tables, failures = [], []
    for path, name in sources.items():
        try:
            tables.append(read_table(path, name, config.group, remarks))
        except DataError as error:
            failures.append(error)
    if not tables:
        raise failures[0]
    for failure in failures:
        remarks.add(failure)
    return tables


class CocoWriter(Writer):
    """``images/`` and ``annotations/instances_<list>.json``, one annotation a class and image.

    Outlines are run lengths, which keep masks exact. Pixels of 255 are an annotation with
    ``"iscrowd": 1, "ignore": 1``: readers that know crowds ignore it, and this package makes it 255
    again. A tag that the mask does not show is an annotation of area 0. A tag of an image without a
    mask is a box of the size of the image, without an outline. Where an image has unknown classes,
    ``neg_category_ids`` has those that are absent, as in LVIS.
    """

    name = "coco"
    describes = True

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO's own, with their gaps, for COCO's classes; else 1 to K."""
        if self.dataset.classes == COCO_CLASSES:
            return tuple(i for i in range(1, 91) if i not in COCO_UNUSED)
        return tuple(range(1, len(self.dataset.classes) + 1))

    def image(self, record: Record) -> Path:
        """In ``images``."""
        return Path("images", f"{record.id}{record.image.suffix}")

    def describe(
        self, record: Record, size: tuple[int, int], label_HW: npt.NDArray[np.uint8] | None
    ) -> Any:
        """Height, width, and annotations without ids."""
        ids, height, width = self.category_ids, *size
        if label_HW is None:
            box = {"bbox": [0, 0, width, height], "area": height * width, "iscrowd": 0}
            return height, width, [{"category_id": ids[k], **box} for k in record.tags]
        present = set(np.flatnonzero(np.bincount(label_HW.ravel(), minlength=IGNORE + 1)).tolist())
        classes = sorted({k - 1 for k in present - {0, IGNORE}} | set(record.tags))
        notes = [
            {"category_id": ids[k], **_outline(label_HW == k + 1), "iscrowd": 0} for k in classes
        ]
        if IGNORE in present:
            # COCO has no category for unknown pixels. Any will do, because "ignore" says what they
            # are.
            category = ids[classes[0] if classes else 0]
            void = _outline(label_HW == IGNORE)
            notes.append({"category_id": category, **void, "iscrowd": 1, "ignore": 1})
        return height, width, notes

    def tables(self, descriptions: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """One JSON file a list."""
        records = self.dataset.records
        numbers = {key: n for n, key in enumerate(records, 1)}
        pairs = zip(self.category_ids, self.dataset.classes, strict=True)
        categories = [{"id": i, "name": name} for i, name in pairs]
        for name, ids in self.lists().items():
            images, annotations = [], []
            for key in ids:
                height, width, notes = descriptions[key]
                number, file_name = numbers[key], self.image(records[key]).name
                images.append(
                    {"id": number, "file_name": file_name, "height": height, "width": width}
                    | self._facts(records[key])
                )
                annotations += [
                    # An image has 255 annotations at most, one a class and one for unknown pixels.
                    {"id": number * 1000 + n, "image_id": number, **note}
                    for n, note in enumerate(notes)
                ]
            table = {"images": images, "annotations": annotations, "categories": categories}
            yield Path("annotations", f"instances_{name}.json"), json.dumps(table).encode()

    def _facts(self, record: Record) -> dict[str, Any]:
        """Fields of an image that its annotations do not hold."""
        facts: dict[str, Any] = {GROUP: record.group} if record.group else {}
        if record.unknown:
            absent = complement(record.possible, len(self.dataset.classes))
            facts[ABSENT] = [self.category_ids[k] for k in absent]
        return facts

    def lost(self, descriptions: dict[str, Any]) -> list[str]:
        """Tags that differ from the masks."""
        lost = lost_objects(self.dataset)
        index = {i: k for k, i in enumerate(self.category_ids)}
        surplus = 0
        for key, (_, _, notes) in descriptions.items():
            tags = self.dataset.records[key].tags
            surplus += any(
                index[note["category_id"]] not in tags and not note.get("ignore") for note in notes
            )
        if surplus:
            lost.append(f"{surplus} images get tags that only their mask has")
        return lost


def _outline(mask_HW: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Run lengths, area and box of a region."""
    from pycocotools import mask as rle

    # pycocotools wants the columns of a mask one after the other.
    runs = rle.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    with warnings.catch_warnings():
        # pycocotools hands numpy 2 an array in a way that numpy deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        area, box = int(rle.area(runs)), [float(v) for v in rle.toBbox(runs)]
    return {
        "segmentation": {"size": runs["size"], "counts": runs["counts"].decode("ascii")},
        "area": area,
        "bbox": box,
    }


FORMAT = Format(
    rank=20,
    words="COCO, whose tags are in its JSON",
    layout="COCO (annotations/*.json)",
    tags_from=("masks",),
    recognises=recognises,
    read=read,
    writer=CocoWriter,
)

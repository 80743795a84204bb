"""COCO as ``wsss-trainer convert`` writes it: one annotation a class and image, as run lengths, so
that masks stay exact.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE, Record
from trainer.data.formats.coco_classes import COCO_CLASSES, COCO_UNUSED
from trainer.data.formats.layouts import Layout, lost_objects


class CocoLayout(Layout):
    """``images/`` and ``annotations/instances_<list>.json``.

    Pixels of 255 (borders of VOC) are an annotation with ``"iscrowd": 1, "ignore": 1``: readers
    that know crowds ignore them, and this package makes them 255 again. A tag that the mask does
    not show is an annotation of area 0. A tag of an image without a mask is a box as large as the
    image, without an outline.
    """

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
            whole = {"bbox": [0, 0, width, height], "area": height * width, "iscrowd": 0}
            return height, width, [{"category_id": ids[k], **whole} for k in record.tags]
        shown = set(np.flatnonzero(np.bincount(label_HW.ravel(), minlength=IGNORE + 1)).tolist())
        classes = sorted({k - 1 for k in shown - {0, IGNORE}} | set(record.tags))
        notes = [
            {"category_id": ids[k], **_outline(label_HW == k + 1), "iscrowd": 0} for k in classes
        ]
        if IGNORE in shown:
            void = _outline(label_HW == IGNORE)
            notes.append(
                {
                    "category_id": ids[classes[0] if classes else 0],
                    **void,
                    "iscrowd": 1,
                    "ignore": 1,
                }
            )
        return height, width, notes

    def tables(self, described: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """One JSON file a list."""
        records = self.dataset.records
        numbers = {key: n for n, key in enumerate(records, 1)}
        categories = [
            {"id": i, "name": name}
            for i, name in zip(self.category_ids, self.dataset.classes, strict=True)
        ]
        for name, ids in self.lists().items():
            images, annotations = [], []
            for key in ids:
                height, width, notes = described[key]
                number, file_name = numbers[key], self.image(records[key]).name
                images.append(
                    {"id": number, "file_name": file_name, "height": height, "width": width}
                )
                annotations += [
                    {"id": number * 1000 + n, "image_id": number, **note}
                    for n, note in enumerate(notes)
                ]
            table = {"images": images, "annotations": annotations, "categories": categories}
            yield Path("annotations", f"instances_{name}.json"), json.dumps(table).encode()

    def lost(self, described: dict[str, Any]) -> list[str]:
        """Tags that differ from the masks, and images without any annotation."""
        lost = lost_objects(self.dataset)
        index = {i: k for k, i in enumerate(self.category_ids)}
        gained = bare = 0
        for key, (_, _, notes) in described.items():
            tags = self.dataset.records[key].tags
            gained += any(
                index[note["category_id"]] not in tags and not note.get("ignore") for note in notes
            )
            bare += not notes
        if gained:
            lost.append(f"{gained} images get tags that only their mask has")
        if bare:
            lost.append(
                f"{bare} images have neither tag nor mask pixel: they need --set data.keep_empty=on"
                " when read"
            )
        return lost


def _outline(mask_HW: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Run lengths, area and box of a region."""
    from pycocotools import mask as rle

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

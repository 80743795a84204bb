"""Lists for the released code of others, which name images where they are: what
``wsss-trainer convert`` writes for psa and its descendants, and for MVA.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.dataset import Record
from trainer.data.formats.layouts import Layout, VocLayout, flags, lines, table
from trainer.data.formats.voc import VOC_CLASSES


class PsaLayout(Layout):
    """List files of two columns, and ``cls_labels.npy``: for psa, IRN, SEAM, SC-CAM. They name
    images of a VOC folder.
    """

    def image(self, record: Record) -> None:
        """Images stay where they are."""

    def tables(self, described: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """Lists and tags."""
        data = self.dataset
        voc = VocLayout(data)
        for name, ids in self.lists().items():
            records = [data.records[i] for i in ids]
            pairs = (
                f"/{voc.image(r).as_posix()} /SegmentationClassAug/{r.id}.png" for r in records
            )
            yield Path(f"{name}.txt"), lines(pairs)
        # Their code expects VOC's twenty numbers.
        names = VOC_CLASSES if set(data.classes) <= set(VOC_CLASSES) else data.classes
        labels = {i: np.zeros(len(names), np.float32) for i in data.records}
        for i, record in data.records.items():
            labels[i][[names.index(data.classes[k]) for k in record.tags]] = 1
        buffer = io.BytesIO()
        np.save(buffer, np.array(labels, dtype=object), allow_pickle=True)
        yield Path("cls_labels.npy"), buffer.getvalue()

    def lost(self, described: dict[str, Any]) -> list[str]:
        """Masks, and ids that psa cannot read."""
        odd = [
            r.id
            for r in self.dataset.records.values()
            if len(r.id) != 11 or len(r.image.suffix) != 4
        ]
        text = (
            f"{len(odd)} ids are not of 11 characters with a suffix of 4, as psa cuts them out of"
            " list lines"
        )
        return ["class names", "masks", *([text] if odd else [])]


class MvaLayout(Layout):
    """``data_<list>.csv`` of absolute paths and 0/1 columns. MVA calls ``val``
    ``data_test.csv``.
    """

    def image(self, record: Record) -> None:
        """Images stay where they are."""

    def tables(self, described: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """One table a list."""
        data = self.dataset
        for name, ids in self._named().items():
            rows = [
                [
                    str(data.records[i].image.resolve()),
                    *flags(len(data.classes), data.records[i].tags),
                ]
                for i in ids
            ]
            yield Path(f"data_{name}.csv"), table(["filename", *data.classes], rows)

    def _named(self) -> dict[str, tuple[str, ...]]:
        lists = self.lists()
        if "val" in lists:
            lists["test"] = lists.pop("val")
        return lists

    def lost(self, described: dict[str, Any]) -> list[str]:
        """Masks, and ids that are not file names."""
        both = {"val", "test"} <= self.dataset.lists.keys()
        return ["masks", *(["list 'test', whose name MVA gives to 'val'"] if both else [])]

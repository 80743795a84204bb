"""Where each format keeps images and masks, and its tables: what ``wsss-trainer convert`` writes
(spec refine-segment 11).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE, Dataset, Record
from trainer.data.voc import VOC_CLASSES
from trainer.errors import DataError
from trainer.files import write_atomic

LIST_NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Layout:
    """One format: places relative to the new folder, and the tables, which are written last.

    Attributes:
        dataset: what is written.
        describes: whether the tables hold masks, so that ``describe`` is called.
    """

    dataset: Dataset
    describes: ClassVar[bool] = False

    @property
    def values(self) -> tuple[int, ...]:
        """Of the classes, in mask files."""
        return tuple(range(1, len(self.dataset.classes) + 1))

    def image(self, record: Record) -> Path | None:
        """Where the image goes; None where the format has no place for it."""
        raise NotImplementedError

    def mask(self, record: Record) -> Path | None:
        """Where the mask file goes; None where the format has none."""
        return None

    def describe(
        self, record: Record, size: tuple[int, int], label_HW: npt.NDArray[np.uint8] | None
    ) -> Any:
        """What the tables hold about one image; ``size`` is (height, width), ``label_HW`` its label
        map or None.
        """
        raise NotImplementedError

    def write(self, target: Path, described: dict[str, Any]) -> None:
        """Write the tables; ``described`` has what ``describe`` said, by id."""
        raise NotImplementedError

    def lost(self, described: dict[str, Any]) -> list[str]:
        """What the format cannot hold, in words."""
        return []

    def lists(self) -> dict[str, tuple[str, ...]]:
        """The lists without ``all``, so that every image is in one: ``all`` where there is no
        other, ``unlisted``.

        Raises:
            DataError: a list whose name cannot be that of a file.
        """
        data = self.dataset
        lists = {name: ids for name, ids in data.lists.items() if name != "all"}
        bad = next((name for name in lists if not LIST_NAME.fullmatch(name)), None)
        if bad is not None:
            raise DataError(
                f"list {bad!r} cannot be the name of a file",
                "letters, digits and ._+-",
                "rename the list",
            )
        if not lists:
            return {"all": data.lists["all"]}
        listed = {i for ids in lists.values() for i in ids}
        rest = tuple(i for i in data.records if i not in listed)
        return {**lists, "unlisted": rest} if rest else lists


class VocLayout(Layout):
    """``JPEGImages/``, ``SegmentationClass/``, ``ImageSets/Segmentation/``, ``image_labels.csv``,
    ``classes.json``.
    """

    @property
    def values(self) -> tuple[int, ...]:
        """VOC's own where every class is one of VOC's, else those of the source."""
        classes = self.dataset.classes
        if set(classes) <= set(VOC_CLASSES):
            return tuple(VOC_CLASSES.index(name) + 1 for name in classes)
        return self.dataset.mask_values

    def image(self, record: Record) -> Path:
        """In ``JPEGImages``."""
        return Path("JPEGImages", f"{record.id}{record.image.suffix}")

    def mask(self, record: Record) -> Path:
        """In ``SegmentationClass``, or ``SegmentationClassAug`` where the source has it there."""
        folder = record.mask.parent.name if record.mask else ""
        return Path(
            folder if folder == "SegmentationClassAug" else "SegmentationClass", f"{record.id}.png"
        )

    def write(self, target: Path, described: dict[str, Any]) -> None:
        """Lists, tags, and the class table where it is not VOC's."""
        for name, ids in self.lists().items():
            write_lines(target / "ImageSets" / "Segmentation" / f"{name}.txt", ids)
        if (self.dataset.classes, self.values) != (VOC_CLASSES, tuple(range(1, 21))):
            entries = [
                {"voc_index": value, "name": name}
                for name, value in zip(self.dataset.classes, self.values, strict=True)
            ]
            text = json.dumps({"classes": entries, "ignore": IGNORE}, indent=1)
            write_atomic(target / "classes.json", text.encode())
        tags = {record.id: record.tags for record in self.dataset.records.values()}
        write_tag_table(target / "image_labels.csv", self.dataset.classes, tags)

    def lost(self, described: dict[str, Any]) -> list[str]:
        """Nothing of tags and masks."""
        return lost_objects(self.dataset)


class CsvLayout(Layout):
    """Images, ``labels.csv``, ``classes.txt``, ``masks/``."""

    def image(self, record: Record) -> Path:
        """At the top, so that ids stay."""
        return Path(f"{record.id}{record.image.suffix}")

    def mask(self, record: Record) -> Path:
        """In ``masks``."""
        return Path("masks", f"{record.id}.png")

    def write(self, target: Path, described: dict[str, Any]) -> None:
        """Classes and tags.

        Raises:
            DataError: class names that cannot stand in a cell.
        """
        data = self.dataset
        bad = [name for name in data.classes if set(name) & set(";|\n") or name != name.strip()]
        if bad:
            raise DataError(
                f"the class name {bad[0]!r} cannot stand in a cell of labels.csv",
                "names without ; and |",
            )
        splits: dict[str, list[str]] = {i: [] for i in data.records}
        for name, ids in self.lists().items():
            for i in ids if name not in ("all", "unlisted") else ():
                splits[i].append(name)
        rows = [
            [
                str(self.image(record)),
                ";".join(data.classes[k] for k in record.tags),
                ";".join(splits[record.id]),
            ]
            for record in data.records.values()
        ]
        write_lines(target / "classes.txt", data.classes)
        write_table(target / "labels.csv", ["image", "tags", "split"], rows)

    def lost(self, described: dict[str, Any]) -> list[str]:
        """The order of lists."""
        return [*lost_objects(self.dataset), "the order of the images in each list"]


class FoldersLayout(Layout):
    """``<list>/<class>/<image>``, for the lists that train and measure by default."""

    def image(self, record: Record) -> Path | None:
        """Images with one tag only."""
        if len(record.tags) != 1:
            return None
        name = next((name for name, ids in self._split.items() if record.id in ids), None)
        if name is None:
            return None
        return Path(
            name if name != "all" else "",
            self.dataset.classes[record.tags[0]],
            f"{record.id}{record.image.suffix}",
        )

    @cached_property
    def _split(self) -> dict[str, frozenset[str]]:
        names = [self.dataset.default_list(use) for use in ("val", "train")]
        return {name: frozenset(self.dataset.lists[name]) for name in names if name} or {
            "all": frozenset(self.dataset.records)
        }

    def write(self, target: Path, described: dict[str, Any]) -> None:
        """No table."""

    def lost(self, described: dict[str, Any]) -> list[str]:
        """Most, where images have several tags."""
        several = sum(len(record.tags) > 1 for record in self.dataset.records.values())
        none = sum(not record.tags for record in self.dataset.records.values())
        lists = " and ".join(map(repr, self._split))
        return [
            f"{several} images with several tags and {none} without a tag",
            f"lists other than {lists}",
            "all masks",
        ]


class PsaLayout(Layout):
    """List files of two columns, and ``cls_labels.npy``: for psa, IRN, SEAM, SC-CAM. They name
    images of a VOC folder.
    """

    def image(self, record: Record) -> None:
        """Images stay where they are."""

    def write(self, target: Path, described: dict[str, Any]) -> None:
        """Lists and tags."""
        data = self.dataset
        voc = VocLayout(data)
        for name, ids in self.lists().items():
            records = [data.records[i] for i in ids]
            lines = (
                f"/{voc.image(r).as_posix()} /SegmentationClassAug/{r.id}.png" for r in records
            )
            write_lines(target / f"{name}.txt", lines)
        # Their code expects VOC's twenty numbers.
        names = VOC_CLASSES if set(data.classes) <= set(VOC_CLASSES) else data.classes
        labels = {i: np.zeros(len(names), np.float32) for i in data.records}
        for i, record in data.records.items():
            labels[i][[names.index(data.classes[k]) for k in record.tags]] = 1
        buffer = io.BytesIO()
        np.save(buffer, np.array(labels, dtype=object), allow_pickle=True)
        write_atomic(target / "cls_labels.npy", buffer.getvalue())

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

    def write(self, target: Path, described: dict[str, Any]) -> None:
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
            write_table(target / f"data_{name}.csv", ["filename", *data.classes], rows)

    def _named(self) -> dict[str, tuple[str, ...]]:
        lists = self.lists()
        if "val" in lists:
            lists["test"] = lists.pop("val")
        return lists

    def lost(self, described: dict[str, Any]) -> list[str]:
        """Masks, and ids that are not file names."""
        both = {"val", "test"} <= self.dataset.lists.keys()
        return ["masks", *(["list 'test', whose name MVA gives to 'val'"] if both else [])]


def lost_objects(dataset: Dataset) -> list[str]:
    """What label maps and tags do not hold of COCO's annotations or VOC's XML."""
    lost = (
        ["objects of a class become one region: instances, boxes and crowds"]
        if dataset.format == "coco"
        else []
    )
    if dataset.format == "voc" and (dataset.root / "Annotations").is_dir():
        lost.append("boxes, parts and difficult flags of Annotations/*.xml")
    return lost


def write_tag_table(path: Path, classes: Sequence[str], tags: Mapping[str, Iterable[int]]) -> None:
    """A table of ``image`` (the id) and one 0/1 column a class.

    Raises:
        DataError: a class is called ``image`` too.
    """
    if "image" in (name.lower() for name in classes):
        raise DataError("a class is called 'image', like the column of image names", "another name")
    write_table(path, ["image", *classes], ([i, *flags(len(classes), tags[i])] for i in tags))


def flags(count: int, tags: Iterable[int]) -> list[str]:
    """0/1 cells of ``count`` classes."""
    present = set(tags)
    return ["1" if k in present else "0" for k in range(count)]


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A CSV file, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomic(path, text.getvalue().encode())


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A text file, whole or not at all."""
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())

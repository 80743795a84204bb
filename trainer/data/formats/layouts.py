"""Where each format keeps images and masks, and its tables, as ``wsss-trainer convert`` writes."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE, Dataset, Record, some
from trainer.data.formats.class_folders import OTHERS
from trainer.data.formats.voc import VOC_CLASSES
from trainer.errors import DataError
from trainer.outputs import is_portable

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

    def check(self) -> None:
        """Refuse names that the format cannot hold, before anything is written.

        Raises:
            DataError: as said.
        """
        self.lists()

    def tables(self, described: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """Place and content of each table; ``described`` has what ``describe`` said, by id."""
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

    def check(self) -> None:
        """See ``Layout``; a table of tags is written too."""
        super().check()
        check_tag_classes(self.dataset.classes)

    def tables(self, described: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """Lists, tags, and the class table where it is not VOC's."""
        for name, ids in self.lists().items():
            yield Path("ImageSets", "Segmentation", f"{name}.txt"), lines(ids)
        if (self.dataset.classes, self.values) != (VOC_CLASSES, tuple(range(1, 21))):
            entries = [
                {"voc_index": value, "name": name}
                for name, value in zip(self.dataset.classes, self.values, strict=True)
            ]
            text = json.dumps({"classes": entries, "ignore": IGNORE}, indent=1)
            yield Path("classes.json"), text.encode()
        tags = {record.id: record.tags for record in self.dataset.records.values()}
        yield Path("image_labels.csv"), tag_table(self.dataset.classes, tags)

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

    def check(self) -> None:
        """See ``Layout``; tags stand in cells, with ``;`` between."""
        super().check()
        names = self.dataset.classes
        bad = [name for name in names if set(name) & set(";|\n\r") or name != name.strip()]
        if bad:
            raise DataError(
                f"the class name {bad[0]!r} cannot stand in a cell of labels.csv",
                "names without ; and |",
            )

    def tables(self, described: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """Classes and tags."""
        data = self.dataset
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
        yield Path("classes.txt"), lines(data.classes)
        yield Path("labels.csv"), table(["image", "tags", "split"], rows)

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

    def check(self) -> None:
        """See ``Layout``; each class that is written is a folder of its own, on every system."""
        super().check()
        shown = {r.tags[0] for r in self.dataset.records.values() if len(r.tags) == 1}
        names = [self.dataset.classes[k] for k in sorted(shown)]
        bad = [n for n in names if not is_portable(n) or n.lower().startswith(OTHERS)]
        if bad:
            raise DataError(
                f"{len(bad)} class names cannot be those of folders: {some(map(repr, bad))}",
                'names without / \\ : * ? " < > |, without dots and spaces at their ends, and not'
                f" those of other formats' folders ({', '.join(OTHERS)})",
                "rename the classes, or --to csv",
            )
        if twins := alike(names):
            raise DataError(
                f"the classes {twins[0]!r} and {twins[1]!r} are one folder on many systems",
                "names that differ in more than upper and lower case",
                "rename one of them",
            )

    def tables(self, described: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """No table."""
        return iter(())

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


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that are one to a disk that knows no upper and lower case, or no two
    ways to write an umlaut.
    """
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(normalize("NFC", name).casefold(), name)
        if other != name:
            return other, name
    return None


def check_tag_classes(classes: Sequence[str]) -> None:
    """Refuse a class whose column would be taken for that of the images.

    Raises:
        DataError: a class is called ``image`` too.
    """
    if "image" in (name.lower() for name in classes):
        raise DataError("a class is called 'image', like the column of image names", "another name")


def tag_table(classes: Sequence[str], tags: Mapping[str, Iterable[int]]) -> bytes:
    """A table of ``image`` (the id) and one 0/1 column a class."""
    return table(["image", *classes], ([i, *flags(len(classes), tags[i])] for i in tags))


def flags(count: int, tags: Iterable[int]) -> list[str]:
    """0/1 cells of ``count`` classes."""
    present = set(tags)
    return ["1" if k in present else "0" for k in range(count)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """A CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def lines(texts: Iterable[str]) -> bytes:
    """A text file."""
    return "".join(f"{text}\n" for text in texts).encode()

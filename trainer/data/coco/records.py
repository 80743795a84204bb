"""Records, lists and masks of the JSON files of a COCO data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path

from trainer.data.classes import complement
from trainer.data.coco.categories import Categories
from trainer.data.coco.fields import Key
from trainer.data.coco.images import CocoImages, record_name
from trainer.data.coco.outlines import Shape
from trainer.data.coco.table import CocoTable, Entry
from trainer.data.dataset import IGNORE, Record
from trainer.data.knobs import DataConfig
from trainer.data.remarks import Remarks


class CocoRecords:
    """Collects what the JSON files say, one after the other.

    Attributes:
        records: by id.
        shapes: by id, what the mask is painted from.
        lists: ids of each list.
        empty: by list, how many images of the JSON have no annotation.
    """

    def __init__(
        self, root: Path, config: DataConfig, categories: Categories, remarks: Remarks
    ) -> None:
        self.root, self.config, self.categories, self.remarks = root, config, categories, remarks
        self.images = CocoImages(root)
        self.records: dict[str, Record] = {}
        self.shapes: dict[str, Shape] = {}
        self.lists: dict[str, tuple[str, ...]] = {}
        self.empty: dict[str, int] = {}

    def add(self, table: CocoTable) -> None:
        """Add the images of one file."""
        name = table.name
        entries = [e for e in table.entries if e.notes or self.config.keep_empty]
        names = [entry.file_name for entry in entries]
        images = self.images.locate(table.path, name, names, self.remarks)
        labels = self.categories.labels_of(table)
        ids = [
            self._add(table, entry, images[entry.file_name], labels)
            for entry in entries
            if entry.file_name in images
        ]
        self.lists[name] = tuple(dict.fromkeys((*self.lists.get(name, ()), *ids)))
        self.empty[name] = sum(not entry.notes for entry in table.entries)
        self.remarks.notes += [*table.remarks, *self._omissions(table)]

    def _omissions(self, table: CocoTable) -> Iterator[str]:
        """What the knobs leave out."""
        config, name = self.config, table.name
        if self.empty[name] and not config.keep_empty:
            yield (
                f"{self.empty[name]} of {len(table.entries)} images of {name} have no annotation"
                " and are left out (--set data.keep_empty=on keeps them)"
            )
        crowds = sum(note.kind == "crowd" for entry in table.entries for note in entry.notes)
        if crowds and config.crowd == "drop" and not config.crowd_tags:
            yield (
                f"{crowds} annotations of {name} are crowds (iscrowd 1) and left out: --set"
                " data.crowd=keep --set data.crowd_tags=on makes objects of them"
            )

    def _add(
        self, table: CocoTable, entry: Entry, image: Path, labels: dict[Key, int | None]
    ) -> str:
        """Add one image; returns its id."""
        key = self._free_id(record_name(self.root, entry.file_name, image), table.name, image)
        kinds = ("object", "crowd") if self.config.crowd_tags else ("object",)
        tags = _classes((n.category for n in entry.notes if n.kind in kinds), labels)
        unknown = self._unknown(entry, labels, tags)
        record = Record(key, image, tags, unknown=unknown, group=entry.group)
        values = tuple(self._values(entry, labels))
        pairs = zip(entry.notes, values, strict=True)
        shape = None
        # An image that shows nothing is background only where nothing is unknown.
        if (entry.notes or not unknown) and all(
            note.outlined or value is None for note, value in pairs
        ):
            shape = Shape(entry.size, entry.outlines, values, table.relative)
        # An image that several files name has one record and one mask.
        if (self.records.get(key, record), self.shapes.get(key, shape)) != (record, shape):
            self.remarks.problem(
                f"{table.path} and another file disagree about {entry.file_name}",
                "the same annotations, in the same order",
                "where these are different images of one name, put them into folders of their own"
                " and write the folder into file_name",
            )
        self.records.setdefault(key, record)
        if shape:
            self.shapes.setdefault(key, shape)
        return key

    def _unknown(
        self, entry: Entry, labels: dict[Key, int | None], tags: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Classes of which nobody said whether the image shows them."""
        partial = set(_classes(entry.partial, labels)) - set(tags)
        if entry.absent is None and self.config.missing == "absent":
            return tuple(sorted(partial))
        absent = set(_classes(entry.absent or (), labels)) - partial
        return complement({*tags, *absent}, len(self.categories.names))

    def _values(self, entry: Entry, labels: dict[Key, int | None]) -> Iterator[int | None]:
        """What each annotation paints; None for nothing."""
        crowd = self.config.crowd
        for note in entry.notes:
            value = labels[note.category]
            if note.kind == "void" or (note.kind == "crowd" and crowd == "ignore"):
                value = IGNORE
            elif note.kind == "crowd" and crowd == "drop":
                value = None
            # An annotation of background without an outline paints nothing.
            yield None if value == 0 and not note.outlined else value

    def _free_id(self, plain: str, name: str, image: Path) -> str:
        """The plain id; with the name of the list before it, and a number, if another image has
        it.
        """
        longer = f"{name}__{plain}"
        for key in chain((plain, longer), (f"{longer}__{n}" for n in count(2))):
            if key not in self.records or self.records[key].image == image:
                return key
        raise AssertionError("count() does not end")


def _classes(categories: Iterable[Key], labels: dict[Key, int | None]) -> tuple[int, ...]:
    """Class indices of categories, ascending; those that are no classes are left out."""
    present = {labels.get(category) for category in categories}
    return tuple(sorted(label - 1 for label in present if label not in (None, 0, IGNORE)))

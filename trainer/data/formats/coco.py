"""COCO instances JSON. Masks are drawn from the annotations when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE, Dataset, Record, complain, some
from trainer.data.formats import folder
from trainer.data.formats.coco_categories import ClassTable, unite
from trainer.data.formats.coco_images import CocoImages, record_name
from trainer.data.formats.coco_table import (
    CocoTable,
    Entry,
    Key,
    Problems,
    is_instances,
    read_table,
)
from trainer.data.formats.outlines import Shape
from trainer.data.image_files import entries
from trainer.data.knobs import DataConfig
from trainer.data.pixels import image_size
from trainer.data.tags import FROM_MASKS
from trainer.errors import DataError

SAME_SIZE = "a JSON whose width and height are those of the image, turned as its EXIF data say"
TAGS = {False: "COCO annotations, crowds left out", True: "COCO annotations, crowds included"}
CROWDS = {
    "drop": "crowds left out",
    "ignore": "crowds ignored (255)",
    "keep": "crowds painted like objects",
}


@dataclass(frozen=True)
class CocoDataset(Dataset):
    """A data set whose masks are drawn from annotations.

    Attributes:
        shapes: by id, what the mask is painted from.
        empty: by list, how many images of the file have no annotation at all.
    """

    shapes: dict[str, Shape] = field(default_factory=dict, repr=False)
    empty: dict[str, int] = field(default_factory=dict)

    def has_mask(self, record: Record) -> bool:
        """Whether every object of the image has an outline (an image without objects is all
        background).
        """
        return record.id in self.shapes

    def mask_size(self, record: Record) -> tuple[int, int] | None:
        """(height, width) of the image as the JSON states it; None where it does not."""
        shape = self.shapes.get(record.id)
        return shape.size if shape else None

    def mask_source(self, record: Record) -> bytes:
        """The outlines that the mask is painted from; empty without one."""
        shape = self.shapes.get(record.id)
        return repr(shape).encode() if shape else b""

    def read_mask(self, record: Record) -> npt.NDArray[np.uint8]:
        """Label map ``uint8 [H,W]``: annotations painted in file order, later ones on top; crowds
        as ``config`` says.

        Raises:
            DataError: an object of the image has no outline, one that cannot be drawn, the image
            cannot be read, or it has another size than the JSON says.
        """
        if record.id not in self.shapes:
            raise DataError(
                f"image {record.id!r} has objects without an outline",
                "a segmentation for every annotation",
            )
        shape, (height, width) = self.shapes[record.id], image_size(record.image)
        if shape.size is not None and shape.size != (height, width):
            stated = "x".join(map(str, reversed(shape.size)))
            raise DataError(
                f"{record.image} has {width}x{height} pixels, its JSON says {stated}",
                SAME_SIZE,
                "correct width, height and outlines in the JSON, or bring the image that they are"
                " of",
            )
        try:
            return shape.draw(height, width)
        except ValueError as error:
            raise DataError(
                f"the outlines of image {record.id!r} cannot be drawn: {error}",
                "COCO polygons or run lengths",
            ) from error


def recognises(root: Path) -> bool:
    """Whether ``root`` has ``annotations/*.json``, or instances JSON in itself or in its
    folders.
    """
    return bool(_sources(root))


def read(root: Path, problems: Problems, config: DataConfig) -> CocoDataset:
    """Read every ``annotations/instances_*.json``; without such names every
    ``annotations/*.json``; without that folder every instances JSON in ``root``, else in the
    folders of ``root``.

    Each file is a list called after it (``instances_train2014.json``: ``train2014``), or after its
    folder (``train/_annotations.coco.json``: ``train``). See ``CocoImages`` for where images are
    looked for, ``unite`` for the classes. Tags are the categories of the annotations, of crowds too
    with ``crowd_tags``.

    An annotation with ``"ignore": 1`` (as ``wsss-trainer convert`` writes the borders of VOC) is
    255 and no tag.

    Args:
        problems: collects what is wrong instead of raising it; the entries concerned are left out.
        config: how to read it. Where ``tags_from`` is the masks, the tags are those of the
        annotations still.

    Raises:
        DataError: damaged JSON, files that disagree about the categories, unknown categories,
        images not found.
    """
    if config.labels_from in ("xml", "csv"):
        raise DataError(
            f"{root} is COCO: tags are in its JSON, not in {config.labels_from}",
            "--labels-from masks or auto",
        )
    sources = _sources(root)
    classes, tables = unite(_tables(sources, problems), problems)
    reader = _Reader(root, config, problems, classes)
    for table in tables:
        reader.add(table)
    records, shapes = reader.records, reader.shapes
    if not records:
        names = some(path.relative_to(root) for path in sources)
        raise DataError(
            f"{root} describes no image that is there ({names})",
            "COCO instances JSON and its images",
        )
    if len(shapes) < len(records):
        reader.notes.append(
            f"{len(records) - len(shapes)} images have objects without outline and so no mask"
        )
    return CocoDataset(
        root=root,
        format="coco",
        classes=classes.names,
        mask_values=tuple(range(1, len(classes.names) + 1)),
        records=records,
        lists={**reader.lists, "all": tuple(records)},
        tags_from=FROM_MASKS if config.labels_from == "masks" else TAGS[config.crowd_tags],
        notes=(*classes.notes, *_unread(root, sources), *reader.notes, *reader.images.notes),
        masks_from=f"annotations painted in file order, {CROWDS[config.crowd]}" if shapes else "",
        config=config,
        shapes=shapes,
        empty=reader.empty,
    )


def _sources(root: Path) -> dict[Path, str]:
    """JSON files and the names of their lists."""
    inside = _annotation_files(root)
    if inside:
        prefixed = [path for path in inside if path.name.lower().startswith("instances_")]
        chosen = prefixed or [path for path in inside if is_instances(path)] or inside
        return {path: path.stem[len("instances_") * (path in prefixed) :] for path in chosen}
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


def _unread(root: Path, sources: dict[Path, str]) -> list[str]:
    others = [path.name for path in _annotation_files(root) if path not in sources]
    return [f"{len(others)} other JSON files are not read: {some(others)}"] if others else []


def _tables(sources: dict[Path, str], problems: Problems) -> list[CocoTable]:
    """The files that can be read.

    Raises:
        DataError: none of them can.
    """
    tables, failed = [], []
    for path, name in sources.items():
        try:
            tables.append(read_table(path, name, problems))
        except DataError as error:
            failed.append(error)
    if not tables:
        raise failed[0]
    for failure in failed:
        complain(failure, problems)
    return tables


class _Reader:
    """What the files have said so far."""

    def __init__(
        self, root: Path, config: DataConfig, problems: Problems, classes: ClassTable
    ) -> None:
        self.root, self.config, self.problems, self.classes = root, config, problems, classes
        self.images = CocoImages(root)
        self.records: dict[str, Record] = {}
        self.shapes: dict[str, Shape] = {}
        self.lists: dict[str, tuple[str, ...]] = {}
        self.empty: dict[str, int] = {}
        self.notes: list[str] = []

    def add(self, table: CocoTable) -> None:
        """Add the images of one file."""
        name = table.name
        wanted = [e for e in table.entries if e.notes or self.config.keep_empty]
        images, errors = self.images.locate(table.path, name, [e.file_name for e in wanted])
        for error in errors:
            complain(error, self.problems)
        labels = self.classes.labels_of(table)
        ids = [
            self._add(table, entry, images[entry.file_name], labels)
            for entry in wanted
            if entry.file_name in images
        ]
        self.lists[name] = tuple(dict.fromkeys((*self.lists.get(name, ()), *ids)))
        self.empty[name] = sum(not entry.notes for entry in table.entries)
        self.notes += [*table.remarks, *self._omissions(table)]

    def _omissions(self, table: CocoTable) -> Iterator[str]:
        """What the knobs leave out."""
        config, name = self.config, table.name
        if self.empty[name]:
            done = (
                "have no tag"
                if config.keep_empty
                else "are left out (--set data.keep_empty=on keeps them)"
            )
            yield (
                f"{self.empty[name]} of {len(table.entries)} images of {name} have no annotation"
                f" and {done}"
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
        config, records = self.config, self.records
        record_id = self._free_id(record_name(self.root, entry.file_name, image), table.name, image)
        tagging = ("object", "crowd") if config.crowd_tags else ("object",)
        tagged = {labels[note.category] for note in entry.notes if note.kind in tagging}
        tags = tuple(sorted(label - 1 for label in tagged if label not in (None, 0, IGNORE)))
        if record_id in records and records[record_id].tags != tags:
            found = f"{table.path} and another file disagree about {entry.file_name}"
            complain(DataError(found, "the same annotations"), self.problems)
        records.setdefault(record_id, Record(record_id, image, tags))
        values: list[int | None] = []
        for note in entry.notes:
            value = labels[note.category]
            if note.kind == "void" or (note.kind == "crowd" and config.crowd == "ignore"):
                value = IGNORE
            elif note.kind == "crowd" and config.crowd == "drop":
                value = None
            values.append(None if value == 0 and not note.outlined else value)
        pairs = zip(entry.notes, values, strict=True)
        if all(note.outlined or value is None for note, value in pairs):
            shape = Shape(entry.size, entry.outlines, tuple(values), table.relative)
            self.shapes.setdefault(record_id, shape)
        return record_id

    def _free_id(self, plain: str, name: str, image: Path) -> str:
        """The plain id; with the list's name before it, and a number, where another image has it
        already.
        """
        named = f"{name}__{plain}"
        for each in chain((plain, named), (f"{named}__{n}" for n in count(2))):
            if each not in self.records or self.records[each].image == image:
                return each
        raise AssertionError("count() does not end")

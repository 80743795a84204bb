"""One COCO instances JSON, with every value checked."""

from __future__ import annotations

import json
import math
import mmap
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trainer.data.coco.fields import Key, flag_of, key_of, keys_of, printable, side_of
from trainer.data.coco.outlines import Piece, Size, compress, is_relative, pieces_of
from trainer.data.names import folded, is_one_line
from trainer.data.remarks import Remarks
from trainer.data.tables.groups import group_field
from trainer.data.tables.reading import cell_of
from trainer.errors import DataError, some

Kind = Literal["object", "crowd", "void"]
SECTIONS = ("images", "annotations", "categories")
ABSENT, PARTIAL = "neg_category_ids", "not_exhaustive_category_ids"
CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}


class Category(NamedTuple):
    """Name of a category, and of its group, the ``supercategory``, or ""."""

    name: str
    group: str


class Note(NamedTuple):
    """An annotation: its category and kind, and whether it has an outline."""

    category: Key
    kind: Kind
    outlined: bool


@dataclass(frozen=True)
class Entry:
    """One image of the JSON.

    Attributes:
        file_name: as written there.
        size: height and width as written there, or None.
        notes: its annotations in file order.
        outlines: their outlines, as in ``Shape.outlines``.
        absent: categories that were looked for and not found, as LVIS lists them; None where nobody
            says which were looked for.
        partial: categories of which perhaps not all objects are annotated.
        group: what the image belongs to, or "".
    """

    file_name: str
    size: Size | None
    notes: tuple[Note, ...] = ()
    outlines: bytes = b""
    absent: frozenset[Key] | None = None
    partial: frozenset[Key] = frozenset()
    group: str = ""


@dataclass(frozen=True)
class CocoTable:
    """The content of one file.

    Attributes:
        path: the file.
        name: of its list.
        categories: by id, in ascending order of the ids.
        entries: the images in file order.
        relative: whether its polygons are in fractions of width and height.
        remarks: where it is read otherwise than written, in words.
    """

    path: Path
    name: str
    categories: dict[Key, Category]
    entries: tuple[Entry, ...]
    relative: bool
    remarks: tuple[str, ...]

    @cached_property
    def used(self) -> frozenset[str]:
        """Folded names of the categories that some annotation has."""
        keys = {note.category for entry in self.entries for note in entry.notes}
        return frozenset(folded(self.categories[key].name) for key in keys)


def is_instances(path: Path) -> bool:
    """Whether a file seems to have the three sections; it is not parsed."""
    try:
        # Searched and not parsed: COCO's own JSON has hundreds of megabytes.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return all(text.find(f'"{section}"'.encode()) >= 0 for section in SECTIONS)
    except (OSError, ValueError):
        return False


def read_table(path: Path, name: str, group: str, remarks: Remarks) -> CocoTable:
    """Read one file.

    If every annotation has ``"iscrowd": 1``, as CVAT writes brush masks, they are objects.

    Args:
        path: the file.
        name: of the list.
        group: ``data.group``, the field of the images that names their groups.
        remarks: gets damaged entries, which are left out.

    Raises:
        DataError: no instances JSON.
    """
    sections = _load(path)
    categories = _categories(sections["categories"], path)
    parser = _Parser(path, categories, group_field(sections["images"], group, path, remarks))
    parser.read_images(sections["images"])
    parser.read_annotations(sections["annotations"])
    parser.complain(remarks)
    texts = []
    relative = is_relative(
        ring
        for outlines in parser.outlines.values()
        for pieces in outlines
        for ring in pieces
        if isinstance(ring, list)
    )
    if relative:
        texts.append(
            f"polygons of {name} are in fractions of width and height (all coordinates lie within 0"
            " and 1): they are scaled to pixels"
        )
    kinds = {note.kind for notes in parser.notes.values() for note in notes} - {"void"}
    if kinds == {"crowd"}:
        parser.notes = {
            key: [note._replace(kind="object") if note.kind == "crowd" else note for note in notes]
            for key, notes in parser.notes.items()
        }
        texts.append(
            f"every annotation of {name} is marked as a crowd (iscrowd 1), as some tools write all"
            " of theirs: they are objects"
        )
    entries = tuple(
        replace(image, notes=tuple(parser.notes[key]), outlines=compress(parser.outlines[key]))
        for key, image in parser.images.items()
    )
    return CocoTable(path, name, categories, entries, relative, tuple(texts))


def _load(path: Path) -> dict[str, list[Any]]:
    """The three sections."""
    try:
        # pandas writes NaN where there is no value.
        table = json.loads(path.read_bytes(), parse_constant=CONSTANTS.get)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}", "COCO instances JSON") from error
    absent = [key for key in SECTIONS if not isinstance(table, dict) or key not in table]
    if absent:
        raise DataError(
            f"{path} has no {some(absent)}", "COCO instances JSON: images, annotations, categories"
        )
    other = [key for key in SECTIONS if not isinstance(table[key], list)]
    if other:
        raise DataError(f"{path}: {some(other)} is no list", "COCO instances JSON")
    if any(isinstance(note, dict) and "segments_info" in note for note in table["annotations"][:1]):
        raise DataError(f"{path} is panoptic COCO", "instances JSON, with one category a region")
    return {key: table[key] for key in SECTIONS}


def _categories(entries: list[Any], path: Path) -> dict[Key, Category]:
    categories: dict[Key, Category] = {}
    for n, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        key, name, group = key_of(fields.get("id")), fields.get("name"), fields.get("supercategory")
        text = " ".join(printable(str(name)).split())
        is_name = isinstance(name, (str, int, float)) and not isinstance(name, bool)
        if key is None or not folded(text) or not is_one_line(text) or not is_name:
            raise DataError(
                f"{path} has a damaged category: categories[{n}] is {_short(entry)}",
                'entries {"id": 1, "name": "person"}',
            )
        category = Category(text, printable(group).strip() if isinstance(group, str) else "")
        first = categories.setdefault(key, category)
        if folded(first.name) != folded(text):
            raise DataError(
                f"{path} gives two categories the same id: {first.name!r} and {text!r} have {key}",
                "one id a category",
            )
    order = sorted(categories, key=lambda key: (isinstance(key, str), key))
    return {key: categories[key] for key in order}


def _short(value: object) -> str:
    """A value for a message."""
    text = "null" if value is None else printable(repr(value))
    return text if len(text) <= 60 else f"{text[:60]}..."


class _Parser:
    """Images and annotations of one file, and what is wrong with them."""

    def __init__(self, path: Path, categories: dict[Key, Category], group: str | None) -> None:
        self.path, self.categories, self.group = path, categories, group
        self.images: dict[Key, Entry] = {}
        self.notes: dict[Key, list[Note]] = {}
        self.outlines: dict[Key, list[list[Piece]]] = {}
        self.damaged: list[str] = []
        self.damaged_outlines: list[str] = []
        self.left_out: set[Key] = set()
        self.strange: dict[Key, int] = defaultdict(int)
        self.stray: dict[Key, int] = defaultdict(int)

    def read_images(self, entries: list[Any]) -> None:
        """Ids, file names and sizes."""
        for n, entry in enumerate(entries):
            where = f"images[{n}]"
            if not isinstance(entry, dict):
                self.damaged.append(f"{where} is {_short(entry)}")
                continue
            key = key_of(entry.get("id"))
            # LVIS names images by their address alone.
            file_name = entry.get("file_name", entry.get("coco_url"))
            sides = {field: side_of(entry.get(field)) for field in ("height", "width")}
            wrong = next((field for field, side in sides.items() if side is None), None)
            if key is None:
                wrong = "id"
            elif not isinstance(file_name, str) or not file_name.strip():
                wrong = "file_name"
            absent, partial = keys_of(entry.get(ABSENT)), keys_of(entry.get(PARTIAL))
            if absent is None or partial is None:
                wrong = ABSENT if absent is None else PARTIAL
            if wrong is None and key is not None and key not in self.images:
                height, width = (side or 0 for side in sides.values())
                self.images[key] = Entry(
                    printable(str(file_name)),
                    (height, width) if height and width else None,
                    absent=absent if ABSENT in entry else None,
                    partial=partial or frozenset(),
                    group=cell_of(entry.get(self.group)) if self.group else "",
                )
                self.notes[key], self.outlines[key] = [], []
            elif wrong is None:
                self.damaged.append(f"{where} has the id {key} of another image")
            else:
                self.damaged.append(f"{where} has the {wrong} {_short(entry.get(wrong))}")
                self.left_out |= {key} if key is not None else set()

    def read_annotations(self, entries: list[Any]) -> None:
        """Categories, kinds and outlines."""
        for n, entry in enumerate(entries):
            where = f"annotations[{n}]"
            if not isinstance(entry, dict):
                self.damaged.append(f"{where} is {_short(entry)}")
                continue
            image, category = key_of(entry.get("image_id")), key_of(entry.get("category_id"))
            crowd, void = flag_of(entry.get("iscrowd")), flag_of(entry.get("ignore"))
            checks = {
                "image_id": image,
                "category_id": category,
                "iscrowd": crowd,
                "ignore": void,
            }
            wrong = next((field for field, value in checks.items() if value is None), None)
            if image is None or category is None or wrong is not None:
                self.damaged.append(f"{where} has the {wrong} {_short(entry.get(str(wrong)))}")
            elif category not in self.categories:
                self.strange[category] += 1
            elif image in self.images:
                pieces = self._pieces(entry.get("segmentation"), image, where)
                kind: Kind = "void" if void else "crowd" if crowd else "object"
                self.notes[image].append(Note(category, kind, bool(pieces)))
                self.outlines[image].append(pieces)
            elif image not in self.left_out:
                self.stray[image] += 1

    def _pieces(self, segmentation: object, image: Key, where: str) -> list[Piece]:
        """Outline of an annotation; empty if it is damaged."""
        entry = self.images[image]
        try:
            return pieces_of(segmentation, entry.size)
        except ValueError as error:
            self.damaged_outlines.append(f"{where} of {entry.file_name}: {error}")
            return []

    def complain(self, remarks: Remarks) -> None:
        """One problem for each kind of damage."""
        if self.damaged:
            remarks.problem(
                f"{self.path} has damaged entries ({len(self.damaged)}): {some(self.damaged, 3)}",
                "COCO instances JSON: id, file_name, height and width of images; image_id,"
                " category_id and iscrowd of annotations",
                "correct them, or remove them from the JSON",
            )
        if self.damaged_outlines:
            remarks.problem(
                f"{self.path} has outlines that cannot be drawn ({len(self.damaged_outlines)}):"
                f" {some(self.damaged_outlines, 3)}",
                "polygons [[x, y, x, y, ...]] in pixels, or run lengths of the image's size",
                "correct their segmentation, or remove them from the JSON",
            )
        if self.strange or self.stray:
            remarks.problem(
                f"{self.path} has annotations of unknown categories"
                f" ({some(sorted(map(str, self.strange))) or 'none'}) or unknown images"
                f" ({sum(self.stray.values())})",
                f"every category_id among {some(self.categories, 20)}, every image_id among the"
                " images",
            )

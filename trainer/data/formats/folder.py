"""Images anywhere below a folder, and their tags in a table."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.classes import ClassTable
from trainer.data.dataset import Dataset, Record
from trainer.data.formats import class_folders
from trainer.data.formats.base import Format
from trainer.data.formats.writing import (
    GROUP,
    Writer,
    csv_table,
    is_grouped,
    lost_objects,
    text_lines,
)
from trainer.data.image_files import UNREAD, ImageNames, Walk, entries, image_id, walk
from trainer.data.knobs import DataConfig
from trainer.data.mask_files import match_masks
from trainer.data.remarks import Remarks
from trainer.data.tables.cells import OPEN
from trainer.data.tables.classes import class_lines, class_table
from trainer.data.tables.columns import Columns, RowTags, find_columns, read_lists, read_tags
from trainer.data.tables.lists import LISTS_FILE
from trainer.data.tables.reading import TABLE_SUFFIXES, Table, read_table
from trainer.errors import DataError, some

TABLES = ("labels.csv", "metadata.csv", "metadata.jsonl")


@dataclass
class _Row:
    """What the table says about one image."""

    tags: RowTags
    lists: list[str]
    group: str

    def add(self, other: _Row, one_row: bool) -> bool:
        """Add another row of the same image; whether the two agree.

        Args:
            other: the row.
            one_row: each row says everything, as where every class has a column.
        """
        same = (self.lists, self.group) == (other.lists, other.group)
        agree = same and not (one_row and self.tags != other.tags)
        # With one row a tag, the rows of an image add up.
        self.tags.present |= other.tags.present
        self.tags.unknown = (self.tags.unknown | other.tags.unknown) - self.tags.present
        self.tags.open |= other.tags.open
        self.tags.closed |= other.tags.closed
        return agree

    def record(self, key: str, image: Path, mask: Path | None, classes: ClassTable) -> Record:
        """The record of the image."""
        present = classes.positions(self.tags.present)
        unknown = classes.positions(self.tags.unknown)
        if self.tags.open and not self.tags.closed:
            unknown = classes.complement(present)
        return Record(key, image, present, mask, unknown, self.group)


def recognises(root: Path) -> bool:
    """Whether ``root`` has ``labels.csv``; or ``metadata.csv`` or ``metadata.jsonl``, as Hugging
    Face writes them, and its folders are no classes.
    """
    table = table_file(root)
    return table is not None and (
        table.name.lower() == TABLES[0] or not class_folders.recognises(root)
    )


def table_file(root: Path) -> Path | None:
    """The table of tags in ``root``."""
    # Reversed, so that the first of two spellings of one name wins.
    files = {path.name.lower(): path for path in reversed(entries(root))}
    return next((files[name] for name in TABLES if name in files and files[name].is_file()), None)


def read(root: Path, config: DataConfig, remarks: Remarks) -> Dataset:
    """Read a folder of images with a table of tags.

    The table has a column of image names and the tags in one of three shapes: a column ``tag`` with
    one row a tag, the same column with ``tag1;tag2``, or one 0/1 column a class. ``?`` means
    unknown: alone every class that is not named, before a tag that class, in a 0/1 column its
    class. A column ``split`` makes lists, a column ``group`` groups. Ids are relative paths without
    suffix, ``/`` written as ``__``.

    ``masks/`` may hold one mask an image, with the values 1..K in the order of ``classes.txt``,
    else of the sorted names. Names that are numbers are the values themselves.

    Raises:
        DataError: no image, or columns that do not fit.
    """
    path = table_file(root)
    assert path is not None
    mask_folders = [p for p in entries(root) if p.name.lower() == "masks" and p.is_dir()]
    files = _walk(root, mask_folders, path)
    table = read_table(path)
    remarks.notes += table.notes
    columns = find_columns(table, config, remarks)
    class_names = class_lines(root)
    tags = read_tags(table, columns, class_names, config, remarks)
    rows, counts = _read_rows(table, columns, files, tags, remarks)
    classes = class_table(path, counts, class_names, config, remarks)
    images = _by_id(root, files.images, rows, remarks)
    masks = match_masks(mask_folders, root, images, remarks)
    images = {key: image for key, image in sorted(images.items()) if image in rows}
    records = {
        key: rows[image].record(key, image, masks.get(key), classes)
        for key, image in images.items()
    }
    _note(root, files, rows, table, columns, remarks)
    if masks and not class_names:
        _note_values(classes, remarks)
    return Dataset(
        root=root,
        format="folder",
        classes=classes.names,
        mask_values=classes.values,
        records=records,
        lists=_lists({key: rows[image] for key, image in images.items()}),
        tags_from=path.name,
        masks_from="masks" if any(record.mask for record in records.values()) else "",
    )


def _walk(root: Path, mask_folders: list[Path], table: Path) -> Walk:
    files = walk(root, skip=mask_folders)
    if not files.images:
        raise DataError(
            f"{root} holds {table.name} but no image" + "".join(f"; {n}" for n in files.notes()),
            "image files anywhere below it",
        )
    return files


def _lists(rows: dict[str, _Row]) -> dict[str, tuple[str, ...]]:
    lists = defaultdict(list)
    for key, row in rows.items():
        for name in row.lists:
            lists[name].append(key)
    return {name: tuple(ids) for name, ids in sorted(lists.items())}


def _by_id(
    root: Path, images: list[Path], rows: dict[Path, _Row], remarks: Remarks
) -> dict[str, Path]:
    """Images by id. Where several have the same id, the one that the table names."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        groups[image_id(path, root)].append(path)
    by_id, twice = {}, []
    for key, paths in groups.items():
        in_table = [path for path in paths if path in rows]
        if len(in_table) > 1:
            twice.append(" and ".join(str(path.relative_to(root)) for path in in_table))
        by_id[key] = (in_table or paths)[0]
    if twice:
        remarks.problem(
            f"{root} has {len(twice)} pairs of images with the same id: {some(twice)}",
            "different paths without suffix: outputs are called after them",
            "rename one of each pair",
        )
    return by_id


def _read_rows(
    table: Table,
    columns: Columns,
    files: Walk,
    all_tags: list[RowTags],
    remarks: Remarks,
) -> tuple[dict[Path, _Row], Counter[str]]:
    """What the table says about each image, and how often it names each class."""
    names = table.cells(columns.image)
    row_lists, groups = read_lists(table, columns), table.cells(columns.group)
    finder = ImageNames(files.root, files.images, names)
    rows: dict[Path, _Row] = {}
    failures: dict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter({table.columns[c]: 0 for c in columns.classes})
    for name, tags, lists, group in zip(names, all_tags, row_lists, groups, strict=True):
        counts.update(tags.present)
        # A class that is unknown everywhere is one all the same: ``check`` tells that it is empty.
        counts.update(dict.fromkeys(tags.unknown, 0))
        matches = finder.find(name)
        if len(matches) != 1:
            failures["ambiguous" if matches else "missing"].append(name)
            continue
        row = _Row(tags, lists, group)
        old = rows.setdefault(matches[0], row)
        if old is not row and not old.add(row, columns.tag is None):
            failures["clashing"].append(name)
    # Where no row can be used, the first of these problems is the cause of all that follows.
    _complain(table.path, files, failures, remarks if rows else Remarks())
    return rows, counts


def _complain(table: Path, files: Walk, failures: dict[str, list[str]], remarks: Remarks) -> None:
    """One problem for each kind of row that cannot be used."""
    others = ImageNames(files.root, files.left_out.get(UNREAD, []), failures["missing"])
    blank = [name for name in failures["missing"] if not name]
    named = [name for name in failures["missing"] if name]
    # A name without a suffix, as DICOM has them, leads to a file that is there as well.
    unread = {n: 1 for n in named if others.find(n) or os.path.isfile(files.root / n)}
    missing = [name for name in named if name not in unread]
    for names, words, correct, hint in (
        (blank, "has rows without an image", "a name in every row", "fill or delete them"),
        (
            [*unread],
            "names files of kinds that are not read",
            "JPEG, PNG, BMP, WebP or TIFF",
            "save them as JPEG or PNG, or take their rows out",
        ),
        (
            missing,
            "names images that are not there",
            "paths relative to the folder",
            "correct them or bring the images",
        ),
        (
            failures["ambiguous"],
            "uses names that several images have",
            "paths such as folder/name.jpg",
            "write the folder and the suffix too",
        ),
        (
            failures["clashing"],
            "contradicts itself about",
            "the same split, group and 0/1 columns in every row of an image",
            "keep one row each",
        ),
    ):
        if names:
            once = list(dict.fromkeys(names))
            count = len(names) if names is blank else len(once)
            remarks.problem(f"{table} {words} ({count}): {some(once)}", correct, hint)


def _note(
    root: Path,
    files: Walk,
    rows: dict[Path, _Row],
    table: Table,
    columns: Columns,
    remarks: Remarks,
) -> None:
    remarks.notes += files.notes()
    bare = [path.relative_to(root).as_posix() for path in files.images if path not in rows]
    if bare:
        remarks.note(
            f"{len(bare)} images have no row in {table.path.name} and are left out: {some(bare)}"
        )
    others = [
        path.name
        for path in entries(root)
        if path.suffix.lower() in TABLE_SUFFIXES and path != table.path
    ]
    others = [name for name in others if name.lower() != LISTS_FILE and not name.startswith(".")]
    if others:
        remarks.note(f"{len(others)} other tables are not read: {some(others)}")
    if columns.unread:
        names = some(map(repr, columns.unread))
        remarks.note(f"{table.path.name} has columns that are not read: {names}")


def _note_values(classes: ClassTable, remarks: Remarks) -> None:
    pairs = zip(classes.values, classes.names, strict=True)
    remarks.note(
        "mask values are taken in the order of the sorted names"
        f" ({some((f'{value}={name}' for value, name in pairs), 8)}); classes.txt fixes another"
        " order"
    )


class CsvWriter(Writer):
    """Images, ``labels.csv``, ``classes.txt``, ``masks/``."""

    name = "csv"

    def image(self, record: Record) -> Path:
        """At the top, so that ids stay."""
        return Path(f"{record.id}{record.image.suffix}")

    def mask(self, record: Record) -> Path:
        """In ``masks``."""
        return Path("masks", f"{record.id}.png")

    def check(self) -> None:
        """See ``Writer``; the tags of an image stand in one cell with ``;`` between them."""
        super().check()
        names = self.dataset.classes
        bad = [
            name
            for name in names
            if set(name) & set(";|\n\r") or name != name.strip() or name.startswith(OPEN)
        ]
        if bad:
            raise DataError(
                f"the class name {bad[0]!r} cannot stand in a cell of labels.csv",
                f"names without ; and |, and without {OPEN} before them",
            )

    def tables(self, descriptions: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """Classes and tags."""
        data = self.dataset
        lists = {n: set(ids) for n, ids in self.lists().items() if n not in ("all", "unlisted")}
        extra = [GROUP] if is_grouped(data.records.values()) else []
        rows = [
            [
                str(self.image(record)),
                ";".join(self._tags(record)),
                ";".join(name for name, ids in lists.items() if record.id in ids),
                *([record.group] if extra else []),
            ]
            for record in data.records.values()
        ]
        header = ["image", "tags", "split", *extra]
        yield Path("classes.txt"), text_lines(data.classes)
        yield Path("labels.csv"), csv_table(header, rows)

    def _tags(self, record: Record) -> list[str]:
        names = self.dataset.classes
        tags = [names[k] for k in record.tags]
        if len(record.tags) + len(record.unknown) == len(names) and record.unknown:
            return [*tags, OPEN]
        return [*tags, *(f"{OPEN}{names[k]}" for k in record.unknown)]

    def lost(self, descriptions: dict[str, Any]) -> list[str]:
        """The order of lists."""
        return [*lost_objects(self.dataset), "the order of the images in each list"]


FORMAT = Format(
    rank=30,
    words="a folder with a table",
    layout="images with a labels.csv",
    tags_from=("csv", "masks"),
    recognises=recognises,
    read=read,
    writer=CsvWriter,
)

"""The columns of a table: images, tags, lists, groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from trainer.data.knobs import DataConfig
from trainer.data.names import is_list_name
from trainer.data.remarks import Remarks
from trainer.data.tables.cells import OPEN, is_no_tag, lists_of, tags_of
from trainer.data.tables.groups import group_column
from trainer.data.tables.reading import (
    IMAGE_COLUMNS,
    NO,
    UNKNOWN,
    YES,
    Table,
    column_key,
    flags,
    is_answer,
    is_flag,
    word_of,
)
from trainer.errors import DataError, some

TAG_COLUMNS = ("tag", "tags", "label", "labels", "class", "classes", "category", "categories")
SPLIT_COLUMNS = ("split", "subset", "set", "fold", "phase", "partition", "usage")
PRESENCE = (
    *("present", "ispresent", "presence", "exists", "positive", "value", "confidence", "score"),
    *("probability", "prob"),
)
"""Columns that say whether the tag of a row is there, as ``column_key`` returns their names."""
SHAPES = 'image,tag (one row a tag), image,"tag1;tag2", or image and one 0/1 column a class'


@dataclass(frozen=True)
class Columns:
    """Positions of the columns of a table.

    Attributes:
        image: the names of images.
        tag: the tags, or None.
        split: the lists: one column of their names, 0/1 columns called like them, or none.
        group: the groups, or None.
        classes: the 0/1 columns, where there is no column of tags.
        unread: names of the other columns.
    """

    image: int
    tag: int | None
    split: tuple[int, ...]
    group: int | None
    classes: tuple[int, ...]
    unread: tuple[str, ...]


@dataclass
class RowTags:
    """What a row says about the classes of its image.

    Attributes:
        present: names of classes that it shows.
        unknown: names of classes that it may show.
        open: whether the classes that are not named are unknown instead of absent.
        closed: whether they are absent for certain, because a tag says that no class is there.
    """

    present: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    open: bool = False
    closed: bool = False


def find_columns(table: Table, config: DataConfig, remarks: Remarks) -> Columns:
    """The columns, by their names and their cells.

    Args:
        table: the table.
        config: says which column holds the groups, and which 0/1 columns are no classes.
        remarks: gets a note where a column is taken for the groups that is not called so.

    Raises:
        DataError: no column of images, none of tags, not the one that ``data.group`` names, or tags
            with a column that says of some that they are absent.
    """
    image, tag = table.find(IMAGE_COLUMNS), table.find(TAG_COLUMNS)
    if image is None:
        raise DataError(
            f"{table.headings()}, none of them for the image",
            f"one of {some(IMAGE_COLUMNS, 20)}; {SHAPES}",
        )
    free = [c for c in range(len(table.columns)) if c not in (image, tag)]
    split = _split_columns(table, free, tag is not None)
    free = [c for c in free if c not in split]
    grouping = find_group(table, free, config, remarks)
    others = [c for c in free if c != grouping]
    if tag is not None:
        _check_presence(table, image, tag, others)
        return Columns(image, tag, split, grouping, (), tuple(table.columns[c] for c in others))
    candidates = [c for c in others if any(table.cells(c)) or not table.rows]
    candidates = [c for c in candidates if not _names_no_class(table, c)]
    answers = [c for c in candidates if not table.rows or _may_be_class(table.cells(c))]
    _check_answers(table, [c for c in candidates if c not in answers])
    if not answers:
        raise DataError(f"{table.headings()}, none of them for tags", SHAPES)
    classes = tuple(c for c in answers if not config.is_negative(table.columns[c]))
    unread = tuple(table.columns[c] for c in others if c not in classes)
    return Columns(image, None, split, grouping, classes, unread)


def _names_no_class(table: Table, column: int) -> bool:
    """Whether a column holds numbers of folds, or other names or numbers of the images."""
    name = column_key(table.columns[column])
    if name in map(column_key, IMAGE_COLUMNS):
        return not _is_0_1(table, column)
    return name in SPLIT_COLUMNS


def _check_answers(table: Table, strange: list[int]) -> None:
    if strange:
        names = some(repr(table.columns[c]) for c in strange)
        cell = next(filter(None, table.cells(strange[0])))
        raise DataError(
            f"{table.headings()}; column {names} holds {cell!r}",
            SHAPES,
            f"call the column of tags 'tag', or remove {names}",
        )


def _check_presence(table: Table, image: int, tag: int, columns: Iterable[int]) -> None:
    """Refuse rows of tags that are absent, as in a 0/1 table that was turned into rows.

    Raises:
        DataError: a column called like ``present``, or of 0 and 1 where every image has a row for
            every tag, holds a 0 or a probability below a half.
    """
    pairs = set(zip(table.cells(image), table.cells(tag), strict=True))
    images, tags = (set(side) for side in zip(*pairs, strict=True)) if pairs else (set(), set())
    is_product = len(pairs) == len(table.rows) == len(images) * len(tags) and len(tags) > 1
    for column in columns:
        name = table.columns[column]
        if column_key(name) not in PRESENCE and not (is_product and _is_0_1(table, column)):
            continue
        absent = [cell for cell in table.cells(column) if _is_no(cell)]
        if absent:
            raise DataError(
                f"{table.headings()}; {len(absent)} rows hold a tag and {absent[0]!r} in column"
                f" {name!r}",
                "rows only of tags that an image shows",
                f"take out the rows of absent tags; where {name!r} means something else, rename"
                " or remove this column",
            )


def _is_no(cell: str) -> bool:
    word = word_of(cell)
    try:
        return word in NO or float(word.replace(",", ".")) < 0.5
    except ValueError:
        return False


def find_group(
    table: Table, columns: Iterable[int], config: DataConfig, remarks: Remarks
) -> int | None:
    """The one of ``columns`` that names groups; None without one.

    Raises:
        DataError: not the one that ``data.group`` names.
    """
    names = [table.columns[c] for c in columns if config.group != "auto" or not _is_0_1(table, c)]
    place = group_column(names, config.group, table.path.name, remarks)
    return None if place is None else table.columns.index(names[place])


def _is_0_1(table: Table, column: int) -> bool:
    """Whether a column holds answers and nothing else, so that "tile" is a class there."""
    cells = [cell for cell in table.cells(column) if cell]
    return bool(cells) and all(is_flag(cell) or cell.lower() in UNKNOWN for cell in cells)


def _may_be_class(cells: Iterable[str]) -> bool:
    """Whether a cell is an answer, or all of them say that it is unknown."""
    words = [cell for cell in cells if cell]
    return any(map(is_flag, words)) or all(word.lower() in UNKNOWN for word in words)


def _split_columns(table: Table, free: list[int], has_tags: bool) -> tuple[int, ...]:
    """The column called ``split``; else 0/1 columns called like lists (``is_valid``, or ``train``
    beside ``val``); else a column with a usual name and some cell that names a list; else the first
    whose cells all do.
    """
    split = table.find(("split",))
    if split in free:
        return (split,)
    members = [c for c in free if is_list_name(_member_list(table, c)) and _is_0_1(table, c)]
    marked = [c for c in members if column_key(table.columns[c]).startswith("is")]
    # Without a column of tags, a class may be called train, but not one train and one val.
    if marked or len(members) > 1 or (members and has_tags):
        return tuple(marked or members)
    # Columns with a usual name first, each group in the order of the table.
    for column in sorted(free, key=lambda c: table.columns[c].lower() not in SPLIT_COLUMNS):
        names = (name for cell in table.cells(column) for name in lists_of(cell))
        are_lists = map(is_list_name, names)
        # "dev" or "holdout" beside train is a list too.
        is_usual = table.columns[column].lower() in SPLIT_COLUMNS
        if any(are_lists) if is_usual else next(are_lists, False) and all(are_lists):
            return (column,)
    return ()


def _member_list(table: Table, column: int) -> str:
    """The list that a 0/1 column is called like: ``valid`` for ``is_valid``."""
    return column_key(table.columns[column]).removeprefix("is")


def read_lists(table: Table, columns: Columns) -> list[list[str]]:
    """The lists of each row."""
    if not columns.split:
        return [[] for _ in table.rows]
    names = {column: _member_list(table, column) for column in columns.split}
    if not all(is_list_name(name) and _is_0_1(table, c) for c, name in names.items()):
        return [lists_of(cell) for cell in table.cells(columns.split[0])]
    rest = []
    if not any(name.startswith("train") for name in names.values()):
        # Who says only what validates or tests trains on the rest.
        rest = ["train"]
    elif len(names) == 1:
        rest = ["val"]
    return [[names[c] for c in names if word_of(row[c]) in YES] or rest for row in table.rows]


def read_tags(
    table: Table, columns: Columns, classes: list[str], config: DataConfig, remarks: Remarks
) -> list[RowTags]:
    """The tags of each row.

    Args:
        table: the table.
        columns: its columns.
        classes: the lines of ``classes.txt``; empty without it.
        config: its ``missing`` says what classes are that nobody names.
        remarks: gets cells that cannot be read.

    Raises:
        DataError: tags that look like answers to a question.
    """
    if columns.tag is None:
        rows = flags(table, columns.classes, remarks, config.missing)
        names = [table.columns[c] for c in columns.classes]
        return [
            RowTags({names[k] for k in row.present}, {names[k] for k in row.unknown})
            for row in rows
        ]
    class_names = set(classes)
    blank = Counter(
        c for c in table.cells(columns.tag) if c and c not in class_names and is_no_tag(c)
    )
    if blank:
        counts = some(f"{word!r} {count} times" for word, count in blank.most_common())
        remarks.note(
            f"cells of column {table.columns[columns.tag]!r} that hold no tag: {counts}; a class of"
            " such a name must stand in classes.txt"
        )
    cells = tags_of(table.cells(columns.tag), class_names)
    values = {tag.removeprefix(OPEN).strip() for tags in cells for tag in tags} - {""}
    if values and not classes and all(map(is_answer, values)):
        name = table.columns[columns.tag]
        raise DataError(
            f"{table.path}: column {name!r} holds {some(sorted(values))} and nothing else",
            "names of classes, or one 0/1 column for each class with its name",
            f"call the column {name!r} what 1 means, for example 'cat'; or write names for"
            f" {some(sorted(values))}; or list these as names in classes.txt",
        )
    return [_row_tags(tags, config) for tags in cells]


def _row_tags(tags: Iterable[str], config: DataConfig) -> RowTags:
    row = RowTags(open=config.missing == "unknown")
    for tag in tags:
        name = tag.removeprefix(OPEN).strip()
        if tag == name:
            row.present.add(tag)
            # Whoever writes "background" has looked at the image.
            row.closed = row.closed or config.is_negative(name)
        elif name:
            row.unknown.add(name)
        else:
            row.open = True
    row.unknown -= row.present
    return row

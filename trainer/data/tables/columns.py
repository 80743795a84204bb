"""The columns of a table: images, tags, lists."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.names import is_background
from trainer.data.remarks import Remarks
from trainer.data.tables.cells import is_list_name, lists_of, tags_of
from trainer.data.tables.reading import IMAGE_COLUMNS, Table, flags, is_answer, is_flag
from trainer.errors import DataError, some

TAG_COLUMNS = ("tag", "tags", "label", "labels", "class", "classes", "category", "categories")
SPLIT_COLUMNS = ("split", "subset", "set", "fold", "phase", "partition")
SHAPES = 'image,tag (one row a tag), image,"tag1;tag2", or image and one 0/1 column a class'


@dataclass(frozen=True)
class Columns:
    """Positions of the columns of a table.

    Attributes:
        image: the names of images.
        tag: the tags, or None.
        split: the lists, or None.
        classes: the 0/1 columns, where there is no column of tags.
        unread: names of the other columns.
    """

    image: int
    tag: int | None
    split: int | None
    classes: tuple[int, ...]
    unread: tuple[str, ...]


def find_columns(table: Table) -> Columns:
    """The columns, by their names and their cells.

    Raises:
        DataError: no column of images, or none of tags.
    """
    image, tag = table.find(IMAGE_COLUMNS), table.find(TAG_COLUMNS)
    if image is None:
        raise DataError(
            f"{table.headings()}, none of them for the image",
            f"one of {some(IMAGE_COLUMNS, 20)}; {SHAPES}",
        )
    split = _split_column(table, {image, tag})
    others = [c for c in range(len(table.columns)) if c not in (image, tag, split)]
    if tag is not None:
        return Columns(image, tag, split, (), tuple(table.columns[c] for c in others))
    candidates = [c for c in others if any(table.cells(c)) or not table.rows]
    # Numbers of folds are no classes.
    candidates = [c for c in candidates if table.columns[c].lower() not in SPLIT_COLUMNS]
    answers = [c for c in candidates if not table.rows or any(map(is_flag, table.cells(c)))]
    strange = [
        c for c in candidates if c not in answers and table.columns[c].lower() not in IMAGE_COLUMNS
    ]
    if strange:
        names = some(repr(table.columns[c]) for c in strange)
        cell = next(filter(None, table.cells(strange[0])))
        raise DataError(
            f"{table.headings()}; column {names} holds {cell!r}",
            SHAPES,
            f"call the column of tags 'tag', or remove {names}",
        )
    if not answers:
        raise DataError(f"{table.headings()}, none of them for tags", SHAPES)
    classes = tuple(c for c in answers if not is_background(table.columns[c]))
    unread = tuple(table.columns[c] for c in others if c not in classes)
    return Columns(image, None, split, classes, unread)


def _split_column(table: Table, others: set[int | None]) -> int | None:
    """The column called ``split``, else the first whose cells are all names of lists."""
    column = table.find(("split",))
    if column is not None and column not in others:
        return column
    free = [c for c in range(len(table.columns)) if c not in others]
    # Columns with a usual name first, each group in the order of the table.
    free.sort(key=lambda c: table.columns[c].lower() not in SPLIT_COLUMNS)
    for column in free:
        cells = [cell for cell in table.cells(column) if cell]
        if cells and all(is_list_name(part) for cell in cells for part in lists_of(cell)):
            return column
    return None


def read_tags(
    table: Table, columns: Columns, classes: list[str], remarks: Remarks
) -> list[set[str] | None]:
    """The tags of each row; None where a row cannot be read, which is a problem.

    Args:
        table: the table.
        columns: its columns.
        classes: the lines of ``classes.txt``; empty without it.
        remarks: gets cells that cannot be read.

    Raises:
        DataError: tags that look like answers to a question.
    """
    if columns.tag is None:
        rows = flags(table, columns.classes, remarks)
        names = [table.columns[c] for c in columns.classes]
        return [None if row is None else {names[k] for k in row} for row in rows]
    tags = [set(of_cell) for of_cell in tags_of(table.cells(columns.tag), classes)]
    values = set().union(*tags)
    if values and not classes and all(map(is_answer, values)):
        name = table.columns[columns.tag]
        raise DataError(
            f"{table.path}: column {name!r} holds {some(sorted(values))} and nothing else",
            "names of classes, or one 0/1 column for each class with its name",
            f"call the column {name!r} what 1 means, for example 'cat'; or write names for"
            f" {some(sorted(values))}; or list these as names in classes.txt",
        )
    return list(tags)

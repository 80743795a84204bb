"""CSV tables of image names and tags."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.dataset import some
from trainer.errors import DataError

IMAGE_COLUMNS = ("image", "filename", "file", "path", "image_id", "file_name", "image_name", "id")
DELIMITERS = (",", "\t", ";")
YES, NO = ("1", "1.0", "true"), ("0", "0.0", "false", "")


@dataclass(frozen=True)
class Table:
    """A CSV file: its column names, and its rows with the line each one ends on."""

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def find(self, names: Sequence[str]) -> int | None:
        """Index of the first column called one of ``names``, whatever the case."""
        lowered = [column.lower() for column in self.columns]
        return next((lowered.index(name) for name in names if name in lowered), None)

    def found(self) -> str:
        """The columns, in words, for messages."""
        return f"{self.path} has the columns {some(map(repr, self.columns), 12)}"


def read_table(path: Path) -> Table:
    """Read a CSV file with a header; comma, tab or semicolon, UTF-8 with or without a byte order
    mark.

    Raises:
        DataError: unreadable, not UTF-8, empty, a column name twice, or a row of another length
        (with its line).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "a CSV file in UTF-8") from error
    header = text.partition("\n")[0]
    delimiter = next((d for d in DELIMITERS if d in header), ",")
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}", "a CSV file") from error
    if not rows:
        raise DataError(f"{path} is empty", "a header line and one line an image")
    columns, width = rows[0], len(rows[0])
    if len(set(columns)) < width:
        raise DataError(f"{path} repeats a column: {some(columns, 12)}", "every column once")
    for row, line in zip(rows[1:], lines[1:]):
        if len(row) != width:
            raise DataError(
                f"{path} line {line} has {len(row)} cells",
                f"{width}, as the header",
                "quote cells that hold a comma",
            )
    return Table(path, tuple(columns), rows[1:], lines[1:])


def flag(text: str) -> bool | None:
    """Whether a cell says yes or no; None if it says neither."""
    lowered = text.lower()
    return True if lowered in YES else False if lowered in NO else None


def flagged(table: Table, row: int, columns: Sequence[int]) -> tuple[int, ...]:
    """Positions in ``columns`` whose cell in ``row`` is 1.

    Raises:
        DataError: a cell that is neither 0 nor 1, with its line and column.
    """
    answers = [flag(table.rows[row][column]) for column in columns]
    if None in answers:
        column = columns[answers.index(None)]
        raise DataError(
            f"{table.path} line {table.lines[row]}, column {table.columns[column]!r}:"
            f" {table.rows[row][column]!r}; " + table.found(),
            "0 or 1 in every class column",
        )
    return tuple(k for k, answer in enumerate(answers) if answer)

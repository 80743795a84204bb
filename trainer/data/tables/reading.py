"""Tables of image names and tags: CSV as programs write it, and JSON lines."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from trainer.data.names import folded
from trainer.data.remarks import Remarks
from trainer.errors import DataError, some

IMAGE_COLUMNS = (
    *("image", "filename", "file", "path", "image_id", "file_name", "image_name", "image_path"),
    *("file_path", "img", "img_name", "img_path", "fname", "id"),
)
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".xlsx", ".xls", ".ods")
DELIMITERS = (",", "\t", ";", "|")
# Excel writes TRUE and FALSE in the language of its user.
YES = (
    *("1", "true", "t", "yes", "y", "x", "✓", "✔", "wahr", "ja", "vrai", "oui", "verdadero", "sí"),
    *("si", "verdadeiro", "sim", "vero", "sì", "waar", "истина", "да", "prawda", "tak", "doğru"),
    *("是", "真", "はい"),
)
NO = (
    *("0", "false", "f", "no", "n", "-", "falsch", "nein", "faux", "non", "falso", "não", "nao"),
    *("onwaar", "nee", "ложь", "нет", "fałsz", "nie", "yanlış", "否", "假", "いいえ"),
)
MINUS = ("-1",)
# How spreadsheets, pandas, R and SQL write a cell without a value, in small letters.
EMPTY = ("nan", "none", "null", "na", "n/a", "n.a.", "n.a", "<na>", "#n/a", "#nv", "nat")
UNKNOWN = ("?", "unknown", *EMPTY)
WHOLE = re.compile(r"([+-]?[0-9]{1,9})([.,]0*)?(e[+-]?0+)?")
# How .xlsx, a zip archive, and .xls, an OLE file, begin.
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte order marks and their encodings. That of UTF-32 begins like that of UTF-16."""


class Flags(NamedTuple):
    """What a row of 0/1 cells says: positions of the cells that are 1, and of those that are open.

    All other cells are 0.
    """

    present: tuple[int, ...]
    unknown: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        path: the file.
        columns: their names.
        rows: the cells of each row.
        lines: the line of the file on which each row ends.
        notes: what the user should know about how it was read.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    notes: tuple[str, ...] = ()

    def find(self, names: Sequence[str]) -> int | None:
        """Index of the column of the first of ``names`` that is there. Letter case does not matter,
        nor whether words are separated by ``_``, blanks, hyphens or nothing.
        """
        keys = [column_key(column) for column in self.columns]
        return next((keys.index(key) for name in names if (key := column_key(name)) in keys), None)

    def cells(self, column: int | None) -> list[str]:
        """The cells of a column; blanks for None."""
        return ["" if column is None else row[column] for row in self.rows]

    def headings(self) -> str:
        """The columns in words, for messages."""
        return f"{self.path} has the columns {some(map(repr, self.columns), 12)}"


def read_table(path: Path) -> Table:
    """Read a CSV file with a header, as spreadsheets and pandas write it, or a ``.jsonl`` file of
    one JSON object a line.

    The delimiter of CSV is a comma, tab, semicolon or bar; the encoding is UTF-8, UTF-16 or the
    Windows code page 1252. A first line ``sep=;`` and an index column are allowed.

    Raises:
        DataError: unreadable, empty, a column name twice, or rows of different lengths.
    """
    text, notes = read_text(path)
    if path.suffix.lower() == ".jsonl":
        rows, lines = _json_rows(path, text)
    else:
        rows, lines = _csv_rows(path, text)
    if not rows:
        raise DataError(f"{path} is empty", "a header line and one line an image")
    width = len(rows[0])
    # Some programs end every line with a separator.
    while width > 1 and all(not any(row[width - 1 :]) for row in rows):
        width -= 1
    # Cells beyond the header stay where they hold something, so that such rows are reported.
    rows = [row[:width] + row[width:] * any(row[width:]) for row in rows]
    _check_widths(path, rows, lines)
    keep = [c for c, name in enumerate(rows[0]) if not _is_index(name, [r[c] for r in rows[1:]])]
    if len(keep) < width:
        notes.append(f"{path.name} has a column of row numbers, which is left out")
    columns = tuple(rows[0][c] for c in keep)
    if len(set(columns)) < len(columns):
        raise DataError(f"{path} repeats a column: {some(columns, 12)}", "every column once")
    return Table(path, columns, [[r[c] for c in keep] for r in rows[1:]], lines[1:], tuple(notes))


def read_text(path: Path, content: bytes | None = None) -> tuple[str, list[str]]:
    """The text of a file, and a note where its encoding is a guess.

    Args:
        path: of the file.
        content: of a file that is not on the disk, such as one in a zip.

    Raises:
        DataError: unreadable, a workbook, or not text.
    """
    advice = "save it as 'CSV UTF-8'"
    try:
        data = path.read_bytes() if content is None else content
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", "a text file in UTF-8") from error
    if data.startswith(WORKBOOKS):
        raise DataError(f"{path} is a workbook of Excel", "a text file in UTF-8", advice)
    # UTF-16 without a mark: one of the two bytes of a Latin letter is 0.
    wide = {0: "utf-16-be", 1: "utf-16-le"}.get(data[:2].find(b"\0"), "utf-8")
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), wide)
    notes = []
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(f"{path} cannot be read: {error}", "UTF-8", advice) from error
        notes.append(
            f"{path.name} is not UTF-8 and was read as Windows' code page 1252;"
            f" where letters are wrong, {advice}"
        )
    if "\0" in text:
        raise DataError(f"{path} is not text: it holds zero bytes", "UTF-8", advice)
    return text, notes


def flags(
    table: Table, columns: Sequence[int], remarks: Remarks, missing: str = "absent"
) -> list[Flags]:
    """What each row says about ``columns``.

    Args:
        table: the table.
        columns: its 0/1 columns.
        remarks: gets cells that are neither 0 nor 1 nor unknown, which count as unknown; and
            columns of unknowns only.
        missing: ``data.missing``, the meaning of a blank cell in a table of marks, which has no
            cell that says 0. A blank cell beside zeros is unknown.
    """
    rows: list[Flags] = []
    bad: list[str] = []
    values: Counter[str] = Counter()
    meaning = _reading(table, columns, missing)
    said: set[int] = set()
    for cells, line in zip(table.rows, table.lines, strict=True):
        answers = [meaning.get(word_of(cells[column]), "") for column in columns]
        for column, answer in zip(columns, answers, strict=True):
            if not answer:
                values[cells[column]] += 1
                bad.append(f"line {line}, column {table.columns[column]!r}: {cells[column]!r}")
        said.update(c for c, answer in zip(columns, answers, strict=True) if answer != "unknown")
        rows.append(_flags_of(answers))
    if bad:
        counts = some(f"{value!r} {count} times" for value, count in values.most_common())
        remarks.problem(
            f"{table.path} has {len(bad)} cells that are neither 0 nor 1 ({counts}); the first"
            f" in {bad[0]}; {table.headings()}",
            "0, 1 or ? (unknown) in every class column",
            "correct them, or remove the columns that are no classes",
        )
    _check_stated(table, [c for c in columns if c not in said], remarks)
    return rows


def _check_stated(table: Table, columns: Sequence[int], remarks: Remarks) -> None:
    if columns and table.rows:
        names = some(repr(table.columns[c]) for c in columns)
        remarks.problem(
            f"{table.path} says of no image whether it shows {names}: every cell of the column is"
            " unknown",
            "a 1 for some images and a 0 for others",
            "fill in some cells, or remove the column",
        )


def _flags_of(answers: Sequence[str]) -> Flags:
    return Flags(
        tuple(k for k, answer in enumerate(answers) if answer == "present"),
        tuple(k for k, answer in enumerate(answers) if answer in ("unknown", "")),
    )


def is_flag(text: str) -> bool:
    """Whether a cell says yes or no, and is not blank."""
    return word_of(text) in YES + NO + MINUS


def is_answer(text: str) -> bool:
    """Whether a tag looks like the answer to a question instead of the name of a class."""
    # Single letters are names of classes as well.
    return is_flag(text) and not (len(text) == 1 and text.isascii() and text.isalpha())


# Hundreds of thousands of cells hold a few words.
@lru_cache(10_000)
def word_of(cell: str) -> str:
    """A cell of a 0/1 column in small letters, a whole number as its digits: ``1`` for ``1.0``,
    ``1,00`` (a decimal comma) and ``1.0e+00`` (NumPy).
    """
    number = WHOLE.fullmatch(cell.lower())
    return str(int(number[1])) if number else cell.lower()


def _reading(table: Table, columns: Sequence[int], missing: str) -> dict[str, str]:
    """Meaning of each value: present, absent or unknown."""
    values = {word_of(row[column]) for row in table.rows for column in columns}
    # Beside 0, some tables mean "unknown" by -1 and others "absent": that is for the user to say.
    no = NO if not values.isdisjoint(NO) else (*NO, *MINUS)
    # Who writes zeros has said nothing with a blank cell; who writes marks has said "absent".
    blank = "absent" if missing == "absent" and values.isdisjoint(no) else "unknown"
    words = dict.fromkeys(YES, "present") | dict.fromkeys(no, "absent")
    return words | dict.fromkeys(UNKNOWN, "unknown") | {"": blank}


def column_key(name: str) -> str:
    """The name of a column without letter case and what separates its words: ``imageid``."""
    return re.sub(r"[\s_-]+", "", folded(name))


def _is_index(name: str, cells: list[str]) -> bool:
    """Whether it is the index that pandas writes first, or has neither name nor cells."""
    numbers = all(cell.isdecimal() or not cell for cell in cells)
    return numbers and re.fullmatch(r"|unnamed: ?\d+|index|idx", name.lower()) is not None


def _check_widths(path: Path, rows: list[list[str]], lines: list[int]) -> None:
    width = len(rows[0])
    bad = [n for n, row in enumerate(rows) if len(row) != width]
    if bad:
        more = f" ({len(bad)} such lines)" if len(bad) > 1 else ""
        raise DataError(
            f"{path} line {lines[bad[0]]} has {len(rows[bad[0]])} cells{more}",
            f"{width}, as the header",
            "quote cells that hold a comma, or put ; between the tags of an image",
        )


def _csv_rows(path: Path, text: str) -> tuple[list[list[str]], list[int]]:
    """Rows and their lines, with the delimiter that the first line names or that fits best."""
    separator = re.match(r'"?sep=([,;|\t])"?\s*?(\r\n|\r|\n)', text, re.IGNORECASE)
    if separator:
        rows, lines = _parse(path, text[separator.end() :], separator[1])
        return rows, [line + 1 for line in lines]
    first = next((line for line in text.splitlines() if line.strip()), "")
    fallback = None
    for delimiter in [d for d in DELIMITERS if d in first] or [","]:
        rows, lines = _parse(path, text, delimiter)
        header = tuple(rows[0]) if rows else ()
        images = Table(path, header, [], []).find(IMAGE_COLUMNS) is not None
        if images and all(len(row) == len(header) for row in rows):
            return rows, lines
        if fallback is None or (images and not fallback[2]):
            fallback = (rows, lines, images)
    assert fallback is not None
    return fallback[:2]


def _parse(path: Path, text: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    for strict in (True, False):
        stream = io.StringIO(text, newline="")
        reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True, strict=strict)
        rows, lines = [], []
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append([cell.strip() for cell in row])
                    lines.append(reader.line_num)
        except csv.Error as error:
            # Blanks after a closing quote do no harm, but a quote that never closes swallows rows.
            if strict and "unexpected end" not in str(error):
                continue
            raise DataError(
                f"{path} line {reader.line_num}: {error}",
                "a CSV file",
                "look for a quote that is not closed",
            ) from error
        break
    return rows, lines


def _json_rows(path: Path, text: str) -> tuple[list[list[str]], list[int]]:
    objects, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number}: {error}", "one JSON object a line") from error
        if not isinstance(entry, dict):
            raise DataError(f"{path} line {number} is no object", '{"file_name": "a.jpg", ...}')
        objects.append(entry)
        lines.append(number)
    columns = list(dict.fromkeys(key for entry in objects for key in entry))
    rows = [[cell_of(entry.get(key)) for key in columns] for entry in objects]
    return ([columns, *rows] if columns else []), [1, *lines]


def cell_of(value: object) -> str:
    """A JSON value as the text of a cell; "" for null."""
    if isinstance(value, list):
        return ";".join(map(cell_of, value))
    text = "" if value is None else str(value).strip()
    return text.encode("utf-8", "replace").decode()  # a lone half of a surrogate pair is no text

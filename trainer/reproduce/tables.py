"""A table of a paper as data: one file in ``rows/``, whose rows are options of ``fit``."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainer.errors import one_of

FOLDER = Path(__file__).with_name("rows")
PAPERS = Path(__file__).with_name("papers.toml")
UNTIL = {"cam": "cams", "refined": "refine", "segment": "segment"}
"""The stage of ``fit`` that a figure needs."""


@dataclass(frozen=True)
class Figure:
    """What a column of a table measures: ``cam train`` or ``cam val f_of_means``.

    Attributes:
        stage: ``cam``, ``refined`` or ``segment``.
        list: name of the image list.
        key: of the entry in ``evaluation.json``; parts of it are joined by dots. ``foreground`` is
            the mean IoU without the background.
    """

    stage: str
    list: str
    key: str = "miou"

    def __str__(self) -> str:
        return " ".join([self.stage, self.list, *([self.key] if self.key != "miou" else [])])


@dataclass(frozen=True)
class Row:
    """One training and test.

    Attributes:
        name: as the paper has it, or what the row changes.
        options: of ``fit``, which every recipe has.
        full: further ones of the published recipe.
        small: further ones of the small recipe.
        needs: a knob of the published recipe that names a file of the user's, or an empty text.
        published: column -> published value, percent; what the paper only draws has none.
    """

    name: str
    options: str
    published: Mapping[str, float]
    full: str = ""
    small: str = ""
    needs: str = ""

    @property
    def folder(self) -> str:
        """Name of the row's run."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Table:
    """A table, or a figure with a curve.

    Attributes:
        name: what ``reproduce`` calls it: ``mixup-cam-1``.
        paper: authors, title and where it appeared.
        place: in the paper: ``Table 1``.
        title: what it compares.
        protocol: how the published values were measured.
        figures: the columns.
        rows: in the paper's order.
        options: of ``fit``, for every row and recipe.
        full: further ones of the published recipe.
        small: further ones of the small recipe.
        convention: of the mean IoU.
        note: what cannot be reproduced, or is not printed in the paper.
    """

    name: str
    paper: str
    place: str
    title: str
    protocol: str
    figures: tuple[Figure, ...]
    rows: tuple[Row, ...]
    options: str = ""
    full: str = ""
    small: str = ""
    convention: str = "default"
    note: str = ""

    @property
    def until(self) -> str:
        """The last stage that its columns need."""
        order = list(UNTIL)
        return UNTIL[max((figure.stage for figure in self.figures), key=order.index)]

    def arguments(self, row: Row, is_small: bool) -> list[str]:
        """What is typed after ``fit DATA --run RUN`` for a row."""
        texts = (
            self.options,
            self.small if is_small else self.full,
            row.options,
            row.small if is_small else row.full,
        )
        return [part for text in texts for part in shlex.split(text)] + ["--until", self.until]

    def select(self, names: tuple[str, ...]) -> tuple[Row, ...]:
        """The rows of ``--only``, all of them where it names none.

        Raises:
            ConfigError: no such row.
        """
        known = {row.folder: row for row in self.rows}
        for name in names:
            one_of(name, known, f"row of {self.name}")
        return tuple(row for row in self.rows if not names or row.folder in names)


def table_names() -> list[str]:
    """Names of all tables, paper by paper."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@cache
def read_table(name: str) -> Table:
    """A table by its name.

    Raises:
        ConfigError: there is none of this name.
    """
    one_of(name, table_names(), "table")
    content = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    papers: dict[str, str] = tomllib.loads(PAPERS.read_text(encoding="utf-8"))
    content["paper"] = papers[content["paper"]]
    content["figures"] = tuple(Figure(*text.split()) for text in content["figures"])
    content["rows"] = tuple(_row(row) for row in content["rows"])
    return Table(name=name, **content)


def _row(content: dict[str, Any]) -> Row:
    return Row(**{"published": {}, **content})

"""Tags of an image in words."""

from __future__ import annotations

from pathlib import Path

from trainer.data.dataset import Record
from trainer.report.html import _environment
from trainer.report.row import Row
from trainer.report.words import MOST_NAMES, tag_words, unknown_words

NAMES = tuple(f"c{k}" for k in range(20))


def record(tags: tuple[int, ...], unknown: tuple[int, ...]) -> Record:
    return Record("a", Path("a.png"), tags, unknown=unknown)


def row(of: Record) -> str:
    entry = Row(of.id, "image-a", of.tags, unknown=unknown_words(of, NAMES))
    page = _environment().get_template("row.html").module.row(entry, NAMES)
    return " ".join(str(page).split())


def test_unknown_tags_have_a_question_mark() -> None:
    assert tag_words(record((3,), (1, 5)), NAMES) == "c3, c1?, c5?"
    assert tag_words(record((), (1,)), NAMES) == "c1?"
    assert tag_words(record((), ()), NAMES) == ""
    many = tuple(range(MOST_NAMES + 1))
    assert tag_words(record((9,), many), NAMES) == "c9, 7 unknown"


def test_a_row_lists_tags_and_unknown_tags() -> None:
    both = row(record((3,), (1, 5)))
    assert both.count("<li>") == 3
    assert "c3</li><li>c1?</li><li>c5?</li>" in both
    assert "tagged c3, c1?, c5?" in both
    assert 'data-tags="4 "' in both
    open_only = row(record((), (1,)))
    assert "<li>c1?</li>" in open_only
    assert "no tag" not in open_only
    assert "tagged c1?" in open_only
    plain = row(record((3, 4), ()))
    assert "tagged c3, c4" in plain
    assert "?" not in plain
    none = row(record((), ()))
    assert "<li>no tag</li>" in none
    assert "tagged nothing" in none

"""The page around the figures of a report: style, script and the few HTML pieces that every section
uses.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape as esc
from pathlib import Path
from typing import Any

from trainer.outputs import MARK

#: CSS colour of each evaluated stage, the same in cards, bars and curves.
COLOURS = {
    "cam": "var(--cam)",
    "refined": "var(--refined)",
    "segment": "var(--segment)",
    "segment_full": "var(--full)",
}


def page(title: str, header: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole document. It can load nothing, and runs no script but its own, whatever the run's
    names hold.

    Args:
        title: plain text.
        header: HTML above the first section.
        sections: ``(anchor, heading, HTML)`` each.
        footer: HTML below.
    """
    style, script = (
        Path(__file__).with_name(f"report.{kind}").read_text(encoding="utf-8")
        for kind in ("css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src"
        f" 'sha256-{digest}'; base-uri 'none'"
    )
    links = "".join(f'<a href="#{anchor}">{esc(heading)}</a>' for anchor, heading, _ in sections)
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-h"><h2'
        f' id="{anchor}-h">{esc(heading)}</h2>{html}</section>'
        for anchor, heading, html in sections
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="generator" content="{MARK}"><meta'
        f' http-equiv="Content-Security-Policy" content="{policy}"><meta name="viewport"'
        ' content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light'
        f' dark"><title>{esc(title)}</title><link rel="icon"'
        f' href="data:,"><style>{style}</style></head><body><nav'
        f' aria-label="Sections"><div>{links}</div></nav><header>{header}</header>'
        f"<main>{body}</main><footer>{footer}</footer><dialog"
        ' id="zoom" aria-label="Enlarged'
        f' images"></dialog><script>{script}</script></body></html>\n'
    )


def note(text: str) -> str:
    """A sentence in place of something that is not there; ``text`` is plain."""
    return f'<p class="note">{esc(text)}</p>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    kind: str = "",
    foot: Sequence[str] = (),
) -> str:
    """A table whose first column heads the rows.

    Args:
        head: plain texts; one that begins with ``#`` heads a column of numbers, without the sign.
        rows: HTML cells.
        caption: plain text, read aloud and shown above.
        kind: CSS classes; the rows of a ``sortable`` table can be sorted by every column that has a
            heading.
        foot: HTML cells of a row that stays below.
    """
    numeric = [name.startswith("#") for name in head]

    def line(row: Sequence[str]) -> str:
        cells = "".join(f"<td{_number(n)}>{cell}</td>" for cell, n in zip(row[1:], numeric[1:]))
        return f'<tr><th scope="row">{row[0]}</th>{cells}</tr>'

    cells = "".join(
        f'<th scope="col"{_number(n)}>{esc(h.removeprefix("#"))}</th>'
        for h, n in zip(head, numeric)
    )
    below = f"<tfoot>{line(foot)}</tfoot>" if foot else ""
    return (
        f'<div class="scroll"><table class="{kind}"><caption>{esc(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead>"
        f"<tbody>{''.join(map(line, rows))}</tbody>{below}</table></div>"
    )


def details(summary: str, html: str, is_open: bool = False) -> str:
    """A part that opens on request; printed open."""
    return f"<details{' open' if is_open else ''}><summary>{esc(summary)}</summary>{html}</details>"


def swatch(colour: Sequence[int]) -> str:
    """A square of an RGB colour."""
    red, green, blue = (int(v) for v in colour)
    return f'<i class="swatch" style="background:rgb({red} {green} {blue})"></i>'


def data(value: Any) -> str:
    """A JSON value for an attribute of an element, where the script finds it."""
    return esc(json.dumps(value, separators=(",", ":")))


def _number(numeric: bool) -> str:
    return ' class="n"' if numeric else ""

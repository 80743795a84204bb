"""The confusion matrices of a report, drawn as one SVG each; the script shows any cell's value on
hover, tap or arrow keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as esc

import numpy as np
import numpy.typing as npt

from trainer.data.palette import voc_palette
from trainer.report.facts import STAGES, Facts, percent
from trainer.report.page import data, details, note, table
from trainer.report.sections import label_cell, label_names, proto

Counts = npt.NDArray[np.int64]
#: Up to this many labels a cell has room for its number.
NUMBERED = 24
_LONGEST = 20


def confusion(facts: Facts) -> str:
    """Row-normalised confusion of every evaluated stage and list; the last stage of the weak path
    is open.
    """
    stages = ("segment", "refined", "cam", "segment_full")
    shown = [
        (stage, name)
        for stage in stages
        for name in facts.lists
        if _counts(facts, stage, name) is not None
    ]
    if not shown:
        return note("Not there yet: no confusion matrix was recorded. wsss-trainer eval writes it.")
    lead = (
        "Where the pixels of each true class went, in percent of that class. Rows are the truth. "
        "Point at a cell, tap it, or move with the arrow keys to read it."
    )
    parts = [
        details(f"{STAGES[stage]} on {name}", _confusion(facts, stage, name), is_open=i == 0)
        for i, (stage, name) in enumerate(shown)
    ]
    return f"<p>{lead}</p>{''.join(parts)}"


def _counts(facts: Facts, stage: str, name: str) -> Counts | None:
    """Pixels ``int64 [K+1,K+1]``, rows the truth; None where there is no such matrix."""
    found, labels = facts.figures(stage, name), len(facts.classes) + 1
    try:
        counts = (
            np.asarray(found[1].get("confusion") or [], np.int64)
            if found
            else np.zeros(0, np.int64)
        )
    except (TypeError, ValueError):
        return None
    return counts if counts.shape == (labels, labels) else None


def _confusion(facts: Facts, stage: str, name: str) -> str:
    counts, found = _counts(facts, stage, name), facts.figures(stage, name)
    if counts is None or found is None:
        return note("No confusion matrix was recorded.")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    words = f"{STAGES[stage]} on {name}"
    mistakes = _mistakes(facts, shares, words)
    drawn = matrix(counts, shares, label_names(facts), words)
    return f'<div class="side wide">{drawn}{mistakes}</div>{proto(found[1])}'


def matrix(
    counts: Counts, shares: npt.NDArray[np.float64], names: Sequence[str], words: str
) -> str:
    """The picture of one matrix with labels on both sides, and the line that says what is pointed
    at.

    Args:
        counts: pixels ``int64 [C,C]``, rows the truth.
        shares: ``counts`` over the sums of its rows.
        names: C labels.
        words: what it is the matrix of; plain.
    """
    size = len(names)
    cell, font = (46, 12) if size <= 10 else (30, 11) if size <= NUMBERED else (11, 9)
    margin = 22 + round(0.56 * font * min(_LONGEST, max(map(len, names))))
    top = round(0.75 * margin)
    side = size * cell
    width, height = margin + side + top, top + side + 2
    body = _labels(names, margin, top, cell, font)
    for i, j in np.argwhere(shares >= 0.005).tolist():
        share = shares[i, j]
        place = (
            f'x="{margin + j * cell}" y="{top + i * cell}" width="{cell - 1}" height="{cell - 1}"'
        )
        body += f'<rect {place} fill-opacity="{0.04 + 0.96 * share:.2f}"/>'
        if size <= NUMBERED:
            at = f'x="{margin + j * cell + cell / 2 - 0.5}" y="{top + i * cell + cell / 2 + 4}"'
            tone = ' class="hi"' if share > 0.5 else ""
            body += f"<text {at}{tone}>{100 * share:.0f}</text>"
    frame = (
        f'<rect class="frame" x="{margin - 1}" y="{top - 1}" width="{side + 1}"'
        f' height="{side + 1}"/>'
    )
    facts = (
        f'data-counts="{data(counts.tolist())}" data-labels="{data(list(names))}"'
        f' data-place="{margin} {top} {cell}"'
    )
    label = f"{words}: confusion matrix of {size} labels, true class down, predicted class across"
    return (
        '<figure class="confusion"><div class="scroll"><svg tabindex="0" role="img"'
        f' aria-label="{esc(label)}" viewBox="0 0 {width} {height}"'
        f' style="width:{width}px;font-size:{font}px" {facts}>{frame}{body}<rect class="cursor"'
        f' width="{cell - 1}" height="{cell - 1}"/></svg></div><figcaption aria-live="polite">True'
        " class down, predicted class across.</figcaption></figure>"
    )


def _labels(names: Sequence[str], margin: int, top: int, cell: int, font: int) -> str:
    parts, palette = [], voc_palette(len(names))
    for i, name in enumerate(names):
        cut = esc(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…")
        middle = (i + 0.5) * cell
        x, y = margin + middle, top + middle + font / 3
        colour = "rgb({} {} {})".format(*palette[i].tolist())
        parts.append(f'<text class="left" x="{margin - 14}" y="{y:.1f}">{cut}</text>')
        parts.append(
            f'<rect x="{margin - 10}" y="{top + middle - 4:.1f}" width="7" height="8"'
            f' style="fill:{colour}"/>'
        )
        parts.append(
            f'<text class="above" transform="translate({x:.1f} {top - 6}) rotate(-45)">{cut}</text>'
        )
    return "".join(parts)


def _mistakes(facts: Facts, shares: npt.NDArray[np.float64], words: str, count: int = 8) -> str:
    wrong = shares * (1 - np.eye(len(shares)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(flat), len(shares)) for flat in order]
    rows = [
        [label_cell(facts, i), label_cell(facts, j), percent(wrong[i, j])]
        for i, j in pairs
        if wrong[i, j] > 0
    ]
    return table(
        ("True class", "Predicted", "#Share, %"), rows, f"Largest confusions, {words}", "mistakes"
    )

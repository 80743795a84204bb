"""The confusion matrices of a report, each drawn as one SVG; the script shows any cell's value on
hover, tap or arrow keys.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from trainer.data.palette import voc_palette
from trainer.report.charts import element
from trainer.report.facts import STAGES, Facts
from trainer.report.words import protocol

Counts = npt.NDArray[np.int64]
#: Up to this many labels a cell has room for its number.
NUMBERED = 24
#: Characters of a label beside the matrix.
_LONGEST = 20
#: Rows of the table of the largest confusions.
_MISTAKES = 8


def confusion(facts: Facts) -> dict[str, Any]:
    """Row-normalised confusion of every evaluated stage and list, the last stage of the weak path
    first.
    """
    matrices = [
        _matrix(facts, stage, name, counts)
        for stage in ("segment", "refined", "cam", "segment_full")
        for name in facts.lists
        if (counts := _counts(facts, stage, name)) is not None
    ]
    return {"matrices": matrices, "labels": facts.labels}


def _counts(facts: Facts, stage: str, name: str) -> Counts | None:
    """Pixels ``int64 [K+1,K+1]``, rows the truth; None where there is no such matrix."""
    figures, size = facts.evaluation.get(stage, {}).get(name, {}), len(facts.labels)
    try:
        counts = np.asarray(figures.get("confusion") or [], np.int64)
    except (TypeError, ValueError):
        return None
    return counts if counts.shape == (size, size) else None


def _matrix(facts: Facts, stage: str, name: str, counts: Counts) -> dict[str, Any]:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = shares * (1 - np.eye(len(shares)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MISTAKES].tolist()
    pairs = [divmod(place, len(shares)) for place in order]
    title = f"{STAGES[stage]} on {name}"
    label = (
        f"{title}: confusion matrix of {len(counts)} labels, true class down, predicted class"
        " across"
    )
    return {
        "title": title,
        "chart": matrix(counts, shares, facts.labels, label),
        "mistakes": [(i, j, float(wrong[i, j])) for i, j in pairs if wrong[i, j] > 0],
        "protocol": protocol(facts.evaluation[stage][name]),
    }


def matrix(
    counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], names: Sequence[str], label: str
) -> Markup:
    """A confusion matrix with labels on both sides.

    Args:
        counts: pixels ``int64 [C,C]``, rows the truth; the script reads them.
        shares: ``counts`` over the sums of its rows.
        names: C labels.
        label: the chart in words.
    """
    size = len(names)
    cell, font = (46, 12) if size <= 10 else (30, 11) if size <= NUMBERED else (11, 9)
    left = 22 + round(0.56 * font * min(_LONGEST, max(map(len, names))))
    top = round(0.75 * left)
    side = size * cell
    place = {"x": left - 1, "y": top - 1, "width": side + 1, "height": side + 1}
    body = [element("rect", class_="frame", **place), *_labels(names, left, top, cell, font)]
    for i, j in np.argwhere(shares >= 0.005).tolist():
        body += _cell(shares[i, j], left + j * cell, top + i * cell, cell, size <= NUMBERED)
    body.append(element("rect", class_="cursor", width=cell - 1, height=cell - 1))
    width = left + side + top
    return element(
        "svg",
        body,
        tabindex=0,
        role="img",
        aria_label=label,
        viewBox=f"0 0 {width} {top + side + 2}",
        style=f"width:{width}px;font-size:{font}px",
        data_counts=json.dumps(counts.tolist(), separators=(",", ":")),
        data_labels=json.dumps(list(names)),
        data_place=f"{left} {top} {cell}",
    )


def _cell(share: float, x: int, y: int, cell: int, numbered: bool) -> list[Markup]:
    opacity = f"{0.04 + 0.96 * share:.2f}"
    parts = [element("rect", x=x, y=y, width=cell - 1, height=cell - 1, fill_opacity=opacity)]
    if numbered:
        tone = {"class_": "hi"} if share > 0.5 else {}
        place = {"x": x + cell / 2 - 0.5, "y": y + cell / 2 + 4}
        parts.append(element("text", f"{100 * share:.0f}", **place, **tone))
    return parts


def _labels(names: Sequence[str], left: int, top: int, cell: int, font: int) -> list[Markup]:
    parts, palette = [], voc_palette(len(names))
    for i, name in enumerate(names):
        text = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
        x, y = left + (i + 0.5) * cell, top + (i + 0.5) * cell
        fill = "fill:rgb({} {} {})".format(*palette[i].tolist())
        turn = f"translate({x:.1f} {top - 6}) rotate(-45)"
        parts += [
            element("text", text, class_="left", x=left - 14, y=y + font / 3),
            element("rect", x=left - 10, y=y - 4, width=7, height=8, style=fill),
            element("text", text, class_="above", transform=turn),
        ]
    return parts

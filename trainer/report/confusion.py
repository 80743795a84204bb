"""The confusion matrices of a report, each drawn as one SVG.

The page's script shows the value of a cell on hover, tap or arrow keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from trainer.report.facts import STAGES, Facts
from trainer.report.html import draw
from trainer.report.words import protocol

Counts = npt.NDArray[np.int64]
# Up to this many labels a cell has room for its number.
NUMBERED = 24
# Rows of the table of the largest confusions.
_MISTAKES = 8


def confusion(facts: Facts) -> dict[str, Any]:
    """Row-normalised confusion of every stage and list; the weak path's last stage comes first."""
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
    wrong = _shares(counts) * (1 - np.eye(len(counts)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MISTAKES].tolist()
    pairs = [divmod(place, len(counts)) for place in order]
    title = f"{STAGES[stage]} on {name}"
    size = f"confusion matrix of {len(counts)} labels"
    label = f"{title}: {size}, true class down, predicted class across"
    return {
        "title": title,
        "chart": matrix(counts, facts.labels, label),
        "mistakes": [(i, j, float(wrong[i, j])) for i, j in pairs if wrong[i, j] > 0],
        "protocol": protocol(facts.evaluation[stage][name]),
    }


def matrix(counts: Counts, names: Sequence[str], label: str) -> Markup:
    """The picture of one matrix, with labels on both sides.

    Args:
        counts: pixels ``int64 [C,C]``, rows the truth; the script reads them.
        names: C labels.
        label: the chart in words.
    """
    size, shares = len(names), _shares(counts)
    cell, font = (46, 12) if size <= 10 else (30, 11) if size <= NUMBERED else (11, 9)
    left = 22 + round(0.56 * font * min(20, max(map(len, names))))
    # Paler cells could not be seen, and COCO has 6,561.
    cells = [(i, j, float(shares[i, j])) for i, j in np.argwhere(shares >= 0.005).tolist()]
    place = {"left": left, "top": round(0.75 * left), "cell": cell, "font": font}
    values = {"names": list(names), "counts": counts.tolist(), "numbered": size <= NUMBERED}
    return draw("matrix", label=label, cells=cells, **place, **values)


def _shares(counts: Counts) -> npt.NDArray[np.float64]:
    # Shares of each true class: in pixels, the background would outshine all others.
    shares: npt.NDArray[np.float64] = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return shares

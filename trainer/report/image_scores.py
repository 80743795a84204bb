"""How well the classifier tells images apart, in a report: AUROC and average precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.evaluation.measure_classifier import CLASSIFIER
from trainer.report.charts import bars
from trainer.report.facts import Facts
from trainer.report.words import finite, percent, protocol


def image_scores(facts: Facts) -> dict[str, Any] | None:
    """A table per list, every class and "any class"; None for a run without a classifier."""
    lists = facts.evaluation.get(CLASSIFIER, {})
    # As in the other sections, val comes first.
    names = sorted(lists, key=lambda name: (name != "val", not name.startswith("val")))
    parts = [
        {
            "name": name,
            "optimistic": bool(figures.get("trained_on")),
            "any": _row(f"any class on {name}", figures["any"]),
            "rows": [
                (label, _row(f"{label} on {name}", entry))
                for label, entry in figures["classes"].items()
            ],
            "mean": [percent(figures["mean"][key]) for key in ("auroc", "average_precision")],
            "protocol": protocol(figures),
        }
        for name in names
        for figures in (lists[name],)
    ]
    return {"lists": parts} if parts else None


def _row(title: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    auroc = finite(entry.get("auroc"))
    return {
        "chart": bars([("var(--cam)", auroc)], f"AUROC of {title}", 7),
        "auroc": percent(auroc),
        "auroc_interval": _ends(entry.get("auroc_interval")),
        "precision": percent(entry.get("average_precision")),
        "precision_interval": _ends(entry.get("average_precision_interval")),
        "alarms": percent(entry.get("false_alarms_at_90")),
        "counts": [str(entry.get(key, "")) for key in ("positives", "negatives", "unknown")],
        "why": entry.get("why") or "",
    }


def _ends(interval: Mapping[str, Any] | None) -> str:
    return f"{percent(interval['low'])} to {percent(interval['high'])}" if interval else ""

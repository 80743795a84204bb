"""The figures of every class in a report: bars and tables that can be sorted."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape as esc
from typing import Any

from trainer.report.charts import Line, bars, key
from trainer.report.facts import STAGES, Facts, finite, percent
from trainer.report.page import COLOURS, details, note, table
from trainer.report.sections import label_cell, label_names, proto

#: Figures of single classes, their means, and their headings.
_PER_CLASS = (
    ("precision", "mean_precision", "precision"),
    ("recall", "mean_recall", "recall"),
    ("f", "mean_f", "F"),
    ("boundary_f_by_class", "boundary_f", "boundary F"),
)


def classes(facts: Facts) -> str:
    """Grouped bars and figures of every class, one table a list."""
    if not facts.lists:
        return note(
            "Not there yet: nothing was evaluated. The command wsss-trainer eval measures what the"
            " run has."
        )
    lines = [
        Line(name, COLOURS[stage], ()) for stage, name in STAGES.items() if facts.figures(stage)
    ]
    parts = [key(lines)]
    for name in facts.lists:
        shown = {
            stage: facts.evaluation[stage][name]
            for stage in STAGES
            if name in facts.evaluation.get(stage, {})
        }
        parts.append(_iou_table(facts, name, shown))
        parts.append(
            details(
                f"Precision, recall and F-scores on {name}", _precision_table(facts, name, shown)
            )
        )
    return "".join(parts)


def _iou_table(facts: Facts, name: str, shown: Mapping[str, Mapping[str, Any]]) -> str:
    height = 7 if len(facts.classes) <= 30 else 4
    rows = []
    for i, label in enumerate(label_names(facts)):
        values = [finite((f.get("iou") or {}).get(label)) for f in shown.values()]
        drawn = bars(
            [(COLOURS[s], v) for s, v in zip(shown, values, strict=True)],
            f"IoU of {label} on {name}",
            height,
        )
        rows.append([label_cell(facts, i), drawn, *(percent(v) for v in values)])
    means = [finite(f.get("miou")) for f in shown.values()]
    drawn = bars(
        [(COLOURS[s], v) for s, v in zip(shown, means, strict=True)], f"mIoU on {name}", height
    )
    mean = ["<b>mean</b>", drawn, *(f"<b>{percent(v)}</b>" for v in means)]
    head = ("Class", "0 to 100", *(f"#{STAGES[s]}" for s in shown))
    protocols = details("Protocols", "".join(proto(f, STAGES[s]) for s, f in shown.items()))
    caption = f"IoU of each class on {name}, percent"
    return f"<h3>On {esc(name)}</h3>" + table(head, rows, caption, "iou sortable", mean) + protocols


def _precision_table(facts: Facts, name: str, shown: Mapping[str, Mapping[str, Any]]) -> str:
    parts = [part for part in _PER_CLASS if any(f.get(part[0]) for f in shown.values())]
    head = ["Class", *(f"#{STAGES[s]} {title}" for s in shown for _, _, title in parts)]
    rows = []
    for i, label in enumerate(label_names(facts)):
        cells = [
            percent((f.get(part) or {}).get(label)) for f in shown.values() for part, _, _ in parts
        ]
        rows.append([label_cell(facts, i), *cells])
    means = [percent(f.get(mean)) for f in shown.values() for _, mean, _ in parts]
    mean = ["<b>mean</b>", *(f"<b>{m}</b>" for m in means)]
    return table(
        head, rows, f"Precision, recall and F-scores of each class on {name}, %", "sortable", mean
    )

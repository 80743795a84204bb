"""The figures of every class in a report: bars and sortable tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.report.charts import bars
from trainer.report.facts import STAGES, Facts
from trainer.report.html import COLOURS
from trainer.report.words import finite, percent, protocol

# Figures of single classes, their means, and their headings.
_PER_CLASS = (
    ("precision", "mean_precision", "precision"),
    ("recall", "mean_recall", "recall"),
    ("f", "mean_f", "F"),
    ("boundary_f_by_class", "boundary_f", "boundary F"),
    ("objects_hit_by_class", "objects_hit", "objects hit"),
    ("pixel_ap_by_class", "pixel_ap", "pixel AP"),
    ("pro_by_class", "pro", "PRO"),
)
Figures = Mapping[str, Mapping[str, Any]]


def classes(facts: Facts) -> dict[str, Any]:
    """Grouped bars and figures of every class, one table per list."""
    lists = []
    for name in facts.lists:
        stages = {stage: figures for stage, other, figures in facts.measured if other == name}
        entry = {
            "name": name,
            "stages": list(stages),
            "iou": _iou(facts, name, stages),
            "scores": _scores(facts, stages),
            "protocols": [(STAGES[stage], protocol(figures)) for stage, figures in stages.items()],
        }
        lists.append(entry)
    colours = [(title, COLOURS[s]) for s, title in STAGES.items() if facts.figures(s)]
    return {"lists": lists, "colours": colours}


def _iou(facts: Facts, name: str, stages: Figures) -> dict[str, Any]:
    # Thinner bars keep COCO's 80 classes within a few screens.
    height = 7 if len(facts.classes) <= 30 else 4

    def line(values: list[float | None], label: str) -> tuple[str, list[str]]:
        colours = [COLOURS[stage] for stage in stages]
        chart = bars(list(zip(colours, values, strict=True)), label, height)
        return chart, [percent(value) for value in values]

    rows = [
        (label, *line([finite((f.get("iou") or {}).get(label)) for f in stages.values()], text))
        for label in facts.labels
        if (text := f"IoU of {label} on {name}")
    ]
    mean = line([finite(f.get("miou")) for f in stages.values()], f"mIoU on {name}")
    return {"rows": rows, "mean": mean}


def _scores(facts: Facts, stages: Figures) -> dict[str, Any]:
    # Scores of pixels are figures of maps only: a column without any figure is left out.
    columns = [
        (f"#{STAGES[stage]} {title}", figures[key], figures.get(mean))
        for stage, figures in stages.items()
        for key, mean, title in _PER_CLASS
        if figures.get(key)
    ]
    rows = [
        (label, [percent(values.get(label)) for _, values, _ in columns]) for label in facts.labels
    ]
    return {
        "head": [head for head, *_ in columns],
        "rows": rows,
        "mean": [percent(mean) for *_, mean in columns],
    }

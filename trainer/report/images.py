"""The image sheets of a report: legend, threshold slider, rows of pictures and worst lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from trainer.data.dataset import Dataset
from trainer.errors import UserError
from trainer.evaluation.sweep import SWEEP
from trainer.pool import over_images
from trainer.report.choice import Sheet, Worst, choose_sheets, worst_lists
from trainer.report.curves import spread, swept
from trainer.report.facts import STAGES, Facts
from trainer.report.overlays import ERRORS
from trainer.report.pictures import map_colours
from trainer.report.row import Row, Sources, anchor, image_row
from trainer.report.words import badges, chosen, finite, percent, protocol

# Fewer rows than this are drawn in this process, since worker processes take longer to start.
FEW = 12


@dataclass(frozen=True)
class Slider:
    """Steps of the threshold of a list's maps.

    Attributes:
        thresholds: ascending.
        miou: of the list at each, in percent; empty without a sweep.
        start: the step of the reported figure, or else of 0.2.
        source: origin of that threshold, in words; empty without one.
    """

    thresholds: tuple[float, ...]
    miou: tuple[float, ...]
    start: int
    source: str

    @property
    def last(self) -> int:
        """The highest step."""
        return len(self.thresholds) - 1

    @property
    def threshold(self) -> float:
        """The threshold at the start."""
        return self.thresholds[self.start]

    @property
    def curve(self) -> str:
        """The sweep as points in a box of 100x24; empty where there is none."""
        if len(self.miou) < 2:
            return ""
        top, last = max(*self.miou, 1e-9), len(self.miou) - 1
        return " ".join(
            f"{100 * i / last:.1f},{23 - 21 * v / top:.1f}" for i, v in enumerate(self.miou)
        )


def images(facts: Facts, max_images: int) -> dict[str, Any]:
    """Legend, lists of the worst images, and sheets."""
    dataset = facts.dataset
    sheets = choose_sheets(facts, dataset, max_images) if dataset else []
    sliders = {sheet.list: slider(facts, sheet.list) for sheet in sheets}
    rows = _rows(facts, dataset, sheets, sliders) if dataset else {}
    lists = []
    for name, group in groupby(sheets, lambda sheet: sheet.list):
        parts = [(sheet.title, [rows[i] for i in sheet.ids]) for sheet in group]
        lists.append({"name": name, "slider": sliders[name], "sheets": parts})
    widest = max((len(row.tiles) for row in rows.values() if isinstance(row, Row)), default=1)
    return {
        "is_open": dataset is not None,
        "classes": facts.classes,
        "spread": spread(facts) if sheets else [],
        "worst": [_worst(facts, worst, rows) for worst in worst_lists(facts)],
        "lists": lists,
        "columns": min(max(widest, 1), 9),
        "errors": ERRORS,
        "levels": map_colours().tolist() if lists else [],
    }


def slider(facts: Facts, name: str) -> Slider:
    """The slider of a list: over its sweep if there is one, from the threshold of its figure."""
    figures = facts.evaluation.get("cam", {}).get(name, {})
    curve = swept(figures)
    thresholds = tuple(t for t, _ in curve) or tuple(round(float(t), 2) for t in SWEEP)
    sources = [f for f in (figures, facts.refine_metrics) if finite(f.get("threshold")) is not None]
    at = float(sources[0]["threshold"]) if sources else 0.2
    start = min(range(len(thresholds)), key=lambda i: abs(thresholds[i] - at))
    mious = tuple(round(100 * value, 2) for _, value in curve)
    return Slider(thresholds, mious, start, chosen(sources[0]) if sources else "")


def _rows(
    facts: Facts, dataset: Dataset, sheets: Sequence[Sheet], sliders: dict[str, Slider]
) -> dict[str, Row | UserError]:
    walk = _walk_threshold(facts)
    sources = {
        name: Sources(facts.run, dataset, name, steps.thresholds, steps.start, walk)
        for name, steps in sliders.items()
    }
    jobs = [(s.list, dataset.records[i]) for s in sheets for i in s.ids]
    workers = None if len(jobs) >= FEW else 0
    work = partial(image_row, sources)
    rows = over_images(work, jobs, workers, "report", True, lambda job: job[1].id)
    return {record.id: row for (_, record), row in rows}


def _walk_threshold(facts: Facts) -> float | None:
    """The constant background score of masks from a walk; None where the score is no constant."""
    config = facts.manifest.get("config", {}).get("refine", {})
    is_soft = config.get("background", "auto") in ("soft", "rest")
    is_rest = config.get("background") == "auto" and config.get("refine") == "affinity"
    return None if is_soft or is_rest else finite(facts.refine_metrics.get("threshold"))


def _worst(facts: Facts, worst: Worst, rows: Collection[str]) -> dict[str, Any]:
    figures = facts.evaluation[worst.stage][worst.list]
    names = [(str(entry.get("id")), percent(entry.get("miou"))) for entry in worst.entries]
    return {
        "title": f"{STAGES[worst.stage]} on {worst.list}",
        "entries": [(name, miou, anchor(name) if name in rows else "") for name, miou in names],
        "marks": badges(facts, worst.stage, figures),
        "protocol": protocol(figures),
    }

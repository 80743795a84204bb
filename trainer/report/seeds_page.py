"""``report.html`` of a folder of ``fit --seeds``: mean, deviation and interval of every figure, and
where the report of each run lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.evaluation.measure import Entries, pixel_figures
from trainer.evaluation.measure_classifier import CLASSIFIER
from trainer.evaluation.over_seeds import evaluation_of
from trainer.files import write_atomic
from trainer.report.html import Section, render, render_page
from trainer.report.words import interval
from trainer.seed_folder import seed_runs

HEADINGS = {
    "figures": "Figures",
    "image_scores": "Image scores",
    "classes": "Classes",
    "protocols": "Protocols",
    "runs": "Runs",
}


def write_seeds_report(folder: Path) -> Path:
    """Write ``folder/report.html``, and return its path.

    Raises:
        RunError: no run has begun there, or the page cannot be written.
        DataError: the data set has gone or changed.
    """
    evaluation, runs = evaluation_of(folder), seed_runs(folder)
    entries = pixel_figures(evaluation)
    parts: dict[str, Mapping[str, Any]] = {
        "figures": {
            "rows": [_row(*figure, list(runs)) for figure in entries],
            "heads": [f"#seed {seed}" for seed in runs],
        },
        "image_scores": {"rows": _image_rows(evaluation)},
        "classes": {"tables": [_classes(*figure) for figure in entries]},
        "protocols": {"entries": entries},
        "runs": {"runs": [(seed, path.name) for seed, path in runs.items()]},
    }
    sections = [
        Section(name, HEADINGS[name], render(f"seeds_{name}.html", **values))
        for name, values in parts.items()
        # A run that stopped early has no figures of some kinds.
        if next(iter(values.values()))
    ]
    path, title = folder / "report.html", f"{folder.name}: wsss report of {len(runs)} seeds"
    first = next((entry["miou_interval"] for *_, entry in entries), None)
    page = render_page("seeds.html", title, sections, name=folder.name, seeds=list(runs), one=first)
    write_atomic(path, page)
    return path


def _row(stage: str, name: str, entry: Mapping[str, Any], seeds: list[int]) -> dict[str, Any]:
    values = {int(seed): one["miou"] for seed, one in entry["seeds"].items()}
    return {
        "stage": stage,
        "list": name,
        "miou": entry["miou"],
        "deviation": entry["deviation"].get("miou"),
        "interval": interval(entry),
        "values": [values.get(seed) for seed in seeds],
    }


def _image_rows(evaluation: Entries) -> list[dict[str, Any]]:
    """AUROC and average precision of every list and class."""
    return [
        {"list": name, "label": label, "figures": figures, "deviation": spread}
        for name, entry in evaluation.get(CLASSIFIER, {}).items()
        for label, figures, spread in (
            ("any class", entry["any"], entry["deviation"]["any"]),
            *(
                (label, figures, entry["deviation"]["classes"][label])
                for label, figures in entry["classes"].items()
            ),
        )
    ]


def _classes(stage: str, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    spreads = entry["deviation"].get("iou", {})
    rows = [(label, value, spreads.get(label)) for label, value in entry["iou"].items()]
    return {"stage": stage, "list": name, "rows": rows}

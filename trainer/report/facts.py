"""The content of a run directory for its report. Every part but the manifest may be missing."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.dataset import Dataset
from trainer.data.formats.opening import reopen_data
from trainer.errors import DataError, RunError

# Evaluated stages in the order of the path: key of evaluation.json, name on the page.
STAGES = {
    "cam": "CAM",
    "refined": "Refined masks",
    "segment": "Segmenter",
    "segment_full": "Full supervision",
}
# Stages of the manifest that every complete run has.
PIPELINE = ("classify", "cams", "refine", "segment", "evaluate")
# Every stage between the preparations of a method and the last figures, in the order of work.
_ORDER = (
    "classify",
    "cams",
    "affinity_labels",
    "affinity",
    "irn_labels",
    "irn",
    "walk",
    "refine",
    "sure_masks",
    "segment_train",
    "segment",
    "segment_full_train",
    "segment_full",
    "scores",
    "evaluate",
)
BUDGET = "budget.json"
"""Of a run, as ``wsss-trainer budget`` writes it."""
Curves = dict[str, dict[str, list[tuple[float, float]]]]


@dataclass(frozen=True)
class Facts:
    """One run directory.

    Attributes:
        run: the directory.
        manifest: manifest.json.
        evaluation: evaluation.json: stage -> list -> figures.
        curves: stage -> metric -> ``(step, value)`` in file order.
        dataset: the data of the run, or None where it cannot be opened.
        notes: sentences about parts that cannot be read.
        budget: budget.json: figures against the number of true masks; empty without it.
    """

    run: Path
    manifest: Mapping[str, Any]
    evaluation: Mapping[str, Mapping[str, Mapping[str, Any]]]
    curves: Curves
    dataset: Dataset | None
    notes: tuple[str, ...]
    budget: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Foreground class names, from the data set or else from the manifest."""
        if self.dataset:
            return self.dataset.classes
        return tuple(self.manifest.get("data", {}).get("classes", ()))

    @property
    def labels(self) -> tuple[str, ...]:
        """All K+1 labels, background first."""
        return ("background", *self.classes)

    @property
    def lists(self) -> list[str]:
        """Lists with any figure, val first."""
        names = dict.fromkeys(name for stage in STAGES for name in self.evaluation.get(stage, {}))
        return sorted(names, key=lambda name: (name != "val", not name.startswith("val")))

    @property
    def measured(self) -> list[tuple[str, str, Mapping[str, Any]]]:
        """``(stage, list, figures)`` of every figure, in the order of the path."""
        return [
            (stage, name, self.evaluation[stage][name])
            for stage in STAGES
            for name in self.lists
            if name in self.evaluation.get(stage, {})
        ]

    @property
    def refine_metrics(self) -> Mapping[str, Any]:
        """Metrics of the stage ``refine``."""
        return self.manifest.get("stages", {}).get("refine", {}).get("metrics") or {}

    @property
    def stages(self) -> list[str]:
        """Stages of the manifest and of every complete run, in the order of work.

        Preparations of a method come first.
        """
        present = list(self.manifest.get("stages", {}))
        names = {*present, *PIPELINE}
        # A run with imported maps has no classifier.
        if "cams" in present and "classify" not in present:
            names.remove("classify")
        rounds = [name for name in present if name.startswith("segment_round")]
        preparations = [name for name in present if name not in (*_ORDER, *rounds)]
        order = list(_ORDER)
        # Rounds stand in the manifest in the order of work.
        order[order.index("segment_train") : order.index("segment_train")] = rounds
        return preparations + [name for name in order if name in names]

    def figures(self, stage: str, name: str | None = None) -> tuple[str, Mapping[str, Any]] | None:
        """``(list, figures)`` of a stage on list ``name``, by default on val or its first list."""
        figures = self.evaluation.get(stage, {})
        names = [name] if name is not None else self.lists
        return next(((n, figures[n]) for n in names if n in figures), None)


def read_facts(run_dir: Path) -> Facts:
    """Read a run directory.

    Raises:
        RunError: manifest.json is missing or damaged.
    """
    notes: list[str] = []
    manifest = _manifest(run_dir)
    evaluation = _optional_json(run_dir / "evaluation.json", notes)
    budget = _optional_json(run_dir / BUDGET, notes)
    curves = _curves(run_dir / "metrics.csv", notes)
    # A run whose data set is gone still gets a report, without pictures.
    dataset = None
    try:
        dataset = reopen_data(manifest)
    except (DataError, OSError) as error:
        notes.append(
            "The data set of this run cannot be opened here, so the report has no images:"
            f" {str(error).splitlines()[0]}"
        )
    return Facts(run_dir, manifest, evaluation, curves, dataset, tuple(notes), budget)


def read_budget(run_dir: Path) -> dict[str, Any]:
    """``budget.json`` of a run; empty where there is none or it cannot be read."""
    return _optional_json(run_dir / BUDGET, [])


def _manifest(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{run_dir} has no manifest.json",
            "a run directory",
            "type the folder of fit --run",
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read: {error}", "the JSON that wsss-trainer wrote"
        ) from error
    if not isinstance(manifest, dict):
        raise RunError(f"{path} holds no JSON object", "the JSON that wsss-trainer wrote")
    return manifest


def _optional_json(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read ({error}); the report is written without it.")
        return {}


def _curves(path: Path, notes: list[str]) -> Curves:
    curves: Curves = {}
    if not path.exists():
        return curves
    faults = 0
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                point = (float(row["step"]), float(row["value"]))
                stage = curves.setdefault(str(row["stage"]), {})
                stage.setdefault(str(row["name"]), []).append(point)
            except (KeyError, TypeError, ValueError):
                faults += 1
    if faults:
        notes.append(f"{faults} damaged lines of metrics.csv were left out.")
    return curves

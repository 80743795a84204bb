"""What a run directory says about itself, read for the report. Every part but the manifest may be
missing.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.dataset import Dataset
from trainer.data.opening import reopen_data
from trainer.errors import DataError, RunError

#: Evaluated stages in the order of the path: key of evaluation.json, name on the page.
STAGES = {
    "cam": "CAM",
    "refined": "Refined masks",
    "segment": "Segmenter",
    "segment_full": "Full supervision",
}
#: Stages of the manifest that every complete run has.
PIPELINE = ("classify", "cams", "refine", "segment", "evaluate")
#: Every stage between the preparations of a method and the last figures, in the order of work.
_ORDER = (
    "classify",
    "cams",
    "affinity_labels",
    "affinity",
    "irn_labels",
    "irn",
    "walk",
    "refine",
    "segment_train",
    "segment",
    "segment_full_train",
    "segment_full",
    "evaluate",
)
_CHOSEN = {
    "fixed": "set beforehand",
    "oracle": "oracle: best on this very list",
    "label_free": "chosen without masks",
}

Curves = dict[str, dict[str, list[tuple[float, float]]]]


@dataclass(frozen=True)
class Facts:
    """One run directory.

    Attributes:
        run: the directory.
        manifest: manifest.json.
        evaluation: stage -> list -> figures, as evaluation.json has them.
        curves: stage -> metric -> ``(step, value)`` in file order.
        dataset: the data of the run, or None when it cannot be opened here.
        notes: what could not be read, in sentences.
    """

    run: Path
    manifest: Mapping[str, Any]
    evaluation: Mapping[str, Mapping[str, Mapping[str, Any]]]
    curves: Curves
    dataset: Dataset | None
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Foreground class names, from the data set or else from the manifest."""
        return (
            self.dataset.classes
            if self.dataset
            else tuple(self.manifest.get("data", {}).get("classes", ()))
        )

    @property
    def lists(self) -> list[str]:
        """Lists that something was evaluated on, val first."""
        names = dict.fromkeys(name for stage in STAGES for name in self.evaluation.get(stage, {}))
        return sorted(names, key=lambda name: (name != "val", not name.startswith("val")))

    @property
    def stages(self) -> list[str]:
        """Stages of the manifest and those that every run has, in the order of work; preparations
        of a method first.
        """
        recorded = list(self.manifest.get("stages", {}))
        wanted = {*recorded, *PIPELINE}
        if "cams" in recorded and "classify" not in recorded:
            wanted -= {"classify"}  # The maps were imported.
        return [name for name in recorded if name not in _ORDER] + [
            name for name in _ORDER if name in wanted
        ]

    def figures(self, stage: str, name: str | None = None) -> tuple[str, Mapping[str, Any]] | None:
        """``(list, figures)`` of an evaluated stage: on list ``name``, or on the first that it has,
        val first.
        """
        found = self.evaluation.get(stage, {})
        names = [name] if name is not None else self.lists
        return next(((n, found[n]) for n in names if n in found), None)


def read_facts(run_dir: Path) -> Facts:
    """Read everything that is there.

    Raises:
        RunError: no readable manifest.json, so this is no run directory.
    """
    notes: list[str] = []
    manifest = _manifest(run_dir)
    evaluation = _optional_json(run_dir / "evaluation.json", notes)
    curves = _curves(run_dir / "metrics.csv", notes)
    dataset = None
    try:
        dataset = reopen_data(manifest)
    except (DataError, OSError) as error:
        notes.append(
            "The data set of this run cannot be opened here, so there are no images:"
            f" {str(error).splitlines()[0]}"
        )
    return Facts(run_dir, manifest, evaluation, curves, dataset, tuple(notes))


def finite(value: object) -> float | None:
    """``value`` as a float, or None where there is no finite number."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def percent(value: object) -> str:
    """0.468 as ``46.8``; a dash where there is no number."""
    number = finite(value)
    return "–" if number is None else f"{100 * number:.1f}"


def interval(figures: Mapping[str, Any]) -> str:
    """``46.0 to 50.0``, what chance in the choice of images leaves of a mean IoU in percent, or an
    empty text.
    """
    found = figures.get("miou_interval")
    ends = (
        (finite(found.get("low")), finite(found.get("high")))
        if isinstance(found, Mapping)
        else (None, None)
    )
    return "" if None in ends else f"{percent(ends[0])} to {percent(ends[1])}"


def duration(seconds: object) -> str:
    """``8.2 s``, ``3 min 05 s`` or ``1 h 12 min``; a dash where there is no number."""
    number = finite(seconds)
    if number is None:
        return "–"
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def moment(iso: object) -> str:
    """``2026-11-21T03:58:40+00:00`` as ``21 November 2026, 03:58 UTC``; anything else as it is."""
    try:
        when = datetime.datetime.fromisoformat(str(iso))
    except ValueError:
        return str(iso)
    return f"{when.day} {when:%B %Y, %H:%M} {when.tzname() or ''}".rstrip()


def memory(megabytes: object) -> str:
    """``850 MB`` or ``1.4 GB``; a dash where there is no number."""
    number = finite(megabytes)
    if number is None:
        return "–"
    return f"{number:.0f} MB" if number < 1000 else f"{number / 1024:.1f} GB"


def chosen(figures: Mapping[str, Any]) -> str:
    """Who chose the background threshold, in words: a list is named when its masks did."""
    source = figures.get("threshold_from")
    return (
        _CHOSEN.get(str(source), f"chosen on {source} masks") if source else "source not recorded"
    )


def threshold(figures: Mapping[str, Any]) -> str:
    """The background threshold and who chose it, or an empty text."""
    value = finite(figures.get("threshold"))
    return "" if value is None else f"threshold {value:.2f}, {chosen(figures)}"


def _manifest(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{run_dir} has no manifest.json",
            "a run directory",
            "pass the folder given to fit --run",
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
    damaged = 0
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                point = (float(row["step"]), float(row["value"]))
                curves.setdefault(str(row["stage"]), {}).setdefault(str(row["name"]), []).append(
                    point
                )
            except (KeyError, TypeError, ValueError):
                damaged += 1
    if damaged:
        notes.append(f"{damaged} damaged lines of metrics.csv were left out.")
    return curves

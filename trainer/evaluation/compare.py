"""Two or more runs on the same images: which is better, by how much, on which classes and images,
and is the comparison fair?
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import ConfigError, DataError, RunError
from trainer.evaluation.bootstrap import SAMPLES, Paired, compare_paired
from trainer.evaluation.conditions import differences
from trainer.evaluation.figures import restated
from trainer.evaluation.image_counts import ImageCounts
from trainer.evaluation.measure import Entries, Figures, current_evaluation
from trainer.evaluation.metrics import DEFAULT
from trainer.evaluation.over_seeds import mean_figures, over_seeds, read_counts, seed_evaluations
from trainer.seed_folder import is_seed_folder

STAGES = ("cam", "refined", "segment", "segment_full")
FIGURES = (
    "miou",
    "seeds",
    "miou_interval",
    "iou",
    "boundary_f",
    "images",
    "threshold",
    "threshold_from",
    "protocol",
)


@dataclass(frozen=True)
class Side:
    """A run, or a folder that ``eval --out`` wrote.

    Attributes:
        name: short, and different from that of every other side.
        path: the folder.
        evaluation: content of its ``evaluation.json``; of several seeds, their means.
        seeds: folder -> ``evaluation.json`` of each run where the side is a folder of several
            seeds; empty otherwise.
    """

    name: str
    path: Path
    evaluation: Entries
    seeds: Mapping[Path, Entries] = field(default_factory=dict)

    def figures(self, stage: str, list_name: str) -> list[Figures]:
        """Confusions of single images and the entry of every run."""
        runs = self.seeds or {self.path: self.evaluation}
        return [
            (read_counts(path, stage, list_name), lines[stage][list_name])
            for path, lines in runs.items()
            if list_name in lines.get(stage, {})
        ]

    def entry(self, figures: Sequence[Figures], convention: str) -> dict[str, Any]:
        """The entry of ``figures`` in a convention; over seeds where the side has some."""
        if self.seeds:
            return mean_figures(figures, convention)
        ((counts, entry),) = figures
        return restated(entry, counts, convention)

    def pictured(self, stage: str, list_name: str) -> tuple[Path, dict[str, Any]]:
        """The run that pictures are taken from, and its entry."""
        runs = self.seeds or {self.path: self.evaluation}
        have = ((p, e[stage][list_name]) for p, e in runs.items() if list_name in e.get(stage, {}))
        return next(have)


@dataclass(frozen=True)
class Match:
    """One run against the first on one stage and list.

    Attributes:
        name: of the run.
        entry: its figures, in the convention asked for.
        against_first: the difference from the first run on the images that both have; None for
            the first run itself.
        flags: what differs between the two protocols, in sentences.
        changes: images of the largest change, ``{"id", "before", "after"}``, gains and losses.
    """

    name: str
    entry: dict[str, Any]
    against_first: Paired | None
    flags: tuple[str, ...]
    changes: tuple[dict[str, Any], ...]

    def report(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "run": self.name,
            **{key: self.entry.get(key) for key in FIGURES},
            "deviation": self.entry.get("deviation", {}).get("miou"),
            "against_first": self.against_first and self.against_first.report(),
            "flags": self.flags,
            "changes": self.changes,
        }


@dataclass(frozen=True)
class Line:
    """The figures of a stage on a list, run by run; runs that lack them are left out."""

    stage: str
    list: str
    matches: tuple[Match, ...]


def open_sides(paths: Sequence[Path]) -> list[Side]:
    """Runs, measured now where something changed, and folders of ``eval --out``.

    Raises:
        ConfigError: fewer than two, or the same one twice.
        RunError: neither a run nor such a folder.
    """
    if len({path.resolve() for path in paths}) < 2:
        raise ConfigError(
            "compare has only one run", "two or more", "wsss-trainer compare runs/a runs/b"
        )
    return [_side(name, path) for name, path in zip(_names(paths), paths)]


def _side(name: str, path: Path) -> Side:
    if is_seed_folder(path):
        seeds = seed_evaluations(path)
        return Side(name, path, over_seeds(seeds), seeds)
    return Side(name, path, _evaluation(path))


def _evaluation(path: Path) -> dict[str, dict[str, Any]]:
    if (path / "manifest.json").exists():
        return current_evaluation(path)
    file = path / "evaluation.json"
    try:
        content: dict[str, dict[str, Any]] = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is no run and holds no figures",
            "a run, or a folder that eval --out wrote",
            f"wsss-trainer eval {path} --data DATA --out figures/ for a folder of masks or maps",
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} cannot be read: {error}", "the file of eval --out", "measure that folder again"
        ) from error
    return content


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ from each other."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("the same run twice", "different runs")


def compare(
    sides: Sequence[Side],
    convention: str = DEFAULT,
    samples: int = SAMPLES,
    seed: int = 0,
    changes: int = 8,
) -> list[Line]:
    """Every stage and list that the first run and another one have.

    Args:
        sides: the first is the one that the others are compared with.
        convention: of ``metrics.CONVENTIONS``.
        samples: of the bootstrap.
        seed: of the bootstrap.
        changes: how many of the most changed images to name, half of them gains.

    Raises:
        DataError: the classes differ, nothing is in common, or counts are missing.
    """
    first, lines = sides[0], []
    for stage in STAGES:
        for name, entry in first.evaluation.get(stage, {}).items():
            others = [side for side in sides[1:] if name in side.evaluation.get(stage, {})]
            if not others:
                continue
            figures = first.figures(stage, name)
            matches = [Match(first.name, first.entry(figures, convention), None, (), ())]
            resample = partial(compare_paired, convention=convention, samples=samples, seed=seed)
            matches += [
                _match(side, stage, name, entry, figures, resample, changes) for side in others
            ]
            lines.append(Line(stage, name, tuple(matches)))
    if not lines:
        have = "; ".join(f"{side.name}: {_stages(side)}" for side in sides)
        raise DataError(
            f"the first run has no stage and list in common with another ({have})",
            "runs with figures of one stage on one list",
        )
    return lines


def _stages(side: Side) -> str:
    names = [f"{stage} {name}" for stage, lines in side.evaluation.items() for name in lines]
    return ", ".join(names) or "nothing"


def _match(
    side: Side,
    stage: str,
    name: str,
    before: dict[str, Any],
    first: Sequence[Figures],
    resample: partial[Paired],
    changes: int,
) -> Match:
    figures = side.figures(stage, name)
    theirs, ours = [counts for counts, _ in first], [counts for counts, _ in figures]
    if ours[0].class_names != theirs[0].class_names:
        raise DataError(
            f"{side.name} has the classes {', '.join(ours[0].class_names)}, the first run"
            f" {', '.join(theirs[0].class_names)}",
            "runs on the same classes",
        )
    there = set.intersection(*(set(counts.ids) for counts in (*theirs, *ours)))
    both = [i for i in theirs[0].ids if i in there]
    if not both:
        raise DataError(
            f"{stage} {name} of {side.name} has no image in common with the first run",
            "the same list",
        )
    a, b = ([counts.select(both) for counts in runs] for runs in (theirs, ours))
    entry = side.evaluation[stage][name]
    flags = [*_images(theirs[0], ours[0], a[0], b[0]), *differences(before, entry)]
    flags += _seeds(before, entry)
    entry = side.entry(figures, resample.keywords["convention"])
    return Match(side.name, entry, resample(a, b), tuple(flags), tuple(_changes(a, b, changes)))


def _seeds(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A caution where only one of the two sides says how much the seed matters."""
    counts = [len(entry.get("seeds", "1")) for entry in (before, after)]
    if max(counts) == 1 or counts[0] == counts[1]:
        return []
    return [f"other number of seeds: {counts[0]} | {counts[1]}"]


def _images(first: ImageCounts, other: ImageCounts, a: ImageCounts, b: ImageCounts) -> list[str]:
    flags = []
    if not len(a.ids) == len(first.ids) == len(other.ids):
        both = f"compared on the {len(a.ids)} that both have"
        flags.append(f"other images: {len(first.ids)} and {len(other.ids)}, {both}")
    # Counts hold no masks, but a corrected mask nearly always has other numbers of pixels.
    mismatches = int((a.margins().truth != b.margins().truth).any(1).sum())
    if mismatches:
        flags.append(
            f"other true masks: {mismatches} of {len(a.ids)} images have different true pixels on"
            " the two sides"
        )
    return flags


def _changes(
    a: Sequence[ImageCounts], b: Sequence[ImageCounts], count: int
) -> list[dict[str, Any]]:
    """Images of the largest change; of several seeds, of their mean."""
    before, after = (np.mean([run.miou() for run in runs], axis=0) for runs in (a, b))
    ids = a[0].ids
    # Stable, so that images of equal change keep their order and the page is the same every time.
    order = np.argsort(before - after, kind="stable")
    gains = [i for i in order[: count // 2] if after[i] > before[i]]
    losses = [i for i in order[::-1][: count - count // 2] if after[i] < before[i]]
    return [
        {"id": ids[i], "before": round(float(before[i]), 6), "after": round(float(after[i]), 6)}
        for i in (*gains, *losses)
    ]

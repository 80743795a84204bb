"""Two or more runs on the same images: is the one better, by how much, on which classes and images,
and is it fair?
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import ConfigError, DataError, RunError
from trainer.evaluation.bootstrap import SAMPLES, Paired, compare_paired
from trainer.evaluation.figures import restated
from trainer.evaluation.image_counts import ImageCounts, counts_path
from trainer.evaluation.measure import current_evaluation
from trainer.evaluation.metrics import DEFAULT

STAGES = ("cam", "refined", "segment", "segment_full")
#: Conditions that make a difference of methods unfair, in the words of the message.
PROTOCOL = {
    "labels": "number of classes",
    "truth": "true masks",
    "tags": "tags given to the images",
    "views": "scales",
    "crf": "CRF",
    "threshold_from": "threshold source",
    "initial_weights": "initial weights",
    "train_list": "training list",
    "tags_from": "origin of the tags",
    "segmenter": "segmenter",
}
CHANGES = 8
"""How many of the most changed images are named, half of them gains."""


@dataclass(frozen=True)
class Side:
    """A run, or a folder that ``eval --out`` wrote.

    Attributes:
        name: short, unique among those compared.
        path: the folder.
        evaluation: content of its ``evaluation.json``.
    """

    name: str
    path: Path
    evaluation: dict[str, dict[str, Any]]

    def counts(self, stage: str, list_name: str) -> ImageCounts:
        """Confusions of single images."""
        return ImageCounts.read(counts_path(self.path, stage, list_name))


@dataclass(frozen=True)
class Match:
    """One run against the first on one stage and list.

    Attributes:
        name: of the run.
        entry: its figures, in the convention asked for.
        paired: the difference from the first on the images that both have; None for the first
            itself.
        flags: what was not the same, in sentences.
        changes: images of the largest change, ``{"id", "before", "after"}``, gains and losses.
    """

    name: str
    entry: dict[str, Any]
    paired: Paired | None
    flags: tuple[str, ...]
    changes: tuple[dict[str, Any], ...]

    def report(self) -> dict[str, Any]:
        """Plain JSON values."""
        kept = (
            "miou",
            "miou_interval",
            "iou",
            "boundary_f",
            "images",
            "threshold",
            "threshold_from",
            "protocol",
        )
        compared = None if self.paired is None else self.paired.report()
        figures = {key: self.entry.get(key) for key in kept}
        return {
            "run": self.name,
            **figures,
            "against_first": compared,
            "flags": self.flags,
            "changes": self.changes,
        }


@dataclass(frozen=True)
class Line:
    """What was measured of a stage on a list, run by run; runs without it are left out."""

    stage: str
    list: str
    matches: tuple[Match, ...]


def open_sides(paths: Sequence[Path]) -> list[Side]:
    """Runs, measured now where something changed, and folders of ``eval --out``.

    Raises:
        ConfigError: fewer than two.
        RunError: something else.
    """
    if len({path.resolve() for path in paths}) < 2:
        raise ConfigError(
            "one run alone cannot be compared", "two or more", "wsss-trainer compare runs/a runs/b"
        )
    return [
        Side(name, path, _evaluation(path)) for name, path in zip(_names(paths), paths, strict=True)
    ]


def _evaluation(path: Path) -> dict[str, dict[str, Any]]:
    if (path / "manifest.json").exists():
        return current_evaluation(path)
    kept = path / "evaluation.json"
    try:
        content: dict[str, dict[str, Any]] = json.loads(kept.read_text())
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is neither a run nor kept figures",
            "a run, or a folder that eval --out wrote",
            f"wsss-trainer eval {path} --data DATA --out kept/ for a folder of masks or maps",
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(
            f"{kept} cannot be read: {error}", "what eval --out wrote", "measure that folder again"
        ) from error
    return content


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths that tell them apart."""
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
    changes: int = CHANGES,
) -> list[Line]:
    """Every stage and list that the first run and another one have.

    Args:
        sides: the first is what the others are compared with.
        convention: of ``metrics.CONVENTIONS``.
        samples: of the bootstrap.
        seed: of the bootstrap.
        changes: how many of the most changed images to name.

    Raises:
        DataError: other classes, nothing in common, or counts that are missing.
    """
    first, lines = sides[0], []
    for stage in STAGES:
        for name, entry in first.evaluation.get(stage, {}).items():
            others = [side for side in sides[1:] if name in side.evaluation.get(stage, {})]
            if not others:
                continue
            counts = first.counts(stage, name)
            matches = [Match(first.name, restated(entry, counts, convention), None, (), ())]
            resample = partial(compare_paired, convention=convention, samples=samples, seed=seed)
            matches += [
                _match(side, stage, name, entry, counts, resample, changes) for side in others
            ]
            lines.append(Line(stage, name, tuple(matches)))
    if not lines:
        have = "; ".join(f"{side.name}: {_stages(side)}" for side in sides)
        raise DataError(
            f"the first run has no stage and list in common with another ({have})", "the same lists"
        )
    return lines


def _stages(side: Side) -> str:
    return (
        ", ".join(f"{stage} {name}" for stage, lines in side.evaluation.items() for name in lines)
        or "nothing"
    )


def _match(
    side: Side,
    stage: str,
    name: str,
    before: dict[str, Any],
    first: ImageCounts,
    resample: partial[Paired],
    changes: int,
) -> Match:
    entry, counts = side.evaluation[stage][name], side.counts(stage, name)
    if counts.class_names != first.class_names:
        raise DataError(
            f"{side.name} has the classes {', '.join(counts.class_names)}, the first run"
            f" {', '.join(first.class_names)}",
            "runs on the same classes",
        )
    there = set(counts.ids)
    both = [i for i in first.ids if i in there]
    if not both:
        raise DataError(
            f"{stage} {name} of {side.name} has no image in common with the first run",
            "the same list",
        )
    a, b = first.select(both), counts.select(both)
    flags = [*_images(first, counts, a, b), *_differences(before, entry)]
    entry = restated(entry, counts, resample.keywords["convention"])
    return Match(side.name, entry, resample(a, b), tuple(flags), tuple(_changes(a, b, changes)))


def _images(first: ImageCounts, other: ImageCounts, a: ImageCounts, b: ImageCounts) -> list[str]:
    """Whether the lists are the same, and whether the true masks of the images that both have
    are.
    """
    flags = []
    if not len(a.ids) == len(first.ids) == len(other.ids):
        both = f"compared on the {len(a.ids)} that both have"
        flags.append(f"other images: {len(first.ids)} and {len(other.ids)}, {both}")
    otherwise = int((a.margins().truth != b.margins().truth).any(1).sum())
    if otherwise:
        flags.append(
            f"other true masks: {otherwise} of {len(a.ids)} images have not the same true pixels on"
            " both sides"
        )
    return flags


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = before.get("conditions", {}), after.get("conditions", {})
    both = {words: (old.get(key), new.get(key)) for key, words in PROTOCOL.items()}
    flags = [
        f"other {words}: {a} | {b}"
        for words, (a, b) in both.items()
        if a != b and None not in (a, b)
    ]
    unknown = [
        words
        for words, values in both.items()
        if None in values and words != PROTOCOL["threshold_from"]
    ]
    sources = both[PROTOCOL["threshold_from"]]
    if sources[0] != sources[1] and None in sources:
        unknown.append(PROTOCOL["threshold_from"])
    return flags + (
        [f"not recorded, so perhaps not the same: {', '.join(unknown)}"] if unknown else []
    )


def _changes(a: ImageCounts, b: ImageCounts, count: int) -> list[dict[str, Any]]:
    """The largest gains and the largest losses, half of the places each."""
    before, after = a.miou(), b.miou()
    order = np.argsort(before - after, kind="stable")
    gains = [i for i in order[: count // 2] if after[i] > before[i]]
    losses = [i for i in order[::-1][: count - count // 2] if after[i] < before[i]]
    return [
        {"id": a.ids[i], "before": round(float(before[i]), 6), "after": round(float(after[i]), 6)}
        for i in (*gains, *losses)
    ]

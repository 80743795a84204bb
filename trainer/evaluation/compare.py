"""Two or more runs on the same images: which is better, by how much, on which classes and images,
and is the comparison fair?
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
# Conditions that must agree for a fair comparison of methods, in the words of the message.
PROTOCOL = {
    "labels": "number of classes",
    "truth": "true masks",
    "tags": "use of the images' tags",
    "views": "scales",
    "crf": "CRF",
    "threshold_from": "origin of the threshold",
    "initial_weights": "initial weights",
    "train_list": "training list",
    "tags_from": "origin of the tags",
    "masks": "number of true masks that train",
    "segmenter": "segmenter",
}
FIGURES = (
    "miou",
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
    return [Side(name, path, _evaluation(path)) for name, path in zip(_names(paths), paths)]


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
    flags = []
    if not len(a.ids) == len(first.ids) == len(other.ids):
        both = f"compared on the {len(a.ids)} that both have"
        flags.append(f"other images: {len(first.ids)} and {len(other.ids)}, {both}")
    # Counts hold no masks, but a corrected mask nearly always has other numbers of pixels.
    differences = int((a.margins().truth != b.margins().truth).any(1).sum())
    if differences:
        flags.append(
            f"other true masks: {differences} of {len(a.ids)} images have different true pixels on"
            " the two sides"
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
    # Segmenters have no threshold: there None on both sides is a value like others.
    without = PROTOCOL["threshold_from"]
    unknown = [
        words for words, (a, b) in both.items() if None in (a, b) and (words != without or a != b)
    ]
    return flags + (
        [f"not recorded, so perhaps different: {', '.join(unknown)}"] if unknown else []
    )


def _changes(a: ImageCounts, b: ImageCounts, count: int) -> list[dict[str, Any]]:
    before, after = a.miou(), b.miou()
    # Stable, so that images of equal change keep their order and the page is the same every time.
    order = np.argsort(before - after, kind="stable")
    gains = [i for i in order[: count // 2] if after[i] > before[i]]
    losses = [i for i in order[::-1][: count - count // 2] if after[i] < before[i]]
    return [
        {"id": a.ids[i], "before": round(float(before[i]), 6), "after": round(float(after[i]), 6)}
        for i in (*gains, *losses)
    ]

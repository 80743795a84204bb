"""Signs of a bad result, looked for as soon as a stage has ended: what was found, what to try."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from trainer.context import Context
from trainer.data.dataset import IGNORE, Record
from trainer.errors import some
from trainer.evaluation.image_figures import no_better_than_chance
from trainer.evaluation.measure_classifier import CLASSIFIER
from trainer.evaluation.over_lists import mask_reader

FALL = 0.98
"""A loss that ends above this share of its start has not fallen."""
RISE = 1.5
"""A loss that ends above this multiple of its start has diverged."""
LEAST_LOGS = 6
"""With fewer logged losses, one in ten steps, start and end are the same."""
EVERYTHING, NOTHING = 0.97, 0.0002
"""Shares of pixels from which masks cover all or nothing. The median crack of an industrial image
covers 0.3 % of it.
"""
STABLE = 0.2
"""Agreement of the views of an image (see ``stability``) under which maps do not show objects."""
PHANTOMS, FREE = 0.3, 5
"""Share of the images without any class from which on the segmenter sees objects that are none, and
the fewest such images that say so.
"""
SAMPLE, OF_CLASS = 400, 20
"""Images that are looked at, and of each class at least: 50,000 masks would take minutes."""


def signs(stage: str, context: Context) -> list[str]:
    """What a stage that has just ended shows of a bad result, in sentences; empty if nothing."""
    # A round of self-training is looked at as the training that it is.
    if stage.startswith("segment_round") and stage.endswith("_train"):
        return list(_about_loss(stage.removesuffix("_train"), "segment", context))
    look = _LOOKS.get(stage)
    return list(look(context)) if look else []


def _about_loss(stage: str, section: str, context: Context) -> Iterator[str]:
    losses = logged_losses(context.run.path / "metrics.csv", stage)
    part = len(losses) // 5 or 1
    if len(losses) < LEAST_LOGS:
        return
    start, end = median(losses[:part]), median(losses[-part:])
    if end > FALL * start:
        rate = getattr(context.configs, section).lr
        hint = (
            f"try a lower rate (--set {section}.lr=..., it was {rate:g}), or bound the gradients"
            f" (--set {section}.clip=1)"
            if end > RISE * start
            else f"try another rate (--set {section}.lr=..., it was {rate:g}), more updates (--set"
            f" {section}.updates=...), or wsss-trainer check: the tags may not fit the images"
        )
        yield f"the loss did not fall: {start:.4g} at the start, {end:.4g} at the end; {hint}"


def logged_losses(path: Path, stage: str) -> list[float]:
    """The losses that a stage logged in ``metrics.csv``, in order."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == stage]
    return [float(row["value"]) for row in rows if row["name"] == "loss"]


def _about_maps(context: Context) -> Iterator[str]:
    shared = context.run.metrics("cams").get("stability", 1.0)
    if shared < STABLE:
        # Finer features cannot be had twice.
        fine = context.configs.classify.detail == "fine"
        hint = "larger views (--size)" if fine else "--detail fine, or larger views (--size)"
        yield (
            f"the maps of different scales agree little (IoU {shared:.2f}): objects may be smaller"
            f" than a cell of the map; look at the maps in the report, and try {hint}"
        )


def _about_scores(context: Context) -> Iterator[str]:
    path = context.run.path / "evaluation.json"
    entries = json.loads(path.read_text()).get(CLASSIFIER, {}) if path.exists() else {}
    for name, entry in entries.items():
        # Images that trained it are known by heart.
        if entry["trained_on"]:
            continue
        weak = {k: v for k, v in entry["classes"].items() if no_better_than_chance(v)}
        if no_better_than_chance(entry["any"]):
            yield f"on {name!r} the classifier finds images with a class {_chance([entry['any']])}"
        if weak:
            yield f"on {name!r} the classifier finds {some(weak)} {_chance([*weak.values()])}"


def _chance(figures: Sequence[Mapping[str, Any]]) -> str:
    values = some(f"{entry['auroc']:.2f}" for entry in figures)
    return (
        f"no better than chance (AUROC {values}; 0.5 is not below the 95 % interval); look at"
        " the tags and the maps in the report, and try more images, larger ones (--size) or more"
        " updates (--set classify.updates=...)"
    )


def _about_masks(context: Context) -> Iterator[str]:
    records, folder = context.labelled, context.run.path / "masks"
    covered = Cover.of(context, records, folder)
    hint = "look at the maps in the report, and try --set refine.threshold_from=fixed with a"
    pixels = f"{100 * covered.share:.2g} % of the pixels of images with tags"
    if covered.share > EVERYTHING:
        yield f"the masks cover {pixels}; {hint} higher --set refine.threshold=..."
    elif covered.share < NOTHING:
        yield f"the masks cover {pixels}; {hint} lower --set refine.threshold=..."
    elif covered.losers:
        yield f"no mask shows {some(covered.losers)}, {_about_losers(context)}"


def _about_predictions(stage: str, context: Context) -> Iterator[str]:
    for name in context.measured_lists:
        records = context.dataset.subset(name)
        folder = context.run.path / stage / "predictions" / name
        negatives = [record for record in records if record.is_negative]
        yield from _about_negatives(name, negatives, folder, context)
        records = [record for record in records if record.tags]
        if not records:
            continue
        covered = Cover.of(context, records, folder)
        if not covered.share:
            others = ("more updates (--set segment.updates=...)", "a lower refine.threshold")
            hint = _untried(context, {"segment.balanced": True}, *others)
            yield (
                f"on {name!r} the segmenter predicts background alone; look at the masks that"
                f" trained it in the report, and try {hint}"
            )
        elif covered.losers:
            yield (
                f"on {name!r} the segmenter predicts no pixel of {some(covered.losers)},"
                f" {_about_losers(context)}"
            )


def _about_negatives(
    name: str, records: Sequence[Record], folder: Path, context: Context
) -> Iterator[str]:
    read, sample = mask_reader(folder), records[:: len(records) // SAMPLE + 1]
    masks = (read(record) for record in sample)
    count = sum(bool(((mask > 0) & (mask < IGNORE)).any()) for mask in masks)
    if len(sample) >= FREE and count > PHANTOMS * len(sample):
        settings = {"segment.verdict": True, "segment.balanced": False}
        hint = _untried(context, settings, "wsss-trainer ask for a few true masks")
        yield (
            f"on {name!r} the segmenter sees objects in {count} of {len(sample)} images that show"
            f" no class; try {hint}"
        )


def _about_losers(context: Context) -> str:
    settings = {"classify.balance": True, "segment.balance": True}
    hint = _untried(context, settings, "more images of them")
    return (
        "though images have the tag; look at the maps of these classes in the report, and try"
        f" {hint}"
    )


def _untried(context: Context, settings: Mapping[str, bool], *others: str) -> str:
    """What to try: those settings that the run does not have yet, or one of the others."""
    missing = []
    for name, value in settings.items():
        section, _, knob = name.partition(".")
        if getattr(getattr(context.configs, section), knob) != value:
            missing.append(f"--set {name}={'on' if value else 'off'}")
    *first, last = [*missing, *others]
    return f"{', '.join(first)}, or {last}" if first else last


class Cover(NamedTuple):
    """What masks cover of images with tags.

    Attributes:
        share: of the pixels that are no background.
        losers: classes that images have the tag of, and no pixel of these images has.
    """

    share: float
    losers: list[str]

    @classmethod
    def of(cls, context: Context, records: Sequence[Record], folder: Path) -> Cover:
        """Of the masks in a folder; many images are sampled."""
        read, pixels, foreground = mask_reader(folder), 0, 0
        wins: dict[int, bool] = {}
        for record in _sample(records):
            counts = np.bincount(read(record).reshape(-1), minlength=256)
            pixels += int(counts.sum())
            foreground += int(counts[1:IGNORE].sum())
            for k in record.tags:
                wins[k] = wins.get(k, False) or bool(counts[k + 1])
        losers = [context.dataset.classes[k] for k in sorted(wins) if not wins[k]]
        return cls(foreground / max(1, pixels), losers)


def _sample(records: Sequence[Record]) -> list[Record]:
    """Evenly spaced records, and some of each class that these may lack."""
    sample = {record.id: record for record in records[:: len(records) // SAMPLE + 1]}
    counts: Counter[int] = Counter()
    for record in records:
        if any(counts[k] < OF_CLASS for k in record.tags):
            counts.update(record.tags)
            sample[record.id] = record
    return list(sample.values())


_LOOKS: dict[str, Callable[[Context], Iterator[str]]] = {
    "classify": lambda context: _about_loss("classify", "classify", context),
    "cams": _about_maps,
    "refine": _about_masks,
    "segment_train": lambda context: _about_loss("segment", "segment", context),
    "segment_full_train": lambda context: _about_loss("segment_full", "segment", context),
    "segment": lambda context: _about_predictions("segment", context),
    "segment_full": lambda context: _about_predictions("segment_full", context),
    "evaluate": _about_scores,
}

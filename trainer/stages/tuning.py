"""What ``refine`` chooses on the true masks that train: the threshold and the dense CRF.

They are training data, so their figures say nothing of other images. But masks that fit them better
fit other images better, and the choice costs no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.context import Context
from trainer.data.dataset import Record
from trainer.data.tables.training_masks import LIST, TrainingMasks
from trainer.evaluation.metrics import Counts, confusion, mean_iou
from trainer.evaluation.threshold import Threshold
from trainer.pool import each_image
from trainer.refine.pseudo_masks import RefineConfig, image_and_cam, masks_at, pixel_limit
from trainer.refine.vote import Vote, make_vote

CRFS = ("P7", "P3", "P1", "none")
"""The dense CRFs that ``refine.crf=masks`` tries."""
STEPS = (0.6, 0.8, 1.0, 1.25, 1.6)
"""Thresholds to try, as multiples of the one that suits the maps alone: a CRF moves the best."""


class Tuning(NamedTuple):
    """The choice.

    Attributes:
        config: knobs, with the dense CRF that was chosen.
        threshold: the threshold.
        rows: every candidate with its mean IoU on the true masks.
    """

    config: RefineConfig
    threshold: Threshold
    rows: list[dict[str, Any]]


def tune(context: Context, maps: Path, start: Threshold) -> Tuning:
    """Choose the dense CRF and the threshold of the maps in a folder.

    Args:
        context: with true masks that train.
        maps: the folder.
        start: the best threshold of the maps alone on these masks.
    """
    config, masks = context.configs.refine, context.masks
    assert masks is not None
    candidates = list(_candidates(config))
    levels = [start.value]
    if config.score == "threshold" and start.source == LIST:
        levels = [min(max(step * start.value, 0.02), 0.95) for step in STEPS]
    images = [r for r in masks.images if r.id not in context.run.left_out]
    vote = make_vote(config, context.dataset, images)
    work = partial(_confusions, masks, maps, vote, candidates, levels)
    limit = pixel_limit(config.pixels)
    what, name = "images cannot be refined", attrgetter("id")
    counts = each_image(work, images, what, None, "tuning", True, name, limit)
    mious = mean_iou(np.sum(counts, 0))
    best, level = np.unravel_index(int(mious.argmax()), mious.shape)
    rows = [
        {"crf": _name(each), "threshold": round(at, 4), "miou": round(float(miou), 4)}
        for each, row in zip(candidates, mious, strict=True)
        for at, miou in zip(levels, row, strict=True)
    ]
    chosen = candidates[best]
    detail = f"background threshold {levels[level]:.2f}" if len(levels) > 1 else start.detail
    both = f"{detail} and {_words(chosen)}" if len(candidates) > 1 else detail
    text = f"{both}, tuned on the {len(images)} masks"
    return Tuning(chosen, Threshold(levels[level], start.source, text), rows)


def _candidates(config: RefineConfig) -> Sequence[RefineConfig]:
    """The knobs with each dense CRF to try."""
    if config.crf != "masks":
        return [config]
    if not config.with_crf:
        return [replace(config, crf=CRFS[0])]
    presets = [replace(config, crf=name) for name in CRFS if name != "none"]
    without = replace(presets[0], refine="none" if config.refine == "crf" else config.refine)
    return [*presets, replace(without, crf_after_walk=False)]


def _confusions(
    masks: TrainingMasks,
    maps: Path,
    vote: Vote,
    candidates: Sequence[RefineConfig],
    levels: Sequence[float],
    record: Record,
) -> Counts:
    """``int64 [candidates,levels,L,L]`` of one image."""
    labels = len(masks.classes) + 1
    image, cam = image_and_cam(record, maps, len(masks.classes))
    truth = masks.read_mask(record)
    return np.array(
        [
            [
                confusion(vote(record, image, mask), truth, labels)
                for mask in masks_at(image, cam, config, levels)
            ]
            for config in candidates
        ]
    )


def _name(config: RefineConfig) -> str:
    return config.crf if config.with_crf else "none"


def _words(config: RefineConfig) -> str:
    return f"dense CRF {config.crf}" if config.with_crf else "no CRF"

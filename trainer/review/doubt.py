"""How much a segmenter doubts its mask of an image, without a true mask.

The segmenter sees the image twice: as it is, and smaller and mirrored. The lower the mean
probability of a pixel's label, and the less the two views agree on it, the more often such pixels
are wrong; ``trainer.evaluation.calibration`` says how often. Where the refined mask that the
segmenter learnt from says otherwise, half of the certainty remains. Where the tags deny the label,
the pixel is wrong. The doubt of an image is the share of pixels that are expected to be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainer.data.dataset import IGNORE, Dataset, Record
from trainer.evaluation.calibration import (
    LEVELS,
    Calibration,
    Shares,
    calibrated,
    error_counts,
    reference_of,
)
from trainer.evaluation.image_counts import group_numbers
from trainer.progress import progress_bar
from trainer.report.pictures import shrink
from trainer.review.model import Model
from trainer.training.inference import Budget, Views, inference, iterate_views

SCALES = (1.0, 0.75)
"""Of the two views; the smaller one is mirrored."""
HALF = 0.5
"""What a disagreement leaves of the certainty."""
GRID = 4
UNCALIBRATED: Shares = np.linspace(1, 0, LEVELS)
Float = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Doubt:
    """The doubt of one image.

    Attributes:
        value: expected share of wrong pixels, 0..1.
        shortfall: 1 less its expected mean IoU, 0..1: what a correction may gain.
        views: share of pixels on which the views disagree.
        labels: share of pixels on which the refined mask says otherwise; None without such a mask.
        missing: class indices that the tags name and the mask lacks.
        surplus: class indices that the mask shows and the tags deny.
        layout: mean probability of each label on a grid of 4x4, ``float32 [L*16]``.
    """

    value: float
    shortfall: float
    views: float
    labels: float | None
    missing: tuple[int, ...]
    surplus: tuple[int, ...]
    layout: Float


def calibration_of(model: Model, dataset: Dataset) -> Calibration | None:
    """How often the two views are wrong at each certainty; None without a mask to compare with."""
    reference = reference_of(model.run, dataset)
    if reference is None:
        return None
    records, counts = [], []
    for record, chances in _views(model, reference.records, "calibration"):
        mask, certainty = _certainty(chances)
        records.append(record)
        counts.append(error_counts(mask, _levels(certainty), reference.read_mask(record)))
    return calibrated(counts, group_numbers(records), reference.source)


def doubts(
    model: Model,
    records: Sequence[Record],
    calibration: Calibration | None,
    title: str = "doubt",
) -> Iterator[tuple[Record, Doubt, Float]]:
    """Each record with its doubt and its doubt map ``float32 [h,w]``, in the order of sizes."""
    wrong = calibration.wrong if calibration else UNCALIBRATED
    for record, chances in _views(model, records, title):
        labels = model.refined_mask(record.id)
        height, width = chances.shape[2:]
        small = None if labels is None else shrink(labels, (width, height))
        yield record, *judge(chances, small, record, wrong)


def _views(model: Model, records: Sequence[Record], title: str) -> Iterator[tuple[Record, Float]]:
    """Each record with its probabilities in both views, ``float32 [2,L,h,w]``."""
    segmenter = model.segmenter
    config, views = segmenter.config, Views(SCALES, pixels=segmenter.pixels)
    with (
        inference(model.network, config.test_precision, model.device) as target,
        progress_bar(title, len(records)) as advance,
    ):
        for batch in iterate_views(
            records, views, Budget(4, config.pixels, side=config.side), config.workers
        ):
            chances = []
            for number, images in enumerate(batch.images):
                # One of the two is mirrored, so that they share as little as two views can.
                view = images.flip(3) if number else images
                chance = segmenter.probabilities(model.network, [view.to(target)], batch.working)
                chances.append(chance.flip(3) if number else chance)
            stack = torch.stack(chances, 1).float().cpu().numpy()
            for record, chance in zip(batch.records, stack, strict=True):
                yield record, chance
                advance()


def judge(
    chances_VLhw: Float,
    labels_hw: Pixels | None,
    record: Record,
    wrong_256: Shares = UNCALIBRATED,
) -> tuple[Doubt, Float]:
    """The doubt and the doubt map ``float32 [h,w]`` of what the views say.

    Args:
        chances_VLhw: probabilities of the L labels in each view.
        labels_hw: the refined mask, 255 where it says nothing; None without one.
        record: for its tags.
        wrong_256: share of wrong pixels at each certainty of the views.
    """
    mean = chances_VLhw.mean(0)
    mask, certainty = _certainty(chances_VLhw)
    sure = np.asarray(1 - wrong_256[_levels(certainty)], np.float32)
    against = np.zeros(mask.shape, bool)
    if labels_hw is not None:
        against = (labels_hw != mask) & (labels_hw != IGNORE)
        sure = sure * (1 - HALF * against)
    possible = {0, *(k + 1 for k in record.possible)}
    is_denied = ~np.isin(mask, list(possible))
    sure[is_denied] = 0
    present = set(np.unique(mask).tolist())
    tags = {k + 1 for k in record.tags}
    doubt = Doubt(
        float(1 - sure.mean()),
        _shortfall(mean, mask, sure, present | tags | {0}),
        float((chances_VLhw.argmax(1) != mask).any(0).mean()),
        None if labels_hw is None else float(against.mean()),
        tuple(sorted(k - 1 for k in tags - present)),
        tuple(sorted(k - 1 for k in present - possible)),
        _layout(mean),
    )
    return doubt, np.asarray(1 - sure, np.float32)


def _certainty(chances_VLhw: Float) -> tuple[Any, Float]:
    """The mask ``[h,w]``, and the mean probability of its labels, less where views disagree."""
    mean = chances_VLhw.mean(0)
    mask = mean.argmax(0)
    apart = (chances_VLhw.argmax(1) != mask).mean(0)
    certainty = np.take_along_axis(mean, mask[None], 0)[0] * (1 - HALF * apart)
    return mask, np.asarray(certainty, np.float32)


def _levels(certainty: Float) -> Pixels:
    """A certainty of 0..1 as 0..255."""
    return np.asarray((certainty * (LEVELS - 1)).round(), np.uint8)


def _shortfall(mean: Float, mask: Any, sure: Float, labels: set[int]) -> float:
    """1 less the expected mean IoU: a pixel of a label is right with its certainty, and one of
    another label belongs to it with its probability.
    """
    ious = []
    for label in labels:
        own = mask == label
        union = own.sum() + mean[label][~own].sum()
        ious.append(float(sure[own].sum() / max(union, 1e-6)))
    return 1 - float(np.mean(ious))


def _layout(mean_Lhw: Float) -> Float:
    grid = nn.functional.adaptive_avg_pool2d(torch.from_numpy(mean_Lhw), GRID)
    return np.asarray(grid.numpy().ravel(), np.float32)

"""How much a segmenter doubts its mask of an image, without a true mask.

The segmenter sees the image twice: as it is, and smaller and mirrored. A pixel is doubtful where
the mean probability of its label is low, where the two views disagree, and where the refined mask
that the segmenter learnt from says otherwise. It is wrong for certain where the tags deny its
label. The doubt of an image is the share by which its mean IoU is expected to fall short of 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainer.data.dataset import IGNORE, Record
from trainer.progress import progress_bar
from trainer.report.pictures import shrink
from trainer.review.model import Model
from trainer.training.inference import Budget, Views, inference, iterate_views

SCALES = (1.0, 0.75)
"""Of the two views; the smaller one is mirrored."""
HALF = 0.5
"""What a disagreement weighs: where views and masks both disagree, three of four doubts remain."""
GRID = 4
Float = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Doubt:
    """The doubt of one image.

    Attributes:
        value: expected shortfall of its mean IoU, 0..1.
        views: share of pixels on which the views disagree.
        labels: share of pixels on which the refined mask says otherwise; None without such a mask.
        missing: class indices that the tags name and the mask lacks.
        surplus: class indices that the mask shows and the tags deny.
        layout: mean probability of each label on a grid of 4x4, ``float32 [L*16]``.
    """

    value: float
    views: float
    labels: float | None
    missing: tuple[int, ...]
    surplus: tuple[int, ...]
    layout: Float


def doubts(
    model: Model, records: Sequence[Record], title: str = "doubt"
) -> Iterator[tuple[Record, Doubt, Float]]:
    """Each record with its doubt and its doubt map ``float32 [h,w]``, in the order of sizes."""
    segmenter = model.segmenter
    config, views = segmenter.config, Views(SCALES, pixels=segmenter.pixels)
    with (
        inference(model.network, config.test_precision, model.device) as target,
        progress_bar(title, len(records)) as advance,
    ):
        for batch in iterate_views(records, views, Budget(4, config.pixels), config.workers):
            chances = []
            for number, images in enumerate(batch.images):
                # One of the two is mirrored, so that they share as little as two views can.
                view = images.flip(3) if number else images
                chance = segmenter.probabilities(model.network, [view.to(target)], batch.working)
                chances.append(chance.flip(3) if number else chance)
            stack = torch.stack(chances, 1).float().cpu().numpy()
            height, width = batch.working
            for record, chance in zip(batch.records, stack, strict=True):
                labels = model.refined_mask(record.id)
                small = None if labels is None else shrink(labels, (width, height))
                yield record, *judge(chance, small, record)
                advance()


def judge(chances_VLhw: Float, labels_hw: Pixels | None, record: Record) -> tuple[Doubt, Float]:
    """The doubt and the doubt map ``float32 [h,w]`` of what the views say.

    Args:
        chances_VLhw: probabilities of the L labels in each view.
        labels_hw: the refined mask, 255 where it says nothing; None without one.
        record: for its tags.
    """
    mean = chances_VLhw.mean(0)
    mask = mean.argmax(0)
    apart = (chances_VLhw.argmax(1) != mask).mean(0)
    sure = np.take_along_axis(mean, mask[None], 0)[0] * (1 - HALF * apart)
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
        _shortfall(mean, mask, sure, present | tags | {0}),
        float((apart > 0).mean()),
        None if labels_hw is None else float(against.mean()),
        tuple(sorted(k - 1 for k in tags - present)),
        tuple(sorted(k - 1 for k in present - possible)),
        _layout(mean),
    )
    return doubt, (1 - sure).astype(np.float32)


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

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
from itertools import chain

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
from trainer.report.pictures import map_address, shrink
from trainer.review.model import Model
from trainer.training.inference import Budget, Views, inference, iterate_views

SCALES = (1.0, 0.75)
"""Of the two views; the smaller one is mirrored."""
HALF = 0.5
"""What a disagreement leaves of the certainty."""
GRID = 4
MAP_SIDE = 144
"""Of the picture of a doubt map, in pixels."""
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


@dataclass(frozen=True)
class Sight:
    """What two views say of an image, before a calibration says what their certainty is worth.

    Attributes:
        mask: the label of each pixel, ``uint8 [h,w]``.
        certainty: mean probability of this label, less where the views disagree, as 0..255,
            ``uint8 [h,w]``.
        outside: sum of the mean probability of each label over pixels of others, ``float [L]``.
        apart: share of pixels on which the views disagree.
        layout: see ``Doubt``.
    """

    mask: Pixels
    certainty: Pixels
    outside: Float
    apart: float
    layout: Float

    @classmethod
    def of(cls, chances_VLhw: Float) -> Sight:
        """What the probabilities of the L labels in each view say."""
        mean = chances_VLhw.mean(0)
        mask = mean.argmax(0)
        is_other = chances_VLhw.argmax(1) != mask
        certainty = np.take_along_axis(mean, mask[None], 0)[0] * (1 - HALF * is_other.mean(0))
        outside = [mean[label][mask != label].sum() for label in range(len(mean))]
        return cls(
            mask.astype(np.uint8),
            np.asarray((certainty * (LEVELS - 1)).round(), np.uint8),
            np.asarray(outside, np.float32),
            float(is_other.any(0).mean()),
            _layout(mean),
        )


@dataclass(frozen=True)
class Findings:
    """What a segmenter thinks of images.

    Attributes:
        calibration: how often its two views are wrong at each certainty; None without a mask to
            compare with.
        doubts: of each image by its id.
        pictures: of the doubt maps by id, for the contact sheet.
    """

    calibration: Calibration | None
    doubts: dict[str, Doubt]
    pictures: dict[str, str]


def examined(model: Model, dataset: Dataset, records: Sequence[Record]) -> Findings:
    """The doubt of each record. Every image is viewed once, also those that calibrate."""
    reference = reference_of(model.run, dataset)
    seen, counts = list[tuple[Record, Sight]](), []
    for record, sight in _sights(model, reference.records if reference else [], "calibration"):
        assert reference
        seen.append((record, sight))
        counts.append(error_counts(sight.mask, sight.certainty, reference.read_mask(record)))
    calibration = (
        calibrated(counts, group_numbers([record for record, _ in seen]), reference.source)
        if reference
        else None
    )
    wrong = calibration.wrong if calibration else UNCALIBRATED
    asked, known = {record.id for record in records}, {record.id for record, _ in seen}
    rest = [record for record in records if record.id not in known]
    findings = Findings(calibration, {}, {})
    for record, sight in chain(
        ((record, sight) for record, sight in seen if record.id in asked),
        _sights(model, rest, "doubt"),
    ):
        labels = model.refined_mask(record.id)
        height, width = sight.mask.shape
        small = None if labels is None else shrink(labels, (width, height))
        findings.doubts[record.id], values = judge(sight, small, record, wrong)
        findings.pictures[record.id] = map_address(values, MAP_SIDE)
    return findings


def _sights(model: Model, records: Sequence[Record], title: str) -> Iterator[tuple[Record, Sight]]:
    """Each record with what both views say of it, in the order of sizes."""
    if not records:
        return
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
                yield record, Sight.of(chance)
                advance()


def judge(
    sight: Sight, labels_hw: Pixels | None, record: Record, wrong_256: Shares = UNCALIBRATED
) -> tuple[Doubt, Float]:
    """The doubt of an image and its doubt map ``float32 [h,w]``.

    Args:
        sight: what the views say.
        labels_hw: the refined mask, 255 where it says nothing; None without one.
        record: for its tags.
        wrong_256: share of wrong pixels at each certainty of the views.
    """
    mask = sight.mask
    sure = np.asarray(1 - wrong_256[sight.certainty], np.float32)
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
        _shortfall(sight, sure, present | tags | {0}),
        sight.apart,
        None if labels_hw is None else float(against.mean()),
        tuple(sorted(k - 1 for k in tags - present)),
        tuple(sorted(k - 1 for k in present - possible)),
        sight.layout,
    )
    return doubt, np.asarray(1 - sure, np.float32)


def _shortfall(sight: Sight, sure: Float, labels: set[int]) -> float:
    """1 less the expected mean IoU: a pixel of a label is right with its certainty, and one of
    another label belongs to it with its probability.
    """
    ious = []
    for label in labels:
        own = sight.mask == label
        union = own.sum() + sight.outside[label]
        ious.append(float(sure[own].sum() / max(union, 1e-6)))
    return 1 - float(np.mean(ious))


def _layout(mean_Lhw: Float) -> Float:
    grid = nn.functional.adaptive_avg_pool2d(torch.from_numpy(mean_Lhw), GRID)
    return np.asarray(grid.numpy().ravel(), np.float32)

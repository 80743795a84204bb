"""The threshold sweep of class activation maps, in one pass over the images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError
from trainer.evaluation.metrics import Counts

Thresholds = npt.NDArray[np.float32]

# float32 as the maps are, so that a score equal to a threshold compares as equal.
SWEEP: Thresholds = (np.arange(100) / 100).astype(np.float32)
"""0.00 to 0.99 in steps of 0.01."""

PUBLISHED_SWEEP: Thresholds = SWEEP[:60]
"""0.00 to 0.59: the range of the scripts of SEAM and CPN, behind their "best threshold" figures."""


def sweep_thresholds(*extra: float) -> Thresholds:
    """``SWEEP`` with further thresholds in between, ascending."""
    return np.unique(np.concatenate([SWEEP, np.asarray(extra, np.float32)]))


def threshold_sweep(
    cams: Iterable[tuple[npt.NDArray[np.float32], Sequence[int], npt.NDArray[np.uint8]]],
    thresholds: npt.ArrayLike = SWEEP,
    *,
    num_classes: int,
) -> Counts:
    """Confusions of ``argmax([t, maps])`` for every threshold, in one pass over the images.

    A pixel is background at t iff ``t >= max(maps)``, so its label changes once over all
    thresholds: one histogram over (threshold where it changes, truth, strongest class) and one
    cumulative sum give the same counts as T passes.

    Args:
        cams: ``(maps float32 [k,H,W], class indices [k] in 0..K-1, truth [H,W])`` of each image.
        thresholds: T ascending values.
        num_classes: K+1, background included.

    Returns:
        int64 ``[T,K+1,K+1]``.
    """
    levels = ascending(thresholds)
    total = np.zeros((len(levels), num_classes, num_classes), np.int64)
    for maps, classes, truth in cams:
        counts, columns = sweep_image(maps, classes, truth, levels, num_classes)
        total[:, :, columns] += counts
    return total


def ascending(thresholds: npt.ArrayLike) -> Thresholds:
    """Thresholds as float32 ``[T]``.

    Raises:
        ValueError: none, or not ascending.
    """
    levels = np.asarray(thresholds, np.float32)
    if levels.ndim != 1 or not len(levels) or (np.diff(levels) <= 0).any():
        raise ValueError("thresholds must be a list of ascending values")
    return levels


def sweep_image(
    maps_kHW: npt.NDArray[np.float32],
    classes: Sequence[int] | npt.NDArray[np.int16],
    truth_HW: npt.NDArray[np.uint8],
    thresholds: Thresholds,
    num_classes: int,
) -> tuple[Counts, Counts]:
    """The sweep of one image: counts int64 ``[T,C,k+1]`` and the labels ``[k+1]`` of its columns.

    The background is the first column.
    """
    count, k = len(thresholds), len(classes)
    columns = np.concatenate([[0], np.asarray(classes, np.int64) + 1])
    if maps_kHW.shape[1:] != truth_HW.shape:
        raise DataError(f"maps of {maps_kHW.shape[1:]} and truth of {truth_HW.shape} pixels")
    # Row C collects every pixel without a known truth.
    truth = np.minimum(truth_HW, num_classes).astype(np.int64).reshape(-1)
    if not k:
        rows = np.bincount(truth, minlength=num_classes + 1)[:num_classes]
        counts = np.broadcast_to(rows[None, :, None], (count, num_classes, 1))
        return counts.astype(np.int64), columns
    flat = maps_kHW.reshape(k, -1)
    best = flat.argmax(0)
    # "left": a map that equals the threshold does not exceed it, so the pixel is background.
    change = np.searchsorted(thresholds, flat.max(0), side="left")
    # Bin, truth and strongest class as one integer, so that a single bincount suffices.
    cell = (change * (num_classes + 1) + truth) * k + best
    histogram = np.bincount(cell, minlength=(count + 1) * (num_classes + 1) * k)
    histogram = histogram.reshape(count + 1, num_classes + 1, k)[:, :num_classes]
    # Row t of the sum over higher bins: pixels that are still foreground at threshold t - 1.
    above = histogram[::-1].cumsum(0)[::-1]
    foreground = above[1:]
    background = above[0].sum(-1) - foreground.sum(-1)
    return np.concatenate([background[..., None], foreground], 2).astype(np.int64), columns


def image_mious(counts_TCk: Counts, columns: Counts) -> npt.NDArray[np.float32]:
    """Mean IoU ``[T]`` of one image over the classes in its truth or its prediction.

    An image whose truth is unknown everywhere has 1, so that it is never among the worst.
    """
    truth = counts_TCk.sum(2)
    guess = np.zeros_like(truth)
    hit = np.zeros_like(truth)
    guess[:, columns] = counts_TCk.sum(1)
    hit[:, columns] = counts_TCk[:, columns, np.arange(len(columns))]
    union = truth + guess - hit
    present = (union > 0).sum(1)
    means = np.sum(hit / np.maximum(union, 1), 1) / np.maximum(present, 1)
    return np.where(present > 0, means, 1).astype(np.float32)

"""Which true objects a mask hits, however small they are.

An object of a class is a connected component of its true mask, 8-connected. It is hit where half
of its pixels are predicted as the class, or where its IoU with one predicted component is above
0.1. Pixels count little here: of a large object most pixels must be right to raise the mean IoU,
while a hundred small ones may be missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE
from trainer.evaluation.bootstrap import SAMPLES, interval_of, resampled
from trainer.evaluation.metrics import Counts

IOU, SHARE = 0.1, 0.5
NEIGHBOURS = np.ones((3, 3), int)
"""8-connected, as in the evaluation code of MVTec AD."""


def components(mask_HW: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], int]:
    """The component of each pixel from 1, 0 outside of ``mask_HW``, and their number."""
    from scipy.ndimage import label

    labels, count = label(mask_HW, structure=NEIGHBOURS)
    return labels, int(count)


def count_objects(
    pred_HW: npt.NDArray[np.uint8], truth_HW: npt.NDArray[np.uint8], num_classes: int
) -> Counts:
    """True objects and those that are hit, int64 ``[2,C]`` by label; the background has none.

    Args:
        pred_HW: labels 0..C-1; 255 is no class.
        truth_HW: the same size; pixels of C and above, 255 among them, are left out.
        num_classes: C, background included.
    """
    counts = np.zeros((2, num_classes), np.int64)
    pred_HW = np.where(truth_HW < num_classes, pred_HW, IGNORE)
    for label in np.unique(truth_HW[(truth_HW > 0) & (truth_HW < num_classes)]).tolist():
        true, objects = components(truth_HW == label)
        guess, guesses = components(pred_HW == label)
        # One bincount counts the pixels of every pair of components.
        pairs = np.bincount(
            (true * (guesses + 1) + guess).reshape(-1), minlength=(objects + 1) * (guesses + 1)
        ).reshape(objects + 1, guesses + 1)
        sizes, overlap = pairs[1:].sum(1), pairs[1:, 1:]
        union = sizes[:, None] + pairs[:, 1:].sum(0) - overlap
        hit = (overlap.sum(1) >= SHARE * sizes) | (overlap > IOU * union).any(1)
        counts[:, label] = objects, hit.sum()
    return counts


def hit_figures(counts_N2C: Counts, class_names: Sequence[str]) -> dict[str, Any]:
    """``objects`` and ``objects_hit_by_class`` of each class, and ``objects_hit``, their mean.

    Shares are None for a class without an object. The mean is over the classes that have some.
    """
    objects, hits = counts_N2C.sum(0)[:, 1:].tolist() if len(counts_N2C) else ([], [])
    shares = [hit / count if count else None for count, hit in zip(objects, hits, strict=True)]
    known = [share for share in shares if share is not None]
    return {
        "objects": dict(zip(class_names, objects)),
        "objects_hit_by_class": dict(zip(class_names, shares)),
        "objects_hit": float(np.mean(known)) if known else None,
    }


def hit_intervals(
    counts_N2C: Counts,
    class_names: Sequence[str],
    groups: Sequence[int],
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """``objects_hit_interval`` and ``objects_hit_interval_by_class``: 95 % intervals over images.

    A class without an object has None.

    Args:
        counts_N2C: of ``count_objects``, an image each.
        class_names: K names.
        groups: of the images, drawn together.
        samples: resampled lists.
        seed: of the drawing.
    """
    table = counts_N2C[:, :, 1:].reshape(len(counts_N2C), -1).astype(np.float64)
    draws = [_shares(times @ table) for _, times in resampled(groups, samples, seed)]
    every, value = np.concatenate(draws), _shares(table.sum(0)[None])[0]
    intervals = [
        interval_of(one, column, seed).report() if np.isfinite(one) else None
        for one, column in zip(value, every.T, strict=True)
    ]
    return {
        "objects_hit_interval": intervals[-1],
        "objects_hit_interval_by_class": dict(zip(class_names, intervals)),
    }


def _shares(sums_S2K: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Share of each class, and their mean over the classes that have objects, ``[S,K+1]``."""
    objects, hits = np.split(sums_S2K, 2, axis=1)
    shares = np.divide(hits, objects, out=np.full_like(hits, np.nan), where=objects > 0)
    count = (objects > 0).sum(1)
    mean = np.nansum(shares, 1) / np.where(count, count, np.nan)
    return np.column_stack([shares, mean])

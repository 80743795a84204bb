"""Ratios of confusion counts (spec refine-segment 12).

A confusion matrix is int64 ``[C,C]``, rows the truth, columns the prediction, C = K+1 labels with background first. It
is summed over all images before any ratio is taken: the figures are those of the data set, not means over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE
from trainer.errors import DataError

Counts = npt.NDArray[np.int64]
Ratios = npt.NDArray[np.float64]


def confusion(pred: Any, truth: Any, num_classes: int, ignore: int = IGNORE) -> Counts:
    """Count pixels by (truth, prediction).

    Args:
        pred: integer array or tensor of any shape; ``ignore`` there counts as background, as in IRN's evaluation.
        truth: the same shape; pixels equal to ``ignore`` or not below ``num_classes`` are left out.
        num_classes: C, background included.
        ignore: the label that stands for "not known".

    Returns:
        int64 ``[C,C]``, rows the truth.

    Raises:
        DataError: shapes differ, or a predicted label is outside 0..C-1.
    """
    guess, true = _flat(pred), _flat(truth)
    if np.shape(pred) != np.shape(truth):
        raise DataError(f"prediction {tuple(np.shape(pred))} and truth {tuple(np.shape(truth))} differ in size")
    known = (true != ignore) & (true >= 0) & (true < num_classes)
    guess, true = guess[known], true[known]
    guess = np.where(guess == ignore, 0, guess)
    if guess.size and not (guess.min() >= 0 and guess.max() < num_classes):
        raise DataError(f"predicted labels run from {guess.min()} to {guess.max()}", f"0 to {num_classes - 1}")
    counts = np.bincount(true * num_classes + guess, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def _flat(labels: Any) -> Counts:
    on_host = labels.cpu() if hasattr(labels, "cpu") else labels
    return np.asarray(on_host).reshape(-1).astype(np.int64)


def iou(confusion: Any) -> Ratios:
    """``hit / (truth + predicted - hit)`` of every class, float64 ``[..., C]``; nan where both are empty."""
    counts = np.asarray(confusion).astype(np.float64)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    return _ratio(hit, counts.sum(-1) + counts.sum(-2) - hit)


def mean_iou(confusion: Any) -> Ratios:
    """Mean over the classes with a union, background included, float64 ``[...]``; nan for a matrix without pixels."""
    values = iou(confusion)
    present = np.isfinite(values)
    return _ratio(np.where(present, values, 0).sum(-1), present.sum(-1).astype(np.float64))


def _ratio(part: Ratios, whole: Ratios) -> Ratios:
    result: Ratios = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
    return result


@dataclass(frozen=True)
class Metrics:
    """Ratios of one confusion matrix; a vector entry is nan where its denominator is zero.

    Attributes:
        iou, precision, recall: float64 ``[C]``.
        miou, mean_precision, mean_recall: means over the entries that exist.
        mean_f: mean of the F-scores of the classes.
        f_of_means: F-score of mean precision and mean recall, as SC-CAM's table reports it.
        over_activation, under_activation: mean over foreground classes of false positives (negatives) per union (SEAM).
        accuracy: share of right pixels.
    """

    iou: Ratios
    precision: Ratios
    recall: Ratios
    miou: float
    mean_precision: float
    mean_recall: float
    mean_f: float
    f_of_means: float
    over_activation: float
    under_activation: float
    accuracy: float


def metrics(confusion: Counts) -> Metrics:
    """All ratios of a confusion matrix ``[C,C]``."""
    counts = confusion.astype(np.float64)
    hit, truth, found = np.diag(counts), counts.sum(1), counts.sum(0)
    union = truth + found - hit
    precision, recall = _ratio(hit, found), _ratio(hit, truth)
    mean_precision, mean_recall = _mean(precision), _mean(recall)
    return Metrics(
        iou=_ratio(hit, union),
        precision=precision,
        recall=recall,
        miou=_mean(_ratio(hit, union)),
        mean_precision=mean_precision,
        mean_recall=mean_recall,
        mean_f=_mean(_ratio(2 * hit, truth + found)),
        f_of_means=2 * mean_precision * mean_recall / max(mean_precision + mean_recall, 1e-12),
        over_activation=_mean(_ratio(found - hit, union)[1:]),
        under_activation=_mean(_ratio(truth - hit, union)[1:]),
        accuracy=float(hit.sum() / max(counts.sum(), 1)),
    )


def _mean(values: Ratios) -> float:
    present = values[np.isfinite(values)]
    return float(present.mean()) if present.size else float("nan")


def summarise(confusion: Counts, class_names: Sequence[str]) -> dict[str, Any]:
    """The ratios of a confusion matrix as plain JSON values; None where a class occurs in neither truth nor prediction.

    Args:
        confusion: int64 ``[K+1,K+1]``.
        class_names: the K foreground names.
    """
    labels = ("background", *class_names)
    if confusion.shape != (len(labels), len(labels)):
        raise ValueError(f"a confusion matrix {confusion.shape} for {len(labels)} labels")
    m = metrics(confusion)

    def named(values: Ratios) -> dict[str, float | None]:
        return {label: finite_or_none(value) for label, value in zip(labels, values, strict=True)}

    return {
        "miou": finite_or_none(m.miou),
        "iou": named(m.iou),
        "precision": named(m.precision),
        "recall": named(m.recall),
        "mean_precision": finite_or_none(m.mean_precision),
        "mean_recall": finite_or_none(m.mean_recall),
        "mean_f": finite_or_none(m.mean_f),
        "f_of_means": finite_or_none(m.f_of_means),
        "over_activation": finite_or_none(m.over_activation),
        "under_activation": finite_or_none(m.under_activation),
        "accuracy": m.accuracy,
        "confusion": confusion.tolist(),
    }


def finite_or_none(value: float) -> float | None:
    """A plain float, or None, which JSON can hold, for nan and infinity."""
    return float(value) if np.isfinite(value) else None

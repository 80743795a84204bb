"""Ratios of confusion counts, in the conventions that papers use.

A confusion matrix is int64 ``[C,C]``, rows the truth, columns the prediction, C = K+1 labels with
background first. It is summed over all images before any ratio is taken: the figures are those of
the data set, not means over images. A matrix ``[C,C+1]`` has one more column, for pixels that the
prediction leaves open (255); the convention decides what they count as.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE
from trainer.errors import ConfigError, DataError, nearest, one_of

# Integers keep sums exact; 32 bits would overflow on COCO, whose 40,504 validation images hold some
# 12 billion pixels.
Counts = npt.NDArray[np.int64]
Ratios = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Convention:
    """How a mean IoU is taken from a confusion matrix.

    Attributes:
        mean_over: ``union``: classes in the truth or the prediction; ``truth``: classes in the
            truth; ``all``: every class, an absent one counting 0; ``every``: every class, and the
            mean is undefined where one is absent.
        open: predicted 255 counts as ``background``, or as ``missed`` (a pixel of its true class
            that the prediction gives to no class), or is ``refused``.
        about: who uses it.
    """

    mean_over: Literal["union", "truth", "all", "every"]
    open: Literal["background", "missed", "refused"]
    about: str


CONVENTIONS = {
    "default": Convention("union", "background", "mean over the classes in truth or prediction"),
    "chainercv": Convention(
        "union", "background", "chainercv, IRN: nan-mean; the same value as default"
    ),
    "deeplab-pytorch": Convention(
        "truth", "refused", "deeplab-pytorch, SC-CAM, VWE: mean over the classes in the truth"
    ),
    "seam": Convention(
        "all", "missed", "SEAM, CPN, LargeFOV: mean over all classes, an absent one counts 0"
    ),
    "voc-devkit": Convention(
        "every", "refused", "PASCAL VOC devkit: mean over all classes, undefined if one is absent"
    ),
}
# Papers by the script that computes their figures.
ALIASES = {
    "irn": "chainercv",
    "sc-cam": "deeplab-pytorch",
    "vwe": "deeplab-pytorch",
    "cpn": "seam",
    "largefov": "seam",
}
DEFAULT = "default"
SCALARS = (
    "mean_precision",
    "mean_recall",
    "mean_f",
    "f_of_means",
    "over_activation",
    "under_activation",
    "accuracy",
)


def convention_name(name: str) -> str:
    """The key in ``CONVENTIONS`` of a convention or a paper.

    Raises:
        ConfigError: neither is known.
    """
    key = ALIASES.get(name, name)
    if key not in CONVENTIONS:
        raise ConfigError(
            f"there is no convention {name!r}", nearest(name, [*CONVENTIONS, *ALIASES])
        )
    return key


def confusion(
    pred: Any,
    truth: Any,
    num_classes: int,
    ignore: int = IGNORE,
    *,
    predicted_ignore: Literal["background", "own"] = "background",
) -> Counts:
    """Count pixels by (truth, prediction).

    Args:
        pred: integer array or tensor of any shape.
        truth: the same shape; pixels of ``ignore`` or outside 0..C-1 are left out.
        num_classes: C, background included.
        ignore: the label of unknown pixels.
        predicted_ignore: predicted ``ignore`` counts as ``background``, as in IRN's evaluation, or
            in a column of its ``own``.

    Returns:
        int64 ``[C,C]``, rows the truth; ``[C,C+1]`` with the extra column.

    Raises:
        DataError: shapes differ, or a predicted label is outside 0..C-1.
        ConfigError: unknown ``predicted_ignore``.
    """
    one_of(predicted_ignore, ("background", "own"), "the column of predicted ignore")
    guess, true = _judged(pred, truth, num_classes, ignore)
    labels = guess[guess != ignore]
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise DataError(
            f"predicted labels run from {labels.min()} to {labels.max()}", f"0 to {num_classes - 1}"
        )
    # Conventions disagree about predicted 255. A column of its own leaves the decision to them.
    columns = num_classes + (predicted_ignore == "own")
    guess = np.where(guess == ignore, num_classes if predicted_ignore == "own" else 0, guess)
    counts = np.bincount(true * columns + guess, minlength=num_classes * columns)
    return counts.reshape(num_classes, columns).astype(np.int64)


def _judged(mask: Any, truth: Any, num_classes: int, ignore: int) -> tuple[Counts, Counts]:
    """Prediction and truth ``[n]`` of the pixels whose truth is one of the classes."""
    if np.shape(mask) != np.shape(truth):
        raise DataError(
            f"prediction {tuple(np.shape(mask))} and truth {tuple(np.shape(truth))} differ in size"
        )
    guess, true = _flat(mask), _flat(truth)
    valid = (true != ignore) & (true >= 0) & (true < num_classes)
    return guess[valid], true[valid]


def _flat(labels: Any) -> Counts:
    # A tensor on a GPU, without an import of torch for those who evaluate PNG files.
    on_host = labels.cpu() if hasattr(labels, "cpu") else labels
    return np.asarray(on_host).reshape(-1).astype(np.int64)


@dataclass(frozen=True)
class Margins:
    """Pixels ``[...,C]`` of each class from which every ratio follows.

    Attributes:
        hit: in truth and prediction.
        truth: in the truth.
        guess: in the prediction.
    """

    hit: Any
    truth: Any
    guess: Any


def margins(confusion: Any, convention: str = DEFAULT) -> Margins:
    """Margins of matrices ``[...,C,C]`` or ``[...,C,C+1]``; the convention counts predicted 255.

    Raises:
        DataError: the convention refuses predicted 255, and there are some.
    """
    counts = np.asarray(confusion)
    labels = counts.shape[-2]
    square = counts[..., :labels]
    # The truth includes open pixels, so by itself a pixel left open is missed.
    result = Margins(np.diagonal(square, axis1=-2, axis2=-1), counts.sum(-1), square.sum(-2))
    if counts.shape[-1] == labels:
        return result
    return count_open(result, counts[..., labels], convention)


def count_open(m: Margins, open_: Any, convention: str) -> Margins:
    """``m`` after the convention has counted pixels ``[...,C]`` of predicted 255, by true class.

    Raises:
        DataError: see ``margins``.
    """
    rule = CONVENTIONS[convention].open
    if rule == "refused" and open_.sum():
        raise DataError(
            f"the predictions hold 255, which the convention {convention}"
            f" ({CONVENTIONS[convention].about}) does not allow",
            "labels 0 to the number of classes only",
            "--convention default counts 255 as background, --convention seam as missed",
        )
    if rule != "background":
        return m
    # As background, an open pixel is a hit where the truth is background too.
    background = np.zeros(m.hit.shape[-1], np.int64)
    background[0] = 1
    guess = m.guess + background * open_.sum(-1)[..., None]
    return Margins(m.hit + background * open_, m.truth, guess)


def iou(confusion: Any) -> Ratios:
    """IoU of every class, float64 ``[...,C]``; nan where truth and prediction are both empty."""
    return margins_iou(margins(confusion))


def mean_iou(confusion: Any, convention: str = DEFAULT) -> Ratios:
    """Mean IoU, background included, float64 ``[...]``; nan for a matrix without pixels.

    Raises:
        DataError: see ``margins``.
    """
    return margins_miou(margins(confusion, convention), convention)


def margins_iou(m: Margins) -> Ratios:
    """IoU of margins ``[...,C]``, float64 ``[...,C]``; nan where a class has none."""
    return _ratio(m.hit, m.truth + m.guess - m.hit)


def margins_miou(m: Margins, convention: str = DEFAULT) -> Ratios:
    """Mean IoU of margins ``[...,C]``, float64 ``[...]``; nan where the convention gives none."""
    rule = CONVENTIONS[convention].mean_over
    union = m.truth + m.guess - m.hit
    if rule == "all":
        # SEAM's script adds 1e-10, so that an absent class has IoU 0 and not 0/0.
        values: Ratios = np.where(union.sum(-1) > 0, (m.hit / (union + 1e-10)).mean(-1), np.nan)
        return values
    present = {"union": union > 0, "truth": m.truth > 0, "every": np.ones(union.shape, bool)}[rule]
    return _ratio(np.where(present, margins_iou(m), 0).sum(-1), present.sum(-1))


def _ratio(part: Any, whole: Any) -> Ratios:
    # nan and not 0: a mean must leave out a class without pixels instead of charging it.
    result: Ratios = np.divide(
        part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0
    )
    return result


@dataclass(frozen=True)
class Metrics:
    """Ratios of one confusion matrix; a vector entry is nan where its denominator is zero.

    Attributes:
        iou, precision, recall, f: float64 ``[C]``.
        miou: in the convention asked for.
        mean_precision, mean_recall: means over the entries that exist.
        mean_f: mean of the F-scores of the classes.
        f_of_means: F-score of mean precision and mean recall, as SC-CAM's table reports it.
        over_activation, under_activation: mean over foreground classes of false positives
            (negatives) per union, as SEAM reports them.
        accuracy: share of correct pixels.
    """

    iou: Ratios
    precision: Ratios
    recall: Ratios
    f: Ratios
    miou: float
    mean_precision: float
    mean_recall: float
    mean_f: float
    f_of_means: float
    over_activation: float
    under_activation: float
    accuracy: float


def metrics(confusion: Counts, convention: str = DEFAULT) -> Metrics:
    """All ratios of a confusion matrix ``[C,C]`` or ``[C,C+1]``.

    Raises:
        DataError: see ``margins``.
    """
    m = margins(confusion, convention)
    union = m.truth + m.guess - m.hit
    precision, recall = _ratio(m.hit, m.guess), _ratio(m.hit, m.truth)
    f = _ratio(2 * m.hit, m.truth + m.guess)
    mean_precision, mean_recall = _mean(precision), _mean(recall)
    return Metrics(
        iou=_ratio(m.hit, union),
        precision=precision,
        recall=recall,
        f=f,
        miou=float(margins_miou(m, convention)),
        mean_precision=mean_precision,
        mean_recall=mean_recall,
        mean_f=_mean(f),
        f_of_means=2 * mean_precision * mean_recall / max(mean_precision + mean_recall, 1e-12),
        over_activation=_mean(_ratio(m.guess - m.hit, union)[1:]),
        under_activation=_mean(_ratio(m.truth - m.hit, union)[1:]),
        accuracy=float(m.hit.sum() / max(m.truth.sum(), 1)),
    )


def _mean(values: Ratios) -> float:
    present = values[np.isfinite(values)]
    return float(present.mean()) if present.size else float("nan")


def summarise(
    confusion: Counts, class_names: Sequence[str], convention: str = DEFAULT
) -> dict[str, Any]:
    """The ratios of a confusion matrix as plain JSON values; None where one is undefined.

    ``miou_by_convention`` holds the mean IoU in every convention.

    Args:
        confusion: int64 ``[K+1,K+1]`` or ``[K+1,K+2]``.
        class_names: the K foreground names.

    Raises:
        DataError: see ``margins``.
    """
    labels = ("background", *class_names)
    if confusion.shape not in ((len(labels), len(labels)), (len(labels), len(labels) + 1)):
        raise ValueError(f"a confusion matrix {confusion.shape} for {len(labels)} labels")
    m = metrics(confusion, convention)
    square = confusion[:, : len(labels)].copy()
    open_ = confusion[:, len(labels) :].sum(1)
    square[:, 0] += open_

    def named(values: Ratios) -> dict[str, float | None]:
        return {label: finite_or_none(value) for label, value in zip(labels, values, strict=True)}

    vectors = {key: named(getattr(m, key)) for key in ("iou", "precision", "recall", "f")}
    return {
        "miou": finite_or_none(m.miou),
        **vectors,
        **{key: finite_or_none(getattr(m, key)) for key in SCALARS},
        "convention": convention,
        "miou_by_convention": {name: _miou_or_none(confusion, name) for name in CONVENTIONS},
        "predicted_ignore": int(open_.sum()),
        "confusion": square.tolist(),
    }


def _miou_or_none(confusion: Counts, convention: str) -> float | None:
    try:
        return finite_or_none(float(mean_iou(confusion, convention)))
    except DataError:
        return None


def finite_or_none(value: float) -> float | None:
    """A plain float, or None, which JSON can hold, for nan and infinity."""
    return float(value) if np.isfinite(value) else None

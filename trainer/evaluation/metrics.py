"""Ratios of confusion counts, in every convention that papers use (spec refine-segment 12).

A confusion matrix is int64 ``[C,C]``, rows the truth, columns the prediction, C = K+1 labels with
background first. It is summed over all images before any ratio is taken: the figures are those of
the data set, not means over images. A matrix ``[C,C+1]`` has one more column: pixels that the
prediction itself leaves open (255). What becomes of them is a matter of convention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE
from trainer.errors import ConfigError, DataError, nearest

Counts = npt.NDArray[np.int64]
Ratios = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Convention:
    """How a mean IoU is taken from a confusion matrix.

    Attributes:
        mean_over: ``union``: classes that the truth or the prediction holds; ``truth``: classes
            that the truth holds; ``all``: every class, an absent one counting 0; ``every``: every
            class, and none may be absent.
        open: predicted 255 is ``background``; or ``missed``, a pixel of its true class that no
            class has found; or ``refused``.
        about: whose it is, in words.
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
ALIASES = {
    "irn": "chainercv",
    "sc-cam": "deeplab-pytorch",
    "vwe": "deeplab-pytorch",
    "cpn": "seam",
    "largefov": "seam",
}
DEFAULT = "default"


def convention_name(name: str) -> str:
    """The name in ``CONVENTIONS``, from that or a paper's.

    Raises:
        ConfigError: there is none.
    """
    found = ALIASES.get(name, name)
    if found not in CONVENTIONS:
        raise ConfigError(
            f"there is no convention {name!r}", nearest(name, [*CONVENTIONS, *ALIASES])
        )
    return found


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
        truth: the same shape; pixels equal to ``ignore`` or not below ``num_classes`` are left out.
        num_classes: C, background included.
        ignore: the label that stands for "not known".
        predicted_ignore: where predicted ``ignore`` is counted: as background, as in IRN's
            evaluation, or in a column of its own.

    Returns:
        int64 ``[C,C]``, rows the truth; ``[C,C+1]`` with a column of its own.

    Raises:
        DataError: shapes differ, or a predicted label is outside 0..C-1.
    """
    guess, true = _flat(pred), _flat(truth)
    if np.shape(pred) != np.shape(truth):
        raise DataError(
            f"prediction {tuple(np.shape(pred))} and truth {tuple(np.shape(truth))} differ in size"
        )
    known = (true != ignore) & (true >= 0) & (true < num_classes)
    guess, true = guess[known], true[known]
    open_ = guess == ignore
    if not open_.all() and not (guess[~open_].min() >= 0 and guess[~open_].max() < num_classes):
        raise DataError(
            f"predicted labels run from {guess[~open_].min()} to {guess[~open_].max()}",
            f"0 to {num_classes - 1}",
        )
    columns = num_classes + (predicted_ignore == "own")
    guess = np.where(open_, columns - 1 if predicted_ignore == "own" else 0, guess)
    counts = np.bincount(true * columns + guess, minlength=num_classes * columns)
    return counts.reshape(num_classes, columns).astype(np.int64)


def _flat(labels: Any) -> Counts:
    on_host = labels.cpu() if hasattr(labels, "cpu") else labels
    return np.asarray(on_host).reshape(-1).astype(np.int64)


@dataclass(frozen=True)
class Margins:
    """What every ratio is made of: pixels ``[...,C]`` that are right, that the truth holds, and
    that were found.
    """

    hit: Any
    truth: Any
    found: Any


def margins(confusion: Any, convention: str = DEFAULT) -> Margins:
    """Margins of matrices ``[...,C,C]`` or ``[...,C,C+1]``, as the convention counts predicted 255.

    Raises:
        DataError: the convention has no place for predicted 255, and there are some.
    """
    counts = np.asarray(confusion)
    labels = counts.shape[-2]
    square = counts[..., :labels]
    hit, truth, found = np.diagonal(square, axis1=-2, axis2=-1), counts.sum(-1), square.sum(-2)
    if counts.shape[-1] == labels:
        return Margins(hit, truth, found)
    return count_open(Margins(hit, truth, found), counts[..., labels], convention)


def count_open(counted: Margins, open_: Any, convention: str) -> Margins:
    """Margins in which pixels ``[...,C]`` with predicted 255, by true class, are counted as the
    convention has it.

    Raises:
        DataError: see ``margins``.
    """
    rule = CONVENTIONS[convention].open
    if rule == "refused" and open_.sum():
        raise DataError(
            f"the predictions hold 255, and {convention} ({CONVENTIONS[convention].about}) stops at"
            " such masks",
            "labels 0 to the number of classes only",
            "--convention default counts 255 as background, --convention seam as missed",
        )
    if rule != "background":
        return counted
    background = np.zeros(counted.hit.shape[-1], np.int64)
    background[0] = 1
    hit = counted.hit + background * open_
    return Margins(hit, counted.truth, counted.found + background * open_.sum(-1)[..., None])


def iou(confusion: Any) -> Ratios:
    """``hit / (truth + predicted - hit)`` of every class, float64 ``[..., C]``; nan where both are
    empty.
    """
    return margins_iou(margins(confusion))


def mean_iou(confusion: Any, convention: str = DEFAULT) -> Ratios:
    """Mean IoU, background included, float64 ``[...]``; nan for a matrix without pixels.

    Raises:
        DataError: see ``margins``.
    """
    return margins_miou(margins(confusion, convention), convention)


def margins_iou(m: Margins) -> Ratios:
    """IoU of margins ``[...,C]``, float64 ``[...,C]``; nan where a class has none."""
    return _ratio(m.hit, m.truth + m.found - m.hit)


def margins_miou(m: Margins, convention: str = DEFAULT) -> Ratios:
    """Mean IoU of margins ``[...,C]``, float64 ``[...]``; nan where there are no pixels, or where
    it is undefined.
    """
    rule = CONVENTIONS[convention].mean_over
    union = m.truth + m.found - m.hit
    if rule == "all":
        # SEAM's script: the 1e-10 keeps 0/0 from being one.
        values: Ratios = np.where(union.sum(-1) > 0, (m.hit / (union + 1e-10)).mean(-1), np.nan)
        return values
    present = {"union": union > 0, "truth": m.truth > 0, "every": np.ones(union.shape, bool)}[rule]
    return _ratio(np.where(present, margins_iou(m), 0).sum(-1), present.sum(-1))


def _ratio(part: Any, whole: Any) -> Ratios:
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
        f_of_means: F-score of mean precision and mean recall, as SC-CAM's table reports it (spec
            D20).
        over_activation, under_activation: mean over foreground classes of false positives
        (negatives) per union (SEAM).
        accuracy: share of right pixels.
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
    union = m.truth + m.found - m.hit
    precision, recall, f = (
        _ratio(m.hit, m.found),
        _ratio(m.hit, m.truth),
        _ratio(2 * m.hit, m.truth + m.found),
    )
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
        over_activation=_mean(_ratio(m.found - m.hit, union)[1:]),
        under_activation=_mean(_ratio(m.truth - m.hit, union)[1:]),
        accuracy=float(m.hit.sum() / max(m.truth.sum(), 1)),
    )


def _mean(values: Ratios) -> float:
    present = values[np.isfinite(values)]
    return float(present.mean()) if present.size else float("nan")


def summarise(
    confusion: Counts, class_names: Sequence[str], convention: str = DEFAULT
) -> dict[str, Any]:
    """The ratios of a confusion matrix as plain JSON values; None where a class occurs in neither
    truth nor prediction.

    Args:
        confusion: int64 ``[K+1,K+1]`` or ``[K+1,K+2]``.
        class_names: the K foreground names.
        convention: of ``CONVENTIONS``; ``miou_by_convention`` has all of them beside, None where
        one is undefined.

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

    return {
        "miou": finite_or_none(m.miou),
        "iou": named(m.iou),
        "precision": named(m.precision),
        "recall": named(m.recall),
        "f": named(m.f),
        "mean_precision": finite_or_none(m.mean_precision),
        "mean_recall": finite_or_none(m.mean_recall),
        "mean_f": finite_or_none(m.mean_f),
        "f_of_means": finite_or_none(m.f_of_means),
        "over_activation": finite_or_none(m.over_activation),
        "under_activation": finite_or_none(m.under_activation),
        "accuracy": m.accuracy,
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

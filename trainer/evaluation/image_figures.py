"""How well image scores tell images with a class from images without it. No masks are needed.

Area under the ROC curve (AUROC): the share of pairs of an image with and one without the class in
which the first has the higher score; ties count half. 0.5 is chance. Average precision (AP): the
mean precision over the images with the class, each at its own score as the threshold. Chance is
the share of images with the class. False alarms: the share of images without the class at the
highest threshold that 90 % of the images with it reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.bootstrap import interval_of, resampled
from trainer.evaluation.metrics import Counts, finite_or_none

Values = npt.NDArray[np.float64]
# Each end of an interval has 25 of the resampled values beyond it; 10,000 draws of as many images
# would take a minute for 20 classes.
SAMPLES = 1000
FIGURES = ("auroc", "average_precision")
RECALL = 0.9
"""At which false alarms are counted: the share of images without the class that score as high."""


def image_figures(
    scores_NK: Values,
    tags_NK: npt.NDArray[np.floating],
    class_names: Sequence[str],
    groups: Sequence[int] = (),
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """AUROC and AP of every class and of "any", each with its 95 % interval.

    "Any" asks whether the image shows some class. Its score is the largest class score, because
    that is what decides whether a class passes a threshold; 1 - prod(1 - p) would take K small
    scores for a large one.

    Args:
        scores_NK: scores of the images.
        tags_NK: 1 present, 0 absent, NaN unknown.
        class_names: K names.
        groups: of the images, drawn together for the intervals; without them each is by itself.
        samples: resampled lists.
        seed: of the drawing.

    Returns:
        ``classes`` (name -> figures), ``any`` (figures) and ``mean`` (over the classes that have
        them). Figures are None where they are undefined, and ``why`` says the reason. An image
        with an unknown class counts for "any" only where some tag is present.
    """
    truth = np.column_stack([tags_NK, any_tag(tags_NK)])
    ranked = np.column_stack([scores_NK, scores_NK.max(1)])
    draws = _resampled(ranked, truth, groups or range(len(truth)), samples, seed)
    columns = zip(ranked.T, truth.T, draws, strict=True)
    *entries, whole = [_entry(*column, seed) for column in columns]
    means = {key: _mean([entry[key] for entry in entries]) for key in FIGURES}
    names = dict(zip(class_names, entries, strict=True))
    return {"images": len(truth), "classes": names, "any": whole, "mean": means}


def any_tag(tags_NK: npt.NDArray[np.floating]) -> Values:
    """``[N]``: 1 with some class, 0 without any, NaN where only an unknown class could be."""
    some, unknown = (tags_NK == 1).any(1), np.isnan(tags_NK).any(1)
    return np.where(some, 1.0, np.where(unknown, np.nan, 0.0))


def no_better_than_chance(figures: Mapping[str, Any]) -> bool:
    """Whether 0.5 lies in or above the interval of an AUROC; False where there is none.

    Args:
        figures: of one class or of "any", from ``image_figures``.
    """
    low = (figures["auroc_interval"] or {}).get("low")
    return low is not None and low <= 0.5


def _ranking(scores_N: Values, tags_N: Values) -> tuple[float, float, float]:
    """AUROC, AP and false alarms; nan without both an image with and one without the class."""
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    known = np.isfinite(tags_N)
    truth, scores = tags_N[known], scores_N[known]
    if len(np.unique(truth)) < 2:
        return np.nan, np.nan, np.nan
    false, recall, _ = roc_curve(truth, scores, drop_intermediate=False)
    alarms = false[np.searchsorted(recall, RECALL - 1e-9)]
    auroc, precision = roc_auc_score(truth, scores), average_precision_score(truth, scores)
    return float(auroc), float(precision), float(alarms)


def _entry(scores_N: Values, tags_N: Values, draws: Values, seed: int) -> dict[str, Any]:
    *values, alarms = _ranking(scores_N, tags_N)
    positives, negatives = int((tags_N == 1).sum()), int((tags_N == 0).sum())
    why = None
    if not positives or not negatives:
        lacking = [w for n, w in ((positives, "with"), (negatives, "without")) if not n]
        why = f"no image {' or '.join(lacking)} it"
    entry: dict[str, Any] = {}
    for key, value, column in zip(FIGURES, values, draws.T, strict=True):
        interval = None if why else interval_of(value, column, seed).report()
        entry |= {key: finite_or_none(value), f"{key}_interval": interval}
    entry["false_alarms_at_90"] = finite_or_none(alarms)
    counts = {"positives": positives, "negatives": negatives}
    return entry | counts | {"unknown": int(np.isnan(tags_N).sum()), "why": why}


def _resampled(
    scores_NC: Values, tags_NC: Values, groups: Sequence[int], samples: int, seed: int
) -> Values:
    """AUROC and AP of resampled lists, ``[C,samples,2]``."""
    columns = [_Column(scores, tags) for scores, tags in zip(scores_NC.T, tags_NC.T, strict=True)]
    draws = np.empty((len(columns), samples, 2))
    for first, times in resampled(groups, samples, seed):
        for column, rows in zip(columns, draws, strict=True):
            rows[first : first + len(times)] = column.figures(times)
    return draws


class _Column:
    """The ranking of one class, to be weighted by how often each image was drawn."""

    def __init__(self, scores_N: Values, tags_N: Values) -> None:
        # From the highest score down; images of equal score fall into one bin.
        levels, bins = np.unique(-scores_N, return_inverse=True)
        order = np.argsort(bins, kind="stable")
        self.order = order
        self.starts: Counts = np.searchsorted(bins[order], np.arange(len(levels)))
        self.positive = (tags_N == 1)[order].astype(np.float64)
        self.negative = (tags_N == 0)[order].astype(np.float64)

    def figures(self, times_SN: Values) -> Values:
        """AUROC and AP ``[S,2]`` of S lists; nan where one lacks positives or negatives."""
        drawn = times_SN[:, self.order]
        hit = np.add.reduceat(drawn * self.positive, self.starts, axis=1)
        false = np.add.reduceat(drawn * self.negative, self.starts, axis=1)
        above, count = hit.cumsum(1), false.cumsum(1)
        positives, negatives = above[:, -1], count[:, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            # A negative loses against every positive above it, and half against its equals.
            auroc = (false * (above - hit / 2)).sum(1) / (positives * negatives)
            precision = np.where(hit > 0, above / (above + count), 0)
            average = (hit * precision).sum(1) / positives
        return np.stack([auroc, np.where(negatives > 0, average, np.nan)], 1)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None

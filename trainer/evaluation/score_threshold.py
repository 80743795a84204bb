"""From which image score a class counts as present: chosen on training tags, never on val.

A threshold is the one with the largest F1 (Lipton et al., "Optimal thresholding of classifiers to
maximize F1 measure", ECML 2014), in the middle of the gap between the two scores that it separates,
measured as logits. It is chosen five times, each time without one of five folds, and the median is
taken, which depends less on single images. What the five do on the folds that they have not seen is
kept as ``f1``.

The images of the folds also trained the model. Their scores lie farther apart than those of new
images, so ``f1`` is optimistic, and the middle of the gap is a safer threshold than either end.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record
from trainer.evaluation.image_counts import group_numbers

IMAGES = 300
"""How many training images a segmenter looks at, at most: one forward pass each."""
FOLDS = 5
NEUTRAL = 0.5
# Scores beyond are as good as certain; a threshold there would rest on rounding.
LOW, HIGH = 0.01, 0.99
# Logits that are closer together are equal: two engines would not give them in the same order.
MARGIN = 1e-4
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoreThreshold:
    """The threshold of a class.

    Attributes:
        value: 0..1; a class with this score is present.
        folds: how many chose it; 0 where there were too few images, and the value is 0.5.
        f1: on the folds that did not choose; nan without folds.
    """

    value: float = NEUTRAL
    folds: int = 0
    f1: float = float("nan")


def choose_score_thresholds(
    scores_NK: Values,
    tags_NK: npt.NDArray[np.floating],
    groups: Sequence[int],
    least: float = LOW,
    seed: int = 0,
) -> list[ScoreThreshold]:
    """The threshold of each class.

    Args:
        scores_NK: image scores in 0..1.
        tags_NK: 1 present, 0 absent, NaN unknown: left out.
        groups: of the images; none is split over two folds.
        least: thresholds below are raised to it.
        seed: of the folds.
    """
    result = []
    for scores, tags in zip(scores_NK.T, tags_NK.T, strict=True):
        known = np.isfinite(tags)
        own = np.asarray(groups)[known]
        result.append(_of_class(_logit(scores[known]), tags[known] == 1, own, least, seed))
    return result


def spread(records: Sequence[Record], most: int) -> list[Record]:
    """At most ``most`` records with as many as possible of the rare classes: each class and the
    negatives in turn give their next image.
    """
    queues: dict[int, list[Record]] = {}
    for record in records:
        for k in record.tags or (-1,):
            queues.setdefault(k, []).append(record)
    chosen: dict[str, Record] = {}
    rounds = max(map(len, queues.values()), default=0)
    for number in range(rounds):
        for queue in queues.values():
            if number < len(queue) and len(chosen) < most:
                chosen[queue[number].id] = queue[number]
    return [record for record in records if record.id in chosen]


def thresholds_on(
    scores_NK: Values, dataset: Dataset, records: Sequence[Record], least: float = LOW
) -> list[ScoreThreshold]:
    """``choose_score_thresholds`` on the tags and groups of N records."""
    tags = dataset.tag_matrix(records).astype(np.float64)
    return choose_score_thresholds(scores_NK, tags, group_numbers(records), least)


def _of_class(
    logits: Values,
    shown: npt.NDArray[np.bool_],
    groups: npt.NDArray[Any],
    least: float,
    seed: int,
) -> ScoreThreshold:
    from sklearn.model_selection import StratifiedGroupKFold

    count = min(FOLDS, *(len(np.unique(groups[shown == side])) for side in (True, False)))
    if count < 2:
        return ScoreThreshold()
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    floor, values, counts = float(_logit(np.array(least))), [], np.zeros(3)
    with warnings.catch_warnings():
        # Groups may leave a fold without the class, which is no harm here.
        warnings.simplefilter("ignore", UserWarning)
        splits = list(folds.split(logits, shown, groups))
    for chosen_on, held_out in splits:
        if len(np.unique(shown[chosen_on])) < 2:
            continue
        values.append(max(floor, _best(logits[chosen_on], shown[chosen_on])))
        guess, truth = logits[held_out] >= values[-1], shown[held_out]
        counts += (guess & truth).sum(), (guess & ~truth).sum(), (~guess & truth).sum()
    if not values:
        return ScoreThreshold()
    hit, false, missed = counts
    f1 = 2 * hit / max(1, 2 * hit + false + missed)
    # The same digits in a graph, in its card, and in whatever reads the card.
    value = round(float(1 / (1 + np.exp(-np.median(values)))), 6)
    return ScoreThreshold(value, len(values), float(f1))


def _best(logits: Values, shown: npt.NDArray[np.bool_]) -> float:
    """The cut with the largest F1; of equals the one in the widest gap."""
    levels, places = np.unique(logits, return_inverse=True)
    above = np.bincount(places, minlength=len(levels))[::-1].cumsum()
    hit = np.bincount(places, shown, len(levels))[::-1].cumsum()
    f1 = 2 * hit / (above + shown.sum())
    # From the highest level down; a cut lies between a level and the next lower one.
    high = levels[::-1]
    low = np.append(high[1:], min(_logit(np.array([LOW]))[0], high[-1]))
    # The last cut is below all scores, and stays whatever the margin.
    apart = np.append(high[:-1] - low[:-1] >= MARGIN, True)
    best = np.lexsort((high - low, np.where(apart, f1.round(12), -1)))[-1]
    return float((high[best] + low[best]) / 2)


def _logit(scores: Values) -> Values:
    inside = np.clip(scores, LOW, HIGH)
    logits: Values = np.log(inside / (1 - inside))
    return logits

"""Tags that look wrong or missing: those that the other images of the data make unlikely.

A linear classifier on image features scores each fifth of the images after learning from the
others. Scores of several divisions are averaged, and calibrated for each class (Platt, 1999): the
result is the probability that an image has the tag. A tag looks wrong where the opposite is more
likely. Such tags then count by their probability, and the classifier learns once more: wrong tags
teach it less the second time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record
from trainer.evaluation.image_counts import group_numbers
from trainer.review.choice import directions
from trainer.review.tag_table import Suspicion

FOLDS = 5
REPEATS = 3
"""Divisions into folds."""
ROUNDS = 2
ALPHA = 1.0
"""Ridge penalty for features of length 1. With a tenth of it, the classifier learns wrong tags by
heart.
"""
Values = npt.NDArray[np.floating]


def wrong_tags(
    features_NC: Values, dataset: Dataset, records: Sequence[Record], seed: int = 0
) -> list[Suspicion]:
    """Tags of ``records`` that look wrong, the least likely first. Unknown tags are left out.

    Args:
        features_NC: what the images look like, in the order of ``records``.
        dataset: of the records.
        records: images with tags.
        seed: of the folds.
    """
    tags_NK = dataset.tag_matrix(records)
    scores_NK = out_of_fold(features_NC, tags_NK, group_numbers(records), seed)
    likely_NK = np.where(tags_NK == 1, scores_NK, 1 - scores_NK)
    # Comparisons with NaN are false: unknown tags and unknown scores are not listed.
    rows, columns = np.nonzero((likely_NK < 0.5) & np.isfinite(tags_NK))
    order = np.argsort(likely_NK[rows, columns], kind="stable")
    return [
        Suspicion(records[n].id, int(k), bool(tags_NK[n, k] == 1), float(scores_NK[n, k]))
        for n, k in zip(rows[order], columns[order], strict=True)
    ]


def out_of_fold(
    features_NC: Values, tags_NK: Values, groups: Sequence[int], seed: int = 0
) -> npt.NDArray[np.float64]:
    """Probabilities ``float64 [N,K]`` of the classes in each image by classifiers that did not
    learn from its group; NaN for a class that fewer than two groups have, or lack.
    """
    unknown = np.full(tags_NK.shape, np.nan)
    folds = min(FOLDS, len(np.unique(groups)))
    if folds < 2:
        return unknown
    has_tag = np.isfinite(tags_NK)
    # An unknown tag has the mean of its class.
    shares = np.where(has_tag, tags_NK, 0).sum(0) / np.maximum(has_tag.sum(0), 1)
    targets = np.where(has_tag, tags_NK, shares)
    values, chances = directions(features_NC), unknown
    for _ in range(ROUNDS):
        scores = [_held_out(values, targets, groups, folds, seed + n) for n in range(REPEATS)]
        mean = np.mean(scores, 0)
        chances = np.stack(
            [_calibrated(own, tags, groups) for own, tags in zip(mean.T, tags_NK.T, strict=True)], 1
        )
        is_unlikely = np.where(tags_NK == 1, chances, 1 - chances) < 0.5
        targets = np.where(is_unlikely, chances, targets)
    return chances


def _held_out(
    values_NC: Values, targets_NK: Values, groups: Sequence[int], folds: int, seed: int
) -> npt.NDArray[np.float64]:
    """Ridge regression of the targets, each fold by the others ``float64 [N,K]``."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold

    scores = np.zeros(targets_NK.shape)
    splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    for rest, fold in splitter.split(values_NC, groups=groups):
        # One solution serves all classes.
        model = Ridge(ALPHA).fit(values_NC[rest], targets_NK[rest])
        scores[fold] = model.predict(values_NC[fold]).reshape(len(fold), -1)
    return scores


def _calibrated(scores: Values, tags: Values, groups: Sequence[int]) -> npt.NDArray[np.float64]:
    """Scores as probabilities of the tag: a logistic curve that fits the tags; NaN where there are
    too few.
    """
    from sklearn.linear_model import LogisticRegression

    places = np.flatnonzero(np.isfinite(tags))
    labels, own = tags[places] == 1, np.asarray(groups)[places]
    if min(len(np.unique(own[labels == side])) for side in (True, False)) < 2:
        return np.full(len(tags), np.nan)
    # Nearly no penalty: two numbers are fitted. Standardised, the solver needs few steps.
    inputs = ((scores - scores.mean()) / max(scores.std(), 1e-9))[:, None]
    model = LogisticRegression(C=1e3).fit(inputs[places], labels)
    chances: npt.NDArray[np.float64] = model.predict_proba(inputs)[:, 1]
    return chances

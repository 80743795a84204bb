"""Tags that look wrong or missing: confident learning on scores that did not see them.

A linear classifier on image features scores each fifth of the images after learning from the
others. A tag is suspicious where such a score is at least as high as the mean score of the images
that have the opposite tag (Northcutt, Jiang and Chuang, "Confident Learning", JAIR 2021, eq. 1,
for each class by itself).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record
from trainer.evaluation.image_counts import group_numbers
from trainer.review.choice import directions
from trainer.review.tag_table import Suspicion

FOLDS = 5
C = 0.003
"""Inverse regularisation. With C=0.1 the classifier learns wrong tags by heart."""
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
    suspicions = []
    for k, (scores, tags) in enumerate(zip(scores_NK.T, tags_NK.T, strict=True)):
        suspicions += [
            Suspicion(records[n].id, k, bool(tags[n] == 1), float(scores[n]))
            for n in _unlikely(scores, tags)
        ]
    return sorted(
        suspicions, key=lambda entry: entry.score if entry.is_present else 1 - entry.score
    )


def out_of_fold(
    features_NC: Values, tags_NK: Values, groups: Sequence[int], seed: int = 0
) -> npt.NDArray[np.float64]:
    """Scores ``float64 [N,K]`` of each image by classifiers that did not learn from its group; NaN
    for a class with too few images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    scores = np.full(tags_NK.shape, np.nan)
    # A standard deviation of about 1, so that C means the same for every backbone.
    values = directions(features_NC) * np.sqrt(features_NC.shape[1])
    for k, tags in enumerate(tags_NK.T):
        places = np.flatnonzero(np.isfinite(tags))
        own, labels = np.asarray(groups)[places], tags[places] == 1
        folds = min(FOLDS, *(len(np.unique(own[labels == side])) for side in (True, False)))
        if folds < 2:
            continue
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # Large groups may leave a fold without the class.
            warnings.simplefilter("ignore", UserWarning)
            splits = list(splitter.split(values[places], labels, own))
        for rest, fold in splits:
            if len(np.unique(labels[rest])) < 2:
                continue
            model = LogisticRegression(C=C, max_iter=500, class_weight="balanced")
            model.fit(values[places[rest]], labels[rest])
            scores[places[fold], k] = model.predict_proba(values[places[fold]])[:, 1]
    return scores


def _unlikely(scores: Values, tags: Values) -> list[int]:
    """Positions whose score is as high as that of a typical image with the opposite tag."""
    usable = np.isfinite(scores) & np.isfinite(tags)
    present, absent = usable & (tags == 1), usable & (tags == 0)
    if not present.any() or not absent.any():
        return []
    high, low = scores[present].mean(), scores[absent].mean()
    suspicious = (absent & (scores >= high)) | (present & (scores <= low))
    return [int(n) for n in np.flatnonzero(suspicious)]

"""Thresholds of image scores."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from trainer.evaluation.score_threshold import ScoreThreshold, _best, choose_score_thresholds


def chosen(scores, tags, groups=None, **options):
    scores, tags = np.array(scores, float), np.array(tags, float)
    groups = list(range(len(scores))) if groups is None else groups
    return choose_score_thresholds(scores[:, None], tags[:, None], groups, **options)[0]


def test_classes_that_scores_separate_are_cut_in_the_middle_of_the_gap() -> None:
    threshold = chosen([0.8] * 10 + [0.2] * 10, [1] * 10 + [0] * 10)
    assert threshold == ScoreThreshold(0.5, 5, 1.0)
    # The middle of the logits, not of the scores.
    threshold = chosen([0.9] * 10 + [0.5] * 10, [1] * 10 + [0] * 10)
    assert threshold.value == pytest.approx(0.75)


def test_one_wrong_tag_does_not_decide() -> None:
    scores, tags = [0.9] * 12 + [0.3] * 20 + [0.95], [1] * 12 + [0] * 20 + [0]
    right = chosen(scores[:-1], tags[:-1]).value
    assert chosen(scores, tags).value == pytest.approx(right)


def test_the_best_cut_is_that_of_a_search_over_all() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        shown = rng.random(40) < 0.3
        logits = np.round(rng.normal(shown, 1), 1)
        cut = _best(logits, shown)
        levels = np.unique(logits)
        best = max(f1_score(shown, logits >= level) for level in levels)
        assert f1_score(shown, logits >= cut) == pytest.approx(best)
        # A cut lies between two scores, so that rounding changes no verdict.
        assert cut not in levels


def test_unknown_tags_choose_nothing() -> None:
    scores, tags = [0.8] * 10 + [0.2] * 10 + [0.3] * 10, [1] * 10 + [0] * 10 + [np.nan] * 10
    assert chosen(scores, tags).value == 0.5


@pytest.mark.parametrize(
    ("tags", "groups"),
    [
        ([1, 0, 0, 0], None),
        ([1, 1, 1, 1], None),
        ([np.nan] * 4, None),
        ([1, 1, 0, 0], [0, 0, 1, 2]),
    ],
)
def test_too_few_images_leave_the_neutral_threshold(tags, groups) -> None:
    threshold = chosen([0.9, 0.8, 0.2, 0.1], tags, groups)
    assert (threshold.value, threshold.folds) == (0.5, 0)
    assert np.isnan(threshold.f1)


def test_a_group_is_never_on_both_sides() -> None:
    """Both images of a group have the group's own score; only other groups can choose for it."""
    rng = np.random.default_rng(0)
    tags = np.repeat(np.arange(12) % 2, 2)
    scores = np.where(tags == 1, 0.7, 0.4) + np.repeat(rng.uniform(0, 0.05, 12), 2)
    threshold = chosen(scores, tags, np.repeat(np.arange(12), 2).tolist())
    assert threshold.folds == 5
    assert 0.45 < threshold.value < 0.7


def test_certain_scores_are_as_good_as_99_percent() -> None:
    tags = [1] * 10 + [0] * 10
    assert chosen([1.0] * 10 + [0.995] * 10, tags).value <= 0.99
    assert chosen([1e-9] * 10 + [0.0] * 10, tags).value == pytest.approx(0.01)


def test_scores_that_are_all_the_same_but_for_rounding_exclude_nothing() -> None:
    rng = np.random.default_rng(0)
    scores = 0.4 + rng.uniform(0, 1e-6, 30)
    assert chosen(scores, np.arange(30) % 2).value < 0.1


def test_a_floor_counts_in_the_f1_too() -> None:
    scores, tags = [0.4] * 10 + [0.1] * 10, [1] * 10 + [0] * 10
    assert chosen(scores, tags).f1 == 1
    assert chosen(scores, tags, least=0.5) == ScoreThreshold(0.5, 5, 0.0)

"""Figures of image scores: by hand, by brute force, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from trainer.errors import DataError
from trainer.evaluation.bootstrap import resampled
from trainer.evaluation.image_figures import (
    any_tag,
    image_figures,
    no_better_than_chance,
)
from trainer.evaluation.image_scores import ImageScores

NAN = float("nan")


def test_a_case_by_hand():
    """Four images with scores 4 > 3 > 2 > 1; the first and the third show the class."""
    scores = np.array([[0.4], [0.3], [0.2], [0.1]])
    tags = np.array([[1.0], [0], [1], [0]])
    entry = image_figures(scores, tags, ["dog"])["classes"]["dog"]
    # Of four pairs, 0.2 against 0.3 alone is the wrong way round.
    assert entry["auroc"] == 3 / 4
    # Precision 1 at the first positive, 2 of 3 at the second.
    assert entry["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    # To find both, one of the two others is called, too.
    assert entry["false_alarms_at_90"] == 1 / 2
    assert (entry["positives"], entry["negatives"], entry["unknown"]) == (2, 2, 0)
    assert entry["why"] is None


def test_false_alarms_are_counted_where_nine_of_ten_are_found():
    scores = np.concatenate([np.arange(10, 0, -1), [9.5, 2.5, 2, 1.5, 0]])[:, None] / 10
    tags = np.concatenate([np.ones(10), np.zeros(5)])[:, None]
    # The ninth of ten scores 0.2: above or at it are 0.95, 0.25 and 0.2, ties included.
    entry = image_figures(scores, tags, ["dog"])["classes"]["dog"]
    assert entry["false_alarms_at_90"] == 3 / 5


def test_unknown_tags_are_left_out_class_by_class():
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.2, 0.6], [0.1, 0.2]])
    tags = np.array([[1, 0], [NAN, 1], [0, NAN], [0, 0]])
    figures = image_figures(scores, tags, ["a", "b"])
    a, b = figures["classes"].values()
    assert (a["positives"], a["negatives"], a["unknown"], a["auroc"]) == (1, 2, 1, 1.0)
    assert (b["positives"], b["negatives"], b["unknown"], b["auroc"]) == (1, 2, 1, 1.0)
    # The second image shows b, whatever a is; the third may show b, so nothing is known of it.
    assert np.array_equal(any_tag(tags), [1, 1, NAN, 0], equal_nan=True)
    assert (figures["any"]["positives"], figures["any"]["negatives"]) == (2, 1)
    assert figures["any"]["auroc"] == 1.0


def test_a_class_without_both_has_no_figure_and_says_why():
    scores, tags = np.random.default_rng(0).random((3, 3)), np.array([[1, 0, NAN]] * 3)
    figures = image_figures(scores, tags, ["every", "none", "unknown"])
    whys = [entry["why"] for entry in figures["classes"].values()]
    assert whys == ["no image without it", "no image with it", "no image with or without it"]
    for entry in (*figures["classes"].values(), figures["any"]):
        assert entry["auroc"] is entry["average_precision"] is entry["auroc_interval"] is None
        assert not no_better_than_chance(entry)
    assert figures["mean"] == {"auroc": None, "average_precision": None}


def _drawn(scores, tags, groups, samples):
    """AUROC and AP of every resampled list, image by image, by scikit-learn."""
    rows = []
    for _, times in resampled(groups, samples, 0):
        for counts in times.astype(int):
            index = np.repeat(np.arange(len(scores)), counts)
            truth, values = tags[index], scores[index]
            if len(set(truth)) == 2:
                rows.append((roc_auc_score(truth, values), average_precision_score(truth, values)))
    return np.array(rows)


@pytest.mark.parametrize("groups", [list(range(30)), [n // 3 for n in range(30)]])
def test_intervals_are_those_of_lists_drawn_one_by_one(groups):
    rng = np.random.default_rng(3)
    # Ten levels make many ties.
    tags, scores = (rng.random(30) < 0.4).astype(float), rng.integers(0, 10, 30) / 10
    figures = image_figures(scores[:, None], tags[:, None], ["a"], groups, samples=200)
    drawn = _drawn(scores, tags, groups, 200)
    for column, key in zip(drawn.T, ("auroc", "average_precision"), strict=True):
        interval = figures["classes"]["a"][f"{key}_interval"]
        low, high = np.percentile(column, [2.5, 97.5])
        assert (interval["low"], interval["high"]) == pytest.approx((low, high))
        assert interval["value"] == figures["classes"]["a"][key]


def test_images_of_a_group_are_drawn_together():
    for _, times in resampled([7, 7, 3, 3, 3, 1], 50, 0):
        assert (times[:, 0] == times[:, 1]).all()
        assert (times[:, 2] == times[:, 4]).all()
        assert (times[:, [0, 2, 5]].sum(1) == 3).all()


def test_chance_is_told_from_skill():
    rng = np.random.default_rng(0)
    tags = (rng.random((200, 2)) < 0.5).astype(float)
    scores = np.stack([tags[:, 0] + rng.normal(0, 1, 200), rng.random(200)], 1)
    skill, chance = image_figures(scores, tags, ["a", "b"])["classes"].values()
    assert not no_better_than_chance(skill)
    assert no_better_than_chance(chance)


def test_the_table_of_scores_keeps_order_and_digits(tmp_path):
    logits = np.array([[-20.0, 0.0], [17.5, 18.0]], np.float32)
    path = tmp_path / "scores" / "scores.csv"
    ImageScores.of_logits(["a,1", "b"], ["dog", 'big "cat"'], logits).write(path)
    stored = ImageScores.read(path)
    assert (stored.ids, stored.class_names) == (("a,1", "b"), ("dog", 'big "cat"'))
    assert stored.of(["b", "a,1"])[1, 1] == 0.5
    # Both are 1 in float32.
    assert stored.scores[1, 0] < stored.scores[1, 1] < 1
    path.write_text("id,dog\na,many\n")
    with pytest.raises(DataError, match="run wsss-trainer fit again"):
        ImageScores.read(path)

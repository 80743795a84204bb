"""Objects hit: by hand, and against a search over all pairs of components."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label as skimage_label

from trainer.evaluation.bootstrap import resampled
from trainer.evaluation.objects import count_objects, hit_figures, hit_intervals


def image(*rows: str) -> np.ndarray:
    return np.array(
        [[{".": 0, "?": 255}.get(c, ord(c) - 48) for c in row] for row in rows], np.uint8
    )


def test_half_of_the_pixels_or_a_tenth_of_iou() -> None:
    truth = image(
        "11....1111",
        "11....1111",
        "......1111",
        "2.........",
    )
    pred = image(
        "1.....1...",
        "1.........",
        "..........",
        "..........",
    )
    # Half of the square is enough; one of twelve pixels is no tenth, and class 2 is missed.
    assert count_objects(pred, truth, 3).tolist() == [[0, 2, 1], [0, 1, 0]]
    pred[1, 6] = 1
    # Two of twelve are a sixth.
    assert count_objects(pred, truth, 3).tolist() == [[0, 2, 1], [0, 2, 0]]


def test_one_large_blob_over_everything_hits_by_pixels() -> None:
    truth = image("1.......", "........", ".......1")
    assert count_objects(np.ones_like(truth), truth, 2).tolist() == [[0, 2], [0, 2]]
    # Diagonal neighbours belong together, and another class is no hit.
    truth = image("1..", ".1.", "..1")
    assert count_objects(np.full_like(truth, 2), truth, 3).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_unknown_pixels_are_left_out() -> None:
    truth = image("11??????????")
    # Ten predicted pixels on unknown ground would spoil the IoU of one found pixel of two.
    pred = image("1.1111111111")
    assert count_objects(pred, truth, 2).tolist() == [[0, 1], [0, 1]]
    pred = image("?.1111111111")
    assert count_objects(pred, truth, 2).tolist() == [[0, 1], [0, 0]]


def _searched(pred: np.ndarray, truth: np.ndarray, label: int) -> tuple[int, int]:
    valid = truth != 255
    true, guess = (skimage_label(m == label, connectivity=2) for m in (truth, pred * valid))
    hits = 0
    for t in range(1, true.max() + 1):
        there = true == t
        ious = [
            (there & (guess == g)).sum() / (there | (guess == g)).sum()
            for g in range(1, guess.max() + 1)
        ]
        hits += (there & (guess > 0)).sum() >= 0.5 * there.sum() or max(ious, default=0) > 0.1
    return int(true.max()), hits


@pytest.mark.parametrize("seed", range(8))
def test_against_a_search_over_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.choice([0, 0, 0, 1, 2, 255], (8, 9)).astype(np.uint8)
    truth = np.kron(cells, np.ones((3, 3), np.uint8))
    pred = np.where(rng.random(truth.shape) < 0.4, np.where(truth == 255, 1, truth), 0)
    pred = np.roll(pred.astype(np.uint8), rng.integers(0, 3), 1)
    counts = count_objects(pred, truth, 3)
    for label in (1, 2):
        assert tuple(counts[:, label]) == _searched(pred, truth, label)


def test_figures_of_a_list() -> None:
    counts = np.array([[[0, 2, 1, 0], [0, 1, 1, 0]], [[0, 2, 0, 0], [0, 0, 0, 0]]])
    figures = hit_figures(counts, ("a", "b", "c"))
    assert figures == {
        "objects": {"a": 4, "b": 1, "c": 0},
        "objects_hit_by_class": {"a": 0.25, "b": 1.0, "c": None},
        "objects_hit": 0.625,
    }


def test_intervals_are_those_of_lists_drawn_one_by_one() -> None:
    rng = np.random.default_rng(0)
    objects = rng.integers(0, 3, (12, 3))
    counts = np.stack([objects, rng.binomial(objects, 0.5)], 1)
    counts[:, :, 2] = 0
    groups = [n // 2 for n in range(12)]
    intervals = hit_intervals(counts, ("a", "b"), groups, samples=300)
    shares = []
    for _, times in resampled(groups, 300, 0):
        for row in times.astype(int):
            drawn = np.repeat(counts, row, 0).sum(0)
            shares.append(drawn[1, 1] / drawn[0, 1])
    low, high = np.percentile(shares, [2.5, 97.5])
    for interval in (
        intervals["objects_hit_interval"],
        intervals["objects_hit_interval_by_class"]["a"],
    ):
        assert (interval["low"], interval["high"]) == pytest.approx((low, high))
        assert interval["value"] == hit_figures(counts, ("a", "b"))["objects_hit"]
    assert intervals["objects_hit_interval_by_class"]["b"] is None

"""Average precision of pixels and PRO: by hand, and against direct implementations."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from skimage.measure import label as skimage_label
from sklearn.metrics import average_precision_score

from trainer.evaluation.pixel_ranking import BINS, PixelRanking, bins_of, image_pixels


def ranking(images: list, classes: int) -> PixelRanking:
    total = PixelRanking.empty(classes)
    for maps, keys, truth in images:
        total.add(image_pixels(np.asarray(maps, np.float32), keys, truth, classes + 1))
    return total


def test_bins_keep_the_order_of_scores() -> None:
    scores = np.array([0, 1e-7, 1e-4, 0.1, 0.5, 0.9995, 1])
    bins = bins_of(scores)
    assert (np.diff(bins.astype(int)) > 0).all()
    assert (bins[0], bins[-1]) == (0, BINS - 1)
    assert bins_of(np.array([-0.0, -0.5, 1.5])).tolist() == [0, 0, BINS - 1]


def test_a_case_by_hand() -> None:
    """One row of ten pixels: a region of one pixel, one of four, five others."""
    truth = np.array([[1, 0, 0, 1, 1, 1, 1, 0, 0, 0]], np.uint8)
    maps = [[[0.9, 0.8, 0.1, 0.7, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1]]]
    figures = ranking([(maps, [0], truth)], 1).report(["a"])
    # 1 of 1, then 3 of 4, then 5 of 10 for the last two.
    assert figures["pixel_ap"] == pytest.approx((1 + 2 * 3 / 4 + 2 * 5 / 10) / 5)
    # Overlaps 1/2 at rate 0 and at 1/5, 3/4 at 1/5, 1 at 1; the curve rises from 3/4 at 0.2.
    end = 0.75 + 0.25 * 0.1 / 0.8
    area = 0.2 * 0.5 + 0.1 * (0.75 + end) / 2
    assert figures["pro"] == pytest.approx(area / 0.3)


def test_perfect_and_absent_scores() -> None:
    truth = np.array([[1, 1, 0, 0, 2, 0, 0, 255]], np.uint8)
    total = ranking([([truth == 1], [0], truth)], 3)
    figures = total.report(["a", "b", "c"])
    assert figures["pixel_ap_by_class"]["a"] == figures["pro_by_class"]["a"] == 1
    # All scores of b are equal: precision is its share of the pixels, and PRO that of chance.
    assert figures["pixel_ap_by_class"]["b"] == pytest.approx(1 / 7)
    assert figures["pro_by_class"]["b"] == pytest.approx(0.15)
    assert figures["pixel_ap_by_class"]["c"] is figures["pro_by_class"]["c"] is None


def _direct_pro(images: list, k: int, limit: float = 0.3) -> float:
    """One threshold after another, one region after another."""
    scores, truths = zip(*((maps[keys.index(k)], truth) for maps, keys, truth in images))
    points = [(0.0, 0.0)]
    for level in sorted({float(s) for score in scores for s in score.flat}, reverse=True):
        overlaps, false, others = [], 0, 0
        for score, truth in zip(scores, truths):
            above, regions = score >= level, skimage_label(truth == k + 1, connectivity=2)
            overlaps += [above[regions == r].mean() for r in range(1, regions.max() + 1)]
            other = (truth != 255) & (truth != k + 1)
            false, others = false + (above & other).sum(), others + other.sum()
        points.append((false / others, float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        stop = min(x1, limit)
        end = y0 + (y1 - y0) * (stop - x0) / (x1 - x0)
        area += (stop - x0) * (y0 + end) / 2
    return area / limit


@pytest.mark.parametrize("seed", range(6))
def test_against_direct_implementations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(3):
        cells = rng.choice([0, 0, 0, 1, 2, 255], (6, 7)).astype(np.uint8)
        cells[0, :3] = 0, 1, 2
        truth = np.kron(cells, np.ones((3, 3), np.uint8))
        maps = [0.4 * (truth == k + 1) + 0.6 * rng.random(truth.shape) for k in range(2)]
        # Values that float16 holds, so that bins lose nothing; a coarse class has many ties.
        maps[1] = np.round(maps[1], 1)
        images.append((np.stack(maps).astype(np.float16).astype(np.float32), [0, 1], truth))
    total = ranking(images, 2)
    for k in range(2):
        truth = np.concatenate([t[t != 255] == k + 1 for *_, t in images])
        scores = np.concatenate([m[k][t != 255] for m, _, t in images])
        assert total.average_precision()[k] == pytest.approx(average_precision_score(truth, scores))
        assert total.pro()[k] == pytest.approx(_direct_pro(images, k))


def test_images_without_a_map_of_the_class_count_as_zero() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((2, 8, 8)) < 0.2).astype(np.uint8)
    maps = rng.random((1, 8, 8)).astype(np.float16).astype(np.float32)
    zeros = np.zeros((1, 8, 8), np.float32)
    without = ranking([(maps, [0], truth[0]), (zeros[:0], [], truth[1])], 1)
    equal = ranking([(maps, [0], truth[0]), (zeros, [0], truth[1])], 1)
    for field in ("hit", "false", "overlap", "regions"):
        assert np.array_equal(getattr(without, field), getattr(equal, field))

import json

import numpy as np
import pytest

from trainer.errors import DataError
from trainer.evaluation.bootstrap import compare_paired, miou_interval
from trainer.evaluation.image_counts import ImageCounts, sparse
from trainer.evaluation.metrics import mean_iou

CLASSES = ("cat", "dog")


def system(rights, classes=CLASSES, ids=None):
    """Images of one class each, of which a share of the pixels is right and the rest is called
    background.
    """
    images = []
    for n, right in enumerate(rights):
        counts = np.zeros((len(classes) + 1, len(classes) + 2), np.int64)
        label = 1 + n % len(classes)
        hit = round(1000 * right)
        counts[label, label], counts[label, 0], counts[0, 0] = hit, 1000 - hit, 2000
        images.append(sparse(counts))
    return ImageCounts.of(ids or [str(n) for n in range(len(rights))], classes, images)


def test_identical_predictions_differ_by_nothing():
    a = system(np.random.RandomState(0).uniform(0.3, 0.9, 50))
    result = compare_paired(a, a, samples=500)
    assert (result.difference.value, result.difference.low, result.difference.high) == (0, 0, 0)
    assert (result.ratio.low, result.ratio.high) == (1, 1)
    assert result.p == 1


def test_clearly_better_excludes_nothing_gained():
    rng = np.random.RandomState(0)
    right = rng.uniform(0.3, 0.8, 60)
    worse, better = system(right), system(right + rng.uniform(0.02, 0.1, 60))
    result = compare_paired(worse, better, samples=2000)
    assert 0 < result.difference.low < result.difference.value < result.difference.high
    assert result.p == 0
    assert result.images == 60
    back = compare_paired(better, worse, samples=2000)
    assert back.difference.high < 0
    assert back.ratio.value == pytest.approx(1 / result.ratio.value)
    json.dumps(result.report(), allow_nan=False)


def test_it_resamples_the_figure_of_the_list_and_pairs_images():
    """Against the plain way: draw a list, add up its confusions, take the mean IoU."""
    rng = np.random.RandomState(1)
    a, b = system(rng.uniform(0.2, 0.9, 30)), system(rng.uniform(0.2, 0.9, 30))
    result = compare_paired(a, b, samples=4000, seed=3)
    draws = np.random.default_rng(8)
    plain = []
    for _ in range(2000):
        ids = [str(n) for n in draws.integers(30, size=30)]
        plain.append(float(mean_iou(b.select(ids).total()) - mean_iou(a.select(ids).total())))
    low, high = np.percentile(plain, [2.5, 97.5])
    assert result.difference.value == pytest.approx(
        float(mean_iou(b.total()) - mean_iou(a.total()))
    )
    assert result.difference.low == pytest.approx(low, abs=0.012)
    assert result.difference.high == pytest.approx(high, abs=0.012)


def test_the_seed_decides_and_the_number_of_images_at_a_time_does_not(monkeypatch):
    rng = np.random.RandomState(1)
    a, b = system(rng.uniform(size=20)), system(rng.uniform(size=20))
    whole = compare_paired(a, b, samples=300, seed=5)
    assert compare_paired(a, b, samples=300, seed=5) == whole
    assert compare_paired(a, b, samples=300, seed=6) != whole
    monkeypatch.setattr("trainer.evaluation.bootstrap._DRAWS", 140)
    assert compare_paired(a, b, samples=300, seed=5) == whole


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says():
    """Lists of 80 images drawn from a population of 4,000 whose difference is known."""
    rng = np.random.RandomState(0)
    hard = rng.beta(3, 2, 4000)
    first, second = (
        np.clip(hard + rng.normal(0, 0.1, 4000), 0, 1),
        np.clip(hard + rng.normal(0.01, 0.1, 4000), 0, 1),
    )
    a, b = system(first), system(second)
    truth = float(mean_iou(b.total()) - mean_iou(a.total()))
    inside = 0
    for trial in range(150):
        ids = [str(n) for n in rng.choice(4000, 80, replace=False)]
        drawn = compare_paired(a.select(ids), b.select(ids), samples=400, seed=trial).difference
        inside += drawn.low <= truth <= drawn.high
    assert 0.89 <= inside / 150 <= 0.99


def test_interval_of_one_figure_and_of_a_ratio():
    a = system(np.random.RandomState(2).uniform(0.3, 0.9, 40))
    found = miou_interval(a, samples=1000)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(float(mean_iou(a.total())))
    half = compare_paired(a, system(np.zeros(40)), samples=500).ratio
    assert half.low <= half.value <= half.high < 1


def test_conventions_and_a_class_that_a_drawn_list_lacks():
    a, b = system([0.5, 0.9, 0.4]), system([0.6, 0.9, 0.5])
    strict = compare_paired(a, b, "voc-devkit", samples=200)
    assert np.isfinite([strict.difference.low, strict.difference.high]).all()
    assert compare_paired(a, b, "seam", samples=200).difference.value == pytest.approx(
        strict.difference.value
    )


def test_other_images_and_none_are_refused():
    a = system([0.5, 0.5])
    with pytest.raises(DataError, match="other images"):
        compare_paired(a, system([0.5, 0.5], ids=["0", "x"]))
    with pytest.raises(DataError, match="no image"):
        miou_interval(system([]))


def test_runs_of_one_seed_each_that_agree_are_as_good_as_one_run():
    rng = np.random.RandomState(2)
    a, b = system(rng.uniform(0.2, 0.9, 30)), system(rng.uniform(0.2, 0.9, 30))
    one = compare_paired(a, b, samples=300)
    three = compare_paired([a] * 3, [b] * 3, samples=300)
    assert (one.seeds, three.seeds) == ((1, 1), (3, 3))
    for key in ("value", "low", "high"):
        assert getattr(three.difference, key) == pytest.approx(getattr(one.difference, key))


def test_the_seed_of_the_training_is_drawn_too():
    """Equal images leave the seeds as the only chance: of three, two are drawn."""
    runs = [system([share] * 20) for share in (0.3, 0.5, 0.9)]
    values = [float(mean_iou(run.total())) for run in runs]
    interval = miou_interval(runs, samples=2000)
    assert interval.value == pytest.approx(np.mean(values))
    assert interval.low == pytest.approx(min(values))
    assert interval.high == pytest.approx(max(values))
    # Seeds of both sides are drawn together, so what they do to both cancels out.
    better = [system([share + 0.05] * 20) for share in (0.3, 0.5, 0.9)]
    paired = compare_paired(runs, better, samples=500)
    assert paired.difference.low > 0
    apart = compare_paired(runs, better[:2], samples=500)
    assert apart.difference.low < 0 < apart.difference.high
    assert apart.seeds == (3, 2)


def test_the_variance_of_the_mean_over_seeds_is_not_too_small():
    from trainer.evaluation.bootstrap import _resample

    runs = [system([share] * 20) for share in (0.3, 0.5, 0.9)]
    values = [float(mean_iou(run.total())) for run in runs]
    _, draws = _resample([runs], "default", 20_000, 0)
    assert draws[:, 0, -1].var() == pytest.approx(np.var(values, ddof=1) / 3, rel=0.05)

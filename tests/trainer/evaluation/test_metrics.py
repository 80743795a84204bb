"""Every convention against the loop over classes of the script that it is named after (spec
refine-segment 12).
"""

import json

import numpy as np
import pytest

from trainer.errors import ConfigError, DataError
from trainer.evaluation import metrics
from trainer.evaluation.metrics import (
    ALIASES,
    CONVENTIONS,
    confusion,
    convention_name,
    mean_iou,
    summarise,
)

CLASSES = ("cat", "dog", "cow", "sheep")


@pytest.fixture
def scene():
    """Class 3 is found and not there, class 4 is neither; some truth is unknown."""
    rng = np.random.RandomState(0)
    truth = rng.choice([0, 1, 2, 255], (40, 50), p=[0.5, 0.3, 0.1, 0.1])
    pred = np.where(
        rng.uniform(size=truth.shape) < 0.7, truth, rng.choice([0, 1, 2, 3], truth.shape)
    )
    return np.where(pred == 255, 0, pred), truth


def tallies(pred, truth, label):
    known = truth != 255
    hit = int(((pred == label) & (truth == label) & known).sum())
    return hit, int(((truth == label) & known).sum()), int(((pred == label) & known).sum())


def test_each_mean_is_that_of_its_script(scene):
    pred, truth = scene
    table = [tallies(pred, truth, label) for label in range(5)]
    counts = confusion(pred, truth, 5)
    union = [t + p - h for h, t, p in table]
    expected = {
        "default": np.mean([h / u for (h, _, _), u in zip(table, union) if u]),
        "chainercv": np.nanmean([h / u if u else np.nan for (h, _, _), u in zip(table, union)]),
        "deeplab-pytorch": np.mean([h / u for (h, t, _), u in zip(table, union) if t]),
        "seam": np.mean([h / (u + 1e-10) for (h, _, _), u in zip(table, union)]),
    }
    for name, value in expected.items():
        assert float(mean_iou(counts, name)) == pytest.approx(value, abs=1e-12)
    assert len({round(v, 6) for v in expected.values()}) == 3
    assert np.isnan(mean_iou(counts, "voc-devkit"))


def test_all_agree_where_every_class_is_there_and_nothing_is_left_open():
    rng = np.random.RandomState(1)
    counts = confusion(rng.randint(5, size=(30, 30)), rng.randint(5, size=(30, 30)), 5)
    values = [float(mean_iou(counts, name)) for name in CONVENTIONS]
    assert values == pytest.approx([values[0]] * len(values), abs=1e-12)


def test_predicted_255_is_background_missed_or_refused(scene):
    pred, truth = scene
    pred[:10] = 255
    counts = confusion(pred, truth, 5, predicted_ignore="own")
    assert counts.shape == (5, 6)
    assert counts[:, 5].sum() == (truth[:10] != 255).sum()
    as_background = confusion(np.where(pred == 255, 0, pred), truth, 5)
    np.testing.assert_array_equal(as_background, confusion(pred, truth, 5))
    assert float(mean_iou(counts)) == pytest.approx(float(mean_iou(as_background)), abs=1e-12)
    # SEAM's script counts the truth and the hits of such a pixel, and no found class.
    table = [tallies(pred, truth, label) for label in range(5)]
    missed = np.mean([h / (t + p - h + 1e-10) for h, t, p in table])
    assert float(mean_iou(counts, "seam")) == pytest.approx(missed, abs=1e-12)
    for name in ("voc-devkit", "deeplab-pytorch"):
        with pytest.raises(DataError, match="hold 255") as caught:
            mean_iou(counts, name)
        assert "--convention default" in caught.value.hint
    assert summarise(counts, CLASSES)["miou_by_convention"]["voc-devkit"] is None
    assert summarise(counts, CLASSES)["predicted_ignore"] == counts[:, 5].sum()


def test_summary_says_its_convention_and_all_the_others(scene):
    counts = confusion(*scene, 5)
    summary = json.loads(json.dumps(summarise(counts, CLASSES, "seam"), allow_nan=False))
    assert summary["convention"] == "seam"
    assert summary["miou"] == summary["miou_by_convention"]["seam"]
    assert set(summary["miou_by_convention"]) == set(CONVENTIONS)
    assert summary["confusion"] == counts.tolist()
    assert summarise(counts, CLASSES)["miou"] == summary["miou_by_convention"]["default"]


def test_f_scores_by_hand():
    counts = np.array([[50, 10, 0], [5, 20, 5], [0, 0, 10]])
    m = metrics.metrics(counts)
    np.testing.assert_allclose(m.f, [100 / 115, 40 / 60, 20 / 25])
    assert m.mean_f == pytest.approx(np.mean([100 / 115, 40 / 60, 20 / 25]))
    p, r = np.mean([50 / 55, 20 / 30, 10 / 15]), np.mean([50 / 60, 20 / 30, 1])
    assert m.f_of_means == pytest.approx(2 * p * r / (p + r))
    assert m.over_activation == pytest.approx((10 / 40 + 5 / 15) / 2)
    assert m.under_activation == pytest.approx((10 / 40 + 0) / 2)


def test_counts_do_not_overflow_where_int32_would():
    """40,000 COCO images of 300,000 pixels (spec 10)."""
    counts = np.array([[9_000_000_000, 1_000_000_000], [1_000_000_000, 1_000_000_000]])
    assert float(mean_iou(counts)) == pytest.approx((9 / 11 + 1 / 3) / 2)
    assert confusion(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), 2).dtype == np.int64


def test_names_of_papers_lead_to_their_convention():
    assert {convention_name(alias) for alias in ALIASES} <= set(CONVENTIONS)
    assert convention_name("irn") == "chainercv"
    with pytest.raises(ConfigError, match="no convention 'seem'") as caught:
        convention_name("seem")
    assert "'seam'" in caught.value.expected

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import ConfigError
from trainer.evaluation.boundary import CSURKA, boundary_f, describe_tolerance, tolerance_pixels


def edge_points(labels, label):
    """Pixels of ``label`` with another label beside them, by the definition."""
    height, width = labels.shape
    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if labels[y, x] == label
        and any(
            labels[v, u] != label
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            if 0 <= v < height and 0 <= u < width
        )
    ]


def distance(point, others):
    return min((np.hypot(point[0] - y, point[1] - x) for y, x in others), default=np.inf)


def by_definition(pred, truth, classes, reach):
    """Every pair of points, and every unknown pixel against every known one."""
    pred, known = np.where(pred == 255, 0, pred), np.argwhere(truth < classes)
    filled, depth = truth.copy(), np.zeros(truth.shape)
    for y, x in np.argwhere(truth >= classes):
        away = np.hypot(known[:, 0] - y, known[:, 1] - x) if len(known) else np.array([np.inf])
        depth[y, x] = away.min()
        filled[y, x] = truth[tuple(known[away.argmin()])] if len(known) else 0
    values = []
    for label in range(classes):
        true = [p for p in edge_points(filled, label) if depth[p] <= reach]
        found = [p for p in edge_points(pred, label) if depth[p] <= reach]
        if not true and not found:
            values.append(np.nan)
            continue
        precision = np.mean([distance(p, true) <= reach for p in found]) if found and true else 0
        recall = np.mean([distance(p, found) <= reach for p in true]) if found and true else 0
        values.append(2 * precision * recall / (precision + recall) if precision + recall else 0)
    return np.array(values)


def blobs(seed, height=24, width=31, unknown=False):
    rng = np.random.RandomState(seed)
    labels = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    for label in (1, 2, 3)[: 1 + seed % 3]:
        centre = rng.uniform(0, height), rng.uniform(0, width)
        away = np.hypot(y - centre[0], x - centre[1]) / rng.uniform(3, 9)
        labels[away < 1] = label
        if unknown:
            # A band of odd width, whose pixels have one nearest known side, as fills that tie may
            # differ.
            labels[abs(away - 1) < 0.12] = 255
    return labels


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.sampled_from([1.0, 1.5, 2.0, 3.7, 0.05]))
def test_equals_every_pair_of_points(a, b, tolerance):
    truth, pred = blobs(a), blobs(b)
    reach = tolerance_pixels(tolerance, truth.shape)
    np.testing.assert_allclose(
        boundary_f(pred, truth, 4, tolerance), by_definition(pred, truth, 4, reach), atol=1e-6
    )


def test_equals_the_definition_where_truth_and_prediction_leave_pixels_open():
    truth = np.zeros((20, 30), np.uint8)
    truth[5:15, 8:20] = 255
    truth[6:14, 9:19] = 1
    truth[0:8, 24:] = 255
    pred = np.zeros_like(truth)
    pred[5:13, 9:21] = 1
    pred[18:] = 255
    for tolerance in (1, 2, 4):
        expected = by_definition(pred, truth, 2, tolerance)
        np.testing.assert_allclose(boundary_f(pred, truth, 2, tolerance), expected, atol=1e-6)


def test_a_true_outline_is_1_and_a_shifted_one_counts_within_the_tolerance():
    truth = np.zeros((40, 40), np.uint8)
    truth[10:30, 10:30] = 1
    shifted = np.roll(truth, 3, 1)
    assert boundary_f(truth, truth, 2, 1).tolist() == [1, 1]
    assert boundary_f(shifted, truth, 2, 3).tolist() == [1, 1]
    assert boundary_f(shifted, truth, 2, 2)[1] < 1
    assert boundary_f(shifted, truth, 2, 2)[1] == pytest.approx(
        by_definition(shifted, truth, 2, 2)[1]
    )


def test_absent_missed_and_invented_classes():
    truth = np.zeros((20, 20), np.uint8)
    truth[5:12, 5:12] = 1
    pred = np.zeros_like(truth)
    pred[5:12, 5:12] = 2
    values = boundary_f(pred, truth, 4, 2)
    assert values[0] == 1
    assert values[1:3].tolist() == [0, 0]
    assert np.isnan(values[3])
    assert np.isnan(boundary_f(np.zeros_like(truth), np.zeros_like(truth), 4)).all()
    assert np.isnan(boundary_f(pred, np.full_like(truth, 255), 4)).all()


def test_boundary_deep_in_the_unknown_is_not_judged():
    truth = np.zeros((40, 60), np.uint8)
    truth[5:35, 30:] = 255
    truth[10:30, 5:20] = 1
    pred = truth.copy()
    pred[pred == 255] = 0
    assert boundary_f(pred, truth, 2, 2).tolist() == [1, 1]
    pred[15:25, 40:50] = 1
    assert boundary_f(pred, truth, 2, 2).tolist() == [1, 1]
    pred[12:28, 22:27] = 1
    assert boundary_f(pred, truth, 2, 2)[1] < 1


def test_tolerance_in_pixels_and_as_a_fraction():
    assert tolerance_pixels(3, (375, 500)) == 3
    assert tolerance_pixels(CSURKA, (375, 500)) == pytest.approx(4.6875)
    assert describe_tolerance(CSURKA) == "0.75 % of the diagonal"
    assert describe_tolerance(3) == "3 pixels"
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="tolerance"):
            tolerance_pixels(wrong, (10, 10))

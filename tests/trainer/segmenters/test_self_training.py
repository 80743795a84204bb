"""What one round of self-training takes from the one before: tags as a filter, confidence, and
classes that a network has missed.
"""

from __future__ import annotations

import numpy as np
import pytest

from trainer.segmenters.self_training import allowed, confident_labels, with_tags


def test_excluded_classes_get_nothing_and_the_rest_sums_to_one():
    chance = np.array([[[0.2, 0.0]], [[0.7, 1.0]], [[0.1, 0.0]]], np.float32)
    labels = np.array([0, 2], np.uint8)
    ours = allowed(chance, labels)
    np.testing.assert_allclose(ours.sum(0), 1, rtol=1e-6)
    np.testing.assert_allclose(ours[:, 0, 0], [2 / 3, 1 / 3], rtol=1e-5)
    # Nothing is left where an excluded class was certain: that pixel is open.
    np.testing.assert_allclose(ours[:, 0, 1], [0.5, 0.5])
    assert confident_labels(ours, labels, 0.6).tolist() == [[0, 255]]
    assert confident_labels(ours, labels, 0.0).tolist() == [[0, 0]]


def test_labels_are_those_of_the_table():
    chance = np.array([[[0.1, 0.3]], [[0.9, 0.7]]], np.float32)
    assert confident_labels(chance, np.array([0, 5], np.uint8), 0.8).tolist() == [[5, 255]]


def test_without_a_class_everything_is_background():
    chance = np.full((4, 2, 2), 0.25, np.float32)
    labels = np.array([0], np.uint8)
    assert not confident_labels(allowed(chance, labels), labels, 0.9).any()


@pytest.mark.parametrize(
    ("mask", "tags", "result"),
    [
        ([0, 1, 0, 255], (0,), [0, 1, 0, 255]),
        ([0, 0, 0, 255], (0,), [0, 1, 1, 255]),
        ([2, 0, 0, 0], (0, 1), [2, 1, 1, 0]),
        ([0, 0, 0, 0], (), [0, 0, 0, 0]),
    ],
)
def test_a_tagged_class_that_nobody_sees_keeps_its_pixels(mask, tags, result):
    former = np.array([[2, 1, 1, 0]], np.uint8)
    assert with_tags(np.array([mask], np.uint8), former, tags).tolist() == [result]

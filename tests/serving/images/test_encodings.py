from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.images import encodings

coco = pytest.importorskip("pycocotools.mask")

MAPS = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 3)
)


def blocks(shape: tuple[int, int], classes: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(
        0, classes + 1, (shape[0] // 9 + 1, shape[1] // 7 + 1), dtype=np.uint8
    )
    return np.repeat(np.repeat(coarse, 9, 0), 7, 1)[: shape[0], : shape[1]]


def theirs(labels: np.ndarray) -> dict[int, bytes]:
    return {
        int(k): coco.encode(np.asfortranarray(labels == k))["counts"]
        for k in np.unique(labels)
        if k
    }


@settings(deadline=None, max_examples=60)
@given(MAPS)
def test_coco_counts_are_those_of_pycocotools_and_come_back(labels):
    counts = encodings.coco_counts(labels)
    assert counts == theirs(labels)
    np.testing.assert_array_equal(encodings.from_coco_counts(counts, *labels.shape), labels)


@pytest.mark.parametrize("shape", [(375, 500), (1, 70_000), (70_000, 1), (1, 1)])
def test_long_runs_and_many_classes(shape):
    for labels in (blocks(shape, 254), np.full(shape, 7, np.uint8), np.zeros(shape, np.uint8)):
        counts = encodings.coco_counts(labels)
        assert counts == theirs(labels)
        np.testing.assert_array_equal(encodings.from_coco_counts(counts, *shape), labels)


@settings(deadline=None, max_examples=60)
@given(MAPS)
def test_label_runs_with_areas_and_boxes(labels):
    runs = encodings.label_runs(labels)
    assert (runs.labels[1:] != runs.labels[:-1]).all()
    np.testing.assert_array_equal(
        encodings.from_runs(runs.labels, runs.lengths, *labels.shape), labels
    )
    boxes = encodings.boxes(runs, labels.shape[1])
    np.testing.assert_array_equal(
        encodings.areas(runs), np.bincount(labels.reshape(-1), minlength=256)
    )
    assert set(boxes) == set(np.unique(labels).tolist())
    for label, (left, top, width, height) in boxes.items():
        rows, columns = np.nonzero(labels == label)
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def test_counts_of_one_flat_mask():
    assert encodings.uncompressed_counts([True, True, False]) == [0, 2, 1]
    assert encodings.uncompressed_counts([False, True]) == [1, 1]


@pytest.mark.parametrize("text", [b"P", b"\xff", b"~", b"!", b"o" * 20, b"o" * 20 + b"1"])
def test_strings_that_are_no_run_lengths(text):
    with pytest.raises(ValueError, match="run lengths"):
        encodings.from_coco_counts({1: text}, 5, 5)


def test_runs_of_another_size():
    for labels, lengths in ((b"\1", [7]), (b"\1\2", [9]), (b"\1\2", [-1, 10])):
        with pytest.raises(ValueError, match="3x3"):
            encodings.from_runs(np.frombuffer(labels, np.uint8), lengths, 3, 3)

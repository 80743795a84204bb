"""Sub-categories: FINCH against the golden counts of spec methods 13, labels of SC-CAM (12.1,
12.5).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from trainer.errors import ConfigError
from trainer.methods.clustering import finch, finch_labels, kmeans, subcategory_labels

Array = npt.NDArray[Any]


def uniform(shape: tuple[int, ...], s: int) -> Array:
    """U of spec methods 2."""
    i = np.arange(int(np.prod(shape))) + 1
    v = np.sin(12.9898 * i + 78.233 * s) * 43758.5453
    return np.asarray(v - np.floor(v)).reshape(shape)


def points(n: int, k: int, d: int, s: int, noise: float) -> Array:
    """X of spec methods 13."""
    return 4 * (uniform((k, d), s) - 0.5)[np.arange(n) % k] + noise * (uniform((n, d), s + 1) - 0.5)


def tags(n: int, classes: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    found = rng.random((n, classes)) < 0.3
    found[np.arange(n), rng.integers(classes, size=n)] = True
    return found.astype(np.float32)


def slow_finch(x: Array, early_exit: bool) -> list[Array]:
    """FINCH as it is written: dense matrices, (K+I)(K+I)^T, and components by repeated products."""
    x = x.astype(np.float32)
    labels, longest = np.arange(len(x)), np.inf
    found: list[Array] = []
    while True:
        means = np.stack(
            [x[labels == c].mean(axis=0, dtype=np.float64) for c in range(labels.max() + 1)]
        )
        unit = means / np.linalg.norm(means, axis=1, keepdims=True)
        distance = 1 - unit @ unit.T
        np.fill_diagonal(distance, np.inf)
        count = len(means)
        link = np.eye(count)
        link[np.arange(count), distance.argmin(axis=1)] += 1
        link = link @ link.T
        np.fill_diagonal(link, 0)
        np.fill_diagonal(distance, 0)
        if found:
            link[distance * link > longest] = 0
        elif early_exit and count > 2:
            longest = (distance * link).max()
        reach = np.eye(count) + link > 0
        for _ in range(10):
            reach = reach.astype(np.float32) @ reach.astype(np.float32) > 0
        merged = np.unique(reach.argmax(axis=1), return_inverse=True)[1]
        left = merged.max() + 1
        if found and (left == 1 or left == count):
            return found
        labels = merged[labels]
        found.append(labels)
        if left == 1 or (len(found) > 1 and left == count - 1):
            return found


@pytest.mark.parametrize(
    ("case", "plain", "early"),
    [
        ((105, 7, 8, 51, 0.5), [27, 8, 2], [27, 8, 7]),
        ((200, 5, 16, 53, 2.0), [44, 9, 4], [44, 9, 5]),
        ((60, 3, 4, 55, 1.0), [16, 5, 2], [16, 6, 5]),
        ((500, 10, 32, 57, 3.0), [87, 12, 4], [87, 12, 10]),
        ((40, 40, 8, 59, 1.0), [9, 3], [9, 6]),
    ],
)
def test_finch_golden(
    case: tuple[int, int, int, int, float], plain: list[int], early: list[int]
) -> None:
    x = points(*case)
    for early_exit, wanted in ((False, plain), (True, early)):
        partitions, counts = finch(x, early_exit=early_exit)
        assert counts.tolist() == wanted
        assert [len(np.unique(p)) for p in partitions.T] == wanted
        np.testing.assert_array_equal(partitions.T, slow_finch(x, early_exit))


def test_finch_golden_sizes() -> None:
    x = points(200, 5, 16, 53, 2.0)
    assert np.bincount(finch(x, early_exit=False)[0][:, -1]).tolist() == [40, 40, 80, 40]
    assert np.bincount(finch(x)[0][:, -1]).tolist() == [40] * 5


@pytest.mark.parametrize(
    ("options", "counts", "sizes"),
    [
        ({}, [7, 4], [20, 20, 10, 10]),
        ({"early_exit": False}, [7, 3], [20, 20, 20]),
        ({"metric": "euclidean"}, [10, 5, 4], [10, 36, 10, 4]),
    ],
)
def test_finch_golden_of_the_refinement_specification(
    options: dict, counts: list[int], sizes: list[int]
) -> None:
    """G7 of refine-segment 17."""
    i, k = np.arange(60)[:, None], np.arange(8)[None]
    x = (np.sin(0.37 * i * (k + 1)) + 2 * np.cos(1.3 * (i % 6) * (k + 1))).astype(np.float32)
    partitions, found = finch(x, **options)
    assert found.tolist() == counts
    assert sorted(np.bincount(partitions[:, -1]).tolist()) == sorted(sizes)
    if not options:
        np.testing.assert_array_equal(finch(x, required=4)[0][:, -1], partitions[:, -1])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("early_exit", [False, True])
def test_finch_is_the_written_algorithm(seed: int, early_exit: bool) -> None:
    x = np.random.default_rng(seed).normal(size=(150, 6))
    np.testing.assert_array_equal(finch(x, early_exit=early_exit)[0].T, slow_finch(x, early_exit))


def test_finch_in_blocks_is_finch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(200, 5, 16, 53, 2.0)
    whole = finch(x)[0]
    monkeypatch.setattr("trainer.methods.clustering.ROWS", 3)
    np.testing.assert_array_equal(finch(x)[0], whole)


@pytest.mark.parametrize("n", [1, 2])
def test_finch_of_one_or_two_points_is_one_cluster(n: int) -> None:
    partitions, counts = finch(uniform((n, 8), 61))
    assert partitions.tolist() == [[0]] * n
    assert counts.tolist() == [1]


def test_finch_links_ties_to_the_lowest_index() -> None:
    partitions, counts = finch(np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 3))
    assert counts.tolist() == [2]
    assert partitions[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_finch_takes_zero_vectors_and_the_euclidean_metric() -> None:
    x = np.array([[0.0, 0], [0.1, 0], [5, 5], [5.1, 5], [90, 0], [90, 1]])
    assert np.isin(finch(x)[0], range(6)).all()
    assert finch(x, metric="euclidean")[0][:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def merged_by_hand(x: Array, labels: Array, required: int, metric: str) -> Array:
    labels = labels.copy()
    while len(np.unique(labels)) > required:
        names = np.unique(labels)
        means = np.stack([x[labels == c].mean(axis=0) for c in names])
        if metric == "cosine":
            means /= np.linalg.norm(means, axis=1, keepdims=True)
        pairs = list(itertools.combinations(range(len(names)), 2))
        i, j = min(pairs, key=lambda p: float(np.linalg.norm(means[p[0]] - means[p[1]])))
        labels[labels == names[j]] = names[i]
    return np.unique(labels, return_inverse=True)[1]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("required", [1, 6, 9, 20, 60])
def test_finch_required_merges_the_closest_means(metric: Any, required: int) -> None:
    x = points(105, 7, 8, 51, 0.5)
    all_partitions, all_counts = finch(x, metric=metric)
    partitions, counts = finch(x, metric=metric, required=required)
    assert counts[-1] == required
    assert (np.diff(counts) < 0).all()
    kept = [p for p, count in zip(all_partitions.T, all_counts) if count >= required]
    start = kept[-1] if kept else np.arange(len(x))
    np.testing.assert_array_equal(partitions[:, -1], merged_by_hand(x, start, required, metric))


def test_finch_required_keeps_a_partition_that_fits() -> None:
    x = points(105, 7, 8, 51, 0.5)
    partitions, counts = finch(x, required=8)
    assert counts.tolist() == [27, 8]
    np.testing.assert_array_equal(partitions, finch(x)[0][:, :2])
    assert finch(x, required=105)[0][:, -1].tolist() == list(range(105))


@pytest.mark.parametrize(
    ("x", "options", "found"),
    [
        (np.ones((4, 2)), {"required": 5}, "5 clusters of 4 points"),
        (np.ones((4, 2)), {"required": 0}, "0 clusters of 4 points"),
        (np.ones((4, 2)), {"metric": "manhattan"}, "manhattan"),
        (np.ones((0, 2)), {}, "shape"),
        (np.full((4, 2), np.nan), {}, "NaN"),
    ],
)
def test_finch_refuses(x: Array, options: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        finch(x, **options)


def test_finch_labels_are_the_last_partition_of_each_class() -> None:
    x, present = points(120, 6, 8, 63, 0.5), tags(120, 4, 1)
    present[:, 2] = 0
    present[:, 3] = 0
    present[7, 3] = 1
    labels, counts = finch_labels(x, present)
    first = present[:, 0] > 0
    expected, sizes = finch(x[first])
    assert counts.tolist() == [sizes[-1], counts[1], 0, 1]
    assert labels.shape == (120, counts.sum())
    np.testing.assert_array_equal(labels[first, : sizes[-1]].argmax(axis=1), expected[:, -1])
    ends = np.cumsum(counts)
    sums = np.stack(
        [labels[:, end - count : end].sum(axis=1) for end, count in zip(ends, counts)], axis=1
    )
    np.testing.assert_array_equal(sums, present)
    assert labels.any(axis=0).all()


def test_subcategory_labels_give_one_cluster_for_each_class_of_the_image() -> None:
    x, present, k = points(300, 9, 16, 65, 1.0), tags(300, 5, 2), 4
    labels = subcategory_labels(x, present, k)
    assert labels.shape == (300, 5 * k)
    assert set(np.unique(labels)) == {0, 1}
    for row, classes in zip(labels, present):
        assert (np.flatnonzero(row) // k).tolist() == np.flatnonzero(classes).tolist()
    np.testing.assert_array_equal(labels.sum(axis=1), present.sum(axis=1))
    assert labels.any(axis=0).all()


def test_subcategory_labels_are_the_same_for_the_same_seed() -> None:
    x, present = uniform((200, 12), 67), tags(200, 3, 3)
    first = subcategory_labels(x, present, 8, seed=5)
    np.testing.assert_array_equal(
        first, subcategory_labels(torch.from_numpy(x), torch.from_numpy(present), 8, seed=5)
    )
    assert (first != subcategory_labels(x, present, 8, seed=6)).any()
    alone = subcategory_labels(x, present * [1, 0, 0], 8, seed=5)
    np.testing.assert_array_equal(first[:, :8], alone[:, :8])


def test_subcategory_labels_of_small_and_missing_classes() -> None:
    present = np.zeros((6, 3))
    present[[1, 3, 4], 0] = 1
    present[:, 2] = 1
    labels = subcategory_labels(uniform((6, 5), 69), present, 4)
    assert np.argwhere(labels[:, :4]).tolist() == [[1, 0], [3, 1], [4, 2]]
    assert not labels[:, 4:8].any()
    assert labels[:, 8:].sum(axis=0).min() >= 1


@pytest.mark.parametrize("dimensions", [3, 900])
def test_kmeans_finds_blobs_far_from_the_origin(dimensions: int) -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(400) % 8
    x = (
        rng.normal(size=(8, dimensions))[truth] * 5
        + 0.01 * rng.normal(size=(400, dimensions))
        + 1000
    )
    labels = kmeans(x.astype(np.float32), 8, 0)
    assert len({(a, b) for a, b in zip(truth, labels)}) == 8


def test_kmeans_stops_where_every_point_is_nearest_to_its_own_mean() -> None:
    x = uniform((300, 6), 71).astype(np.float32)
    labels = kmeans(x, 7, 1)
    means = np.stack([x[labels == c].mean(axis=0) for c in range(7)])
    distances = np.linalg.norm(x[:, None] - means, axis=2)
    assert (distances[np.arange(300), labels] <= distances.min(axis=1) + 1e-6).all()


def test_kmeans_of_fewer_different_points_than_clusters() -> None:
    x = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    labels = kmeans(x, 6, 2)
    assert len(np.unique(labels)) == 3
    assert (labels.reshape(3, 10) == labels[::10, None]).all()


@pytest.mark.parametrize(
    ("features", "present", "k"), [((4, 2), (3, 2), 2), ((4, 2), (4, 2), 0), ((4,), (4, 2), 2)]
)
def test_subcategory_labels_refuse(
    features: tuple[int, ...], present: tuple[int, ...], k: int
) -> None:
    with pytest.raises(ConfigError):
        subcategory_labels(np.ones(features), np.ones(present), k)


def test_images_that_may_show_a_class_are_not_clustered_with_it():
    features = np.random.default_rng(0).normal(size=(12, 5))
    tags = np.zeros((12, 2))
    tags[:6, 0] = tags[6:, 1] = 1
    unknown = tags.copy()
    unknown[:6, 1] = np.nan
    assert np.array_equal(
        subcategory_labels(features, tags, 2), subcategory_labels(features, unknown, 2)
    )
    assert np.array_equal(finch_labels(features, tags)[0], finch_labels(features, unknown)[0])

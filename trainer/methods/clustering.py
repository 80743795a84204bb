"""Sub-categories of a class by clustering its images: k-means for SC-CAM, FINCH for Sub-category
Teaching.

SC-CAM: Chang et al., "Weakly-Supervised Semantic Segmentation via Sub-category Exploration", CVPR
2020. FINCH: Sarfraz et al., "Efficient Parameter-free Clustering Using First
Neighbor Relations", CVPR 2019.

Shapes: N images, D feature size, K classes, P partitions. Everything is numpy; CPU tensors are
accepted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from trainer.errors import ConfigError

Metric = Literal["cosine", "euclidean"]
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[np.float32]

ROWS = 1024  # of a distance matrix at a time: 10,582 points need 43 MB, not 450


def finch(
    x_ND: npt.ArrayLike,
    metric: Metric = "cosine",
    early_exit: bool = True,
    required: int | None = None,
) -> tuple[Ints, Ints]:
    """Hierarchy of partitions by first neighbours, from fine to coarse.

    Args:
        x_ND: points ``[N,D]``, cast to float32.
        metric: ``cosine`` (1 - cos) or ``euclidean``.
        early_exit: after the first step, cut links longer than the longest of the first step.
        required: number of clusters of the last partition: coarser ones are dropped, and the
            closest pair of cluster means is merged, one pair at a time, until that many are left.

    Returns:
        Cluster numbers ``int64 [N,P]`` and the number of clusters of each partition ``int64 [P]``.

    Raises:
        ConfigError: for an unknown metric, no points, points that are not finite, or an impossible
        ``required``.
    """
    x = _matrix(x_ND, "points")
    if metric not in get_args(Metric):
        raise ConfigError(f"FINCH metric {metric!r}", "cosine or euclidean", 'metric="cosine"')
    if required is not None and not 1 <= required <= len(x):
        raise ConfigError(
            f"{required} clusters of {len(x)} points",
            f"1 to {len(x)} clusters",
            "ask for fewer clusters",
        )
    if metric == "euclidean":
        # Centred and in float64, because distances made of products lose digits.
        x = x - x.mean(axis=0, dtype=np.float64)
    partitions = _hierarchy(x, metric, early_exit)
    counts = [int(labels.max()) + 1 for labels in partitions]
    if required is not None:
        partitions = [labels for labels, count in zip(partitions, counts) if count >= required]
        counts = [count for count in counts if count >= required]
        if required not in counts:
            partitions.append(
                _merge_closest(
                    x, partitions[-1] if partitions else np.arange(len(x)), required, metric
                )
            )
            counts.append(required)
    return np.stack(partitions, axis=1), np.array(counts, np.int64)


def finch_labels(
    features_ND: npt.ArrayLike, tags_NK: npt.ArrayLike, early_exit: bool = True
) -> tuple[Labels, Ints]:
    """Sub-category labels of Sub-category Teaching: the last FINCH partition of the images of each
    class.

    A class with 1 or 2 images has one sub-category, a class without images none. Embeddings
    ``[N,D]``, 0/1 image labels ``[N,K]``; NaN, unknown, does not cluster. ConfigError if they do
    not fit together.

    Returns:
        0/1 labels ``float32 [N, sum K_c]``, one-hot within each class of the image and zero in the
        others, class after class; and the number of sub-categories K_c of each class ``int64 [K]``.
    """
    features, tags = _features_and_tags(features_ND, tags_NK)
    blocks = []
    for present in tags.T:
        clusters = np.zeros(0, np.int64)
        if present.any():
            clusters = finch(features[present], early_exit=early_exit)[0][:, -1]
        blocks.append(_one_hot(present, clusters, int(clusters.max(initial=-1)) + 1))
    return np.concatenate(blocks, axis=1), np.array([block.shape[1] for block in blocks], np.int64)


def subcategory_labels(
    features_ND: npt.ArrayLike, tags_NK: npt.ArrayLike, k: int, seed: int = 0
) -> Labels:
    """Sub-category labels of SC-CAM: k-means on the images of each class.

    An image of several classes takes part in several clusterings. A class with fewer than ``k``
    images gives each its own cluster and leaves the other columns zero; so does a class without
    images.

    Args:
        features_ND: pooled features ``[N,D]``, not normalised.
        tags_NK: 0/1 image labels ``[N,K]``; NaN, unknown, does not cluster.
        k: clusters a class.
        seed: of the k-means++ starts.

    Returns:
        0/1 labels ``float32 [N, K*k]``, column c*k + cluster for each class c of the image.

    Raises:
        ConfigError: if features and tags do not fit together, or ``k`` is less than 1.
    """
    features, tags = _features_and_tags(features_ND, tags_NK)
    blocks = [_one_hot(present, kmeans(features[present], k, seed), k) for present in tags.T]
    return np.concatenate(blocks, axis=1)


def kmeans(x_ND: Floats, k: int, seed: int) -> Ints:
    """Cluster numbers ``int64 [N]`` of the best of ten Euclidean k-means runs from k-means++
    starts; with N <= k, the point's own index.

    Args:
        x_ND: points ``float32 [N,D]``. Where fewer than ``k`` of them differ, some clusters are
            empty.
        k: clusters, 1 or more, else ConfigError.
        seed: of the starts.
    """
    if k < 1:
        raise ConfigError(f"{k} clusters", "1 or more clusters a class", "k=10")
    # scikit-learn refuses fewer points than clusters.
    if len(x_ND) <= k:
        return np.arange(len(x_ND))
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # SC-CAM was released when ten runs were scikit-learn's default; today's is one.
    model = KMeans(k, n_init=10, max_iter=300, tol=0, random_state=seed)
    # Several threads add up in any order, and then no two runs agree to the last digit.
    with threadpool_limits(1, "openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(model.fit_predict(x_ND), np.int64)


def _hierarchy(x: Floats, metric: Metric, early_exit: bool) -> list[Ints]:
    """Partitions ``[N]`` of FINCH, from fine to coarse."""
    points = _prepare(x, metric)
    nearest = _neighbours(points, metric)[0]
    labels = _components(np.arange(len(x)), nearest, len(x))
    longest = np.inf
    if early_exit and len(x) > 2:
        longest = max(float(lengths.max()) for _, _, lengths in _links(points, nearest, metric))
    partitions = [labels]
    count = int(labels.max()) + 1
    while count > 1:
        # Means of the points themselves, not of the means before: a large cluster weighs more.
        points = _prepare(_means(x, labels, count), metric)
        nearest = _neighbours(points, metric)[0]
        groups = _components(*_short_links(points, nearest, metric, longest), count)
        left = int(groups.max()) + 1
        # FINCH's rule: a partition of one cluster says nothing, and one that merged nothing would
        # repeat itself for ever.
        if left in (1, count):
            break
        labels = groups[labels]
        partitions.append(labels)
        # FINCH's second rule: a step that merged one pair only counts and is the last.
        if left == count - 1:
            break
        count = left
    return partitions


def _short_links(
    points: Floats, nearest: Ints, metric: Metric, longest: float
) -> tuple[Ints, Ints]:
    """Ends of the links that are no longer than ``longest``."""
    if longest == np.inf:
        return np.arange(len(points)), nearest
    pairs = []
    for rows, columns, lengths in _links(points, nearest, metric):
        r, c = np.nonzero(lengths <= longest)
        pairs.append(np.stack([rows[r], columns[c]]))
    a, b = np.concatenate(pairs, axis=1)
    return a, b


def _links(points: Floats, nearest: Ints, metric: Metric) -> Iterator[tuple[Ints, Ints, Floats]]:
    """All linked pairs, as blocks (rows, columns, distance * multiplicity ``[rows,columns]``).

    A point and all whose nearest neighbour it is are linked to each other, so the links are one
    clique a neighbour. Mutual neighbours count twice.
    """
    order = np.argsort(nearest, kind="stable")
    hubs, starts = np.unique(nearest[order], return_index=True)
    for hub, followers in zip(hubs, np.split(order, starts[1:])):
        members = np.append(followers, hub)
        partner = nearest[hub]
        for start in range(0, len(members), ROWS):
            rows = members[start : start + ROWS]
            lengths = _distances(points[rows], points[members], metric)
            # Rounding leaves a point at a small distance from itself.
            lengths[rows[:, None] == members] = 0
            # FINCH's multiplicity: an entry of (K + I)(K + I)^T, where K marks nearest neighbours.
            if nearest[partner] == hub:
                lengths[np.ix_(rows == hub, members == partner)] *= 2
                lengths[np.ix_(rows == partner, members == hub)] *= 2
            yield rows, members, lengths


def _components(a: Ints, b: Ints, count: int) -> Ints:
    """Connected component ``int64 [count]`` of each node, for the edges a-b."""
    edges = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(count, count))
    labels: Ints = connected_components(edges, directed=True, connection="weak")[1].astype(np.int64)
    return labels


def _prepare(x: Floats, metric: Metric) -> Floats:
    """Points ready for ``_distances``: for cosine, rows of length 1; a row of zeros stays."""
    if metric == "euclidean":
        return x
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit: Floats = x / np.where(norms == 0, 1, norms)
    return unit


def _distances(a: Floats, b: Floats, metric: Metric) -> Floats:
    """Distances ``[A,B]`` of prepared points ``[A,D]`` and ``[B,D]``."""
    products: Floats = a @ b.T
    if metric == "cosine":
        # Rounding takes the cosine of equal vectors above 1, and no distance may be negative.
        distances: Floats = np.clip(1 - products, 0, 2)
    else:
        squares = np.einsum("nd,nd->n", a, a)[:, None] + np.einsum("nd,nd->n", b, b)
        # Rounding can fall below 0, whose root is NaN.
        distances = np.sqrt(np.maximum(squares - 2 * products, 0))
    return distances


def _neighbours(points: Floats, metric: Metric) -> tuple[Ints, Floats]:
    """Nearest other point of each, ties to the lowest index, and its distance, both ``[N]``; itself
    if it is alone.
    """
    nearest = np.zeros(len(points), np.int64)
    distance = np.zeros(len(points))
    for start in range(0, len(points), ROWS):
        block = _distances(points[start : start + ROWS], points, metric)
        rows = np.arange(len(block))
        block[rows, start + rows] = np.inf
        nearest[start + rows] = block.argmin(axis=1)
        distance[start + rows] = block.min(axis=1)
    return nearest, distance


def _means(x: Floats, labels: Ints, count: int) -> Floats:
    """Mean ``float64 [count,D]`` of the points of each cluster."""
    members = csr_matrix((np.ones(len(x)), (labels, np.arange(len(x)))), shape=(count, len(x)))
    means: Floats = (members @ x) / np.bincount(labels, minlength=count)[:, None]
    return means


def _merge_closest(x: Floats, labels: Ints, goal: int, metric: Metric) -> Ints:
    """``labels [N]`` after merging the two clusters with the closest means until ``required`` are
    left.
    """
    sizes = np.bincount(labels)
    means = _means(x, labels, len(sizes))
    points = _prepare(means, metric)
    nearest, distance = _neighbours(points, metric)
    owner = np.arange(len(sizes))
    gone = np.zeros(len(sizes), bool)
    for _ in range(len(sizes) - goal):
        closest = int(distance.argmin())
        keep, drop = sorted((closest, int(nearest[closest])))
        means[keep] = np.average(means[[keep, drop]], axis=0, weights=sizes[[keep, drop]])
        points[keep] = _prepare(means[[keep]], metric)[0]
        sizes[keep] += sizes[drop]
        owner[owner == drop] = keep
        gone[drop] = True
        distance[drop] = np.inf
        # Only clusters whose neighbour was one of the two need a new search. For all others it is
        # enough to compare with the merged mean.
        stale = np.union1d(np.flatnonzero(~gone & np.isin(nearest, (keep, drop))), [keep])
        to_keep = _distances(points[[keep]], points, metric)[0]
        closer = ~gone & (to_keep < distance)
        nearest[closer], distance[closer] = keep, to_keep[closer]
        block = _distances(points[stale], points, metric)
        block[:, gone] = np.inf
        block[np.arange(len(stale)), stale] = np.inf
        nearest[stale], distance[stale] = block.argmin(axis=1), block.min(axis=1)
    # Numbered from 0 without gaps: a gap would become a sub-category without images.
    return np.unique(owner[labels], return_inverse=True)[1].astype(np.int64)


def _matrix(x: npt.ArrayLike, what: str) -> Floats:
    matrix = np.asarray(x).astype(np.float32)
    if matrix.ndim != 2 or not len(matrix) or not np.isfinite(matrix).all():
        problem = f"{what} of shape {matrix.shape}" + (
            "" if np.isfinite(matrix).all() else " with NaN or infinity"
        )
        raise ConfigError(
            problem,
            "finite numbers of shape [N,D], N >= 1",
            "check the model that made the features",
        )
    return matrix


def _features_and_tags(
    features_ND: npt.ArrayLike, tags_NK: npt.ArrayLike
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    features = _matrix(features_ND, "features")
    tags = np.asarray(tags_NK) > 0
    if tags.ndim != 2 or len(tags) != len(features) or not tags.shape[1]:
        raise ConfigError(
            f"tags of shape {tags.shape}",
            f"[{len(features)},K], one row a feature",
            "pass both in order",
        )
    return features, tags


def _one_hot(present: npt.NDArray[np.bool_], clusters: Ints, width: int) -> Labels:
    """Block ``[N,width]``: the cluster of each image that has the class, zeros for the others."""
    block = np.zeros((len(present), width), np.float32)
    block[np.flatnonzero(present), clusters] = 1
    return block

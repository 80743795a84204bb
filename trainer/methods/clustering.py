"""Sub-categories of a class by clustering its images: k-means for SC-CAM, FINCH for Sub-category
Teaching.

SC-CAM: Chang et al., "Weakly-Supervised Semantic Segmentation via Sub-category Exploration", CVPR
2020 (spec methods 12). FINCH: Sarfraz et al., "Efficient Parameter-free Clustering Using First
Neighbor Relations", CVPR 2019 (spec 13).

Shapes: N images, D feature size, K classes, P partitions. Everything is numpy; CPU tensors are
accepted.
"""

from __future__ import annotations

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
        x = x - x.mean(
            axis=0, dtype=np.float64
        )  # and in float64: distances by products lose digits
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
    ``[N,D]``, 0/1 image labels ``[N,K]``. ConfigError if they do not fit together.

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
    """Sub-category labels of SC-CAM (spec methods 12.1): k-means on the images of each class.

    An image of several classes takes part in several clusterings. A class with fewer than ``k``
    images gives each its own cluster and leaves the other columns zero; so does a class without
    images.

    Args:
        features_ND: pooled features ``[N,D]``, not normalised.
        tags_NK: 0/1 image labels ``[N,K]``.
        k: clusters a class.
        seed: of the k-means++ starts.

    Returns:
        0/1 labels ``float32 [N, K*k]``, column c*k + cluster for each class c of the image.

    Raises:
        ConfigError: if features and tags do not fit together, or ``k`` is less than 1.
    """
    features, tags = _features_and_tags(features_ND, tags_NK)
    blocks = [
        _one_hot(present, kmeans(features[present], k, np.random.default_rng([seed, c])), k)
        for c, present in enumerate(tags.T)
    ]
    return np.concatenate(blocks, axis=1)


def kmeans(
    x_ND: Floats, k: int, rng: np.random.Generator, starts: int = 10, max_iter: int = 300
) -> Ints:
    """Cluster numbers ``int64 [N]`` of the best of several Euclidean k-means runs; with N <= k, the
    point's own index.

    Runs until no point changes its cluster. An empty cluster gets the point farthest from its
    centre.

    Args:
        x_ND: points ``float32 [N,D]``.
        k: clusters, 1 or more, else ConfigError.
        rng: for the k-means++ starts.
        starts: runs; all go through one matrix product.
        max_iter: iterations a run.
    """
    if k < 1:
        raise ConfigError(f"{k} clusters", "1 or more clusters a class", "k=10")
    count = len(x_ND)
    if count <= k:
        return np.arange(count)
    # Distances by products lose precision far from the origin.
    x: Floats = (x_ND - x_ND.mean(axis=0, dtype=np.float64)).astype(np.float32)
    squares = np.einsum("nd,nd->n", x, x)
    centres = x[_plus_plus(x, squares, k, starts, rng)]
    labels = np.full((starts, count), -1, np.int64)
    inertia = np.zeros(starts)
    active = np.arange(starts)
    for _ in range(max_iter):
        flat = centres[active].reshape(-1, x.shape[1])
        scores = (np.einsum("kd,kd->k", flat, flat) - 2 * (x @ flat.T)).reshape(count, -1, k)
        nearest = scores.argmin(axis=2).T
        distances = np.maximum(scores.min(axis=2) + squares[:, None], 0).T
        for row, distance in zip(nearest, distances):
            _fill_empty(row, distance, k)
        changed = (nearest != labels[active]).any(axis=1)
        labels[active] = nearest
        inertia[active] = distances.sum(axis=1, dtype=np.float64)
        active, nearest = active[changed], nearest[changed]
        if not len(active):
            break
        members = (
            (nearest[:, None, :] == np.arange(k)[:, None]).reshape(-1, count).astype(np.float32)
        )
        means = members @ x / members.sum(axis=1, keepdims=True)
        centres[active] = means.reshape(-1, k, x.shape[1])
    best: Ints = labels[inertia.argmin()]
    return best


def _plus_plus(x: Floats, squares: Floats, k: int, starts: int, rng: np.random.Generator) -> Ints:
    """Points ``[starts,k]`` to start from. Greedy k-means++ as in scikit-learn: the best of a few
    draws each time.
    """
    trials = 2 + int(np.log(k))
    chosen = rng.integers(len(x), size=(starts, 1))
    closest = _squared_distances(x, squares, chosen[:, 0])
    for _ in range(1, k):
        mass = np.cumsum(closest, axis=1, dtype=np.float64)
        thresholds = rng.random((starts, trials)) * mass[:, -1:]
        draws = np.stack([np.searchsorted(m, t, side="right") for m, t in zip(mass, thresholds)])
        draws = np.minimum(draws, len(x) - 1)
        candidates = _squared_distances(x, squares, draws.ravel()).reshape(starts, trials, -1)
        candidates = np.minimum(candidates, closest[:, None])
        best = candidates.sum(axis=2, dtype=np.float64).argmin(axis=1)
        closest = candidates[np.arange(starts), best]
        chosen = np.concatenate([chosen, draws[np.arange(starts), best][:, None]], axis=1)
    return chosen


def _squared_distances(x: Floats, squares: Floats, indices: Ints) -> Floats:
    """Squared distances ``[M,N]`` of the points ``indices [M]`` to all points."""
    distances = np.maximum(squares[indices, None] + squares - 2 * (x[indices] @ x.T), 0)
    distances[np.arange(len(indices)), indices] = 0
    return distances


def _fill_empty(labels: Ints, distances: Floats, k: int) -> None:
    """Give each empty cluster the farthest point of a cluster of two or more, in place. ``labels,
    distances [N]``.
    """
    sizes = np.bincount(labels, minlength=k)
    for empty in np.flatnonzero(sizes == 0):
        farthest = np.where(sizes[labels] > 1, distances, -1).argmax()
        sizes[labels[farthest]] -= 1
        sizes[empty] = 1
        labels[farthest] = empty
        distances[farthest] = 0


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
        points = _prepare(_means(x, labels, count), metric)
        nearest = _neighbours(points, metric)[0]
        merged = _components(*_short_links(points, nearest, metric, longest), count)
        left = int(merged.max()) + 1
        if left in (1, count):
            break
        labels = merged[labels]
        partitions.append(labels)
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
            lengths[rows[:, None] == members] = 0
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
        distances: Floats = np.clip(1 - products, 0, 2)
    else:
        squares = np.einsum("nd,nd->n", a, a)[:, None] + np.einsum("nd,nd->n", b, b)
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


def _merge_closest(x: Floats, labels: Ints, required: int, metric: Metric) -> Ints:
    """``labels [N]`` after merging the two clusters with the closest means until ``required`` are
    left.
    """
    sizes = np.bincount(labels)
    means = _means(x, labels, len(sizes))
    points = _prepare(means, metric)
    nearest, distance = _neighbours(points, metric)
    owner = np.arange(len(sizes))
    gone = np.zeros(len(sizes), bool)
    for _ in range(len(sizes) - required):
        closest = int(distance.argmin())
        keep, drop = sorted((closest, int(nearest[closest])))
        means[keep] = np.average(means[[keep, drop]], axis=0, weights=sizes[[keep, drop]])
        points[keep] = _prepare(means[[keep]], metric)[0]
        sizes[keep] += sizes[drop]
        owner[owner == drop] = keep
        gone[drop] = True
        distance[drop] = np.inf
        stale = np.union1d(np.flatnonzero(~gone & np.isin(nearest, (keep, drop))), [keep])
        to_keep = _distances(points[[keep]], points, metric)[0]
        closer = ~gone & (to_keep < distance)
        nearest[closer], distance[closer] = keep, to_keep[closer]
        block = _distances(points[stale], points, metric)
        block[:, gone] = np.inf
        block[np.arange(len(stale)), stale] = np.inf
        nearest[stale], distance[stale] = block.argmin(axis=1), block.min(axis=1)
    return np.unique(owner[labels], return_inverse=True)[1].astype(np.int64)


def _matrix(x: npt.ArrayLike, what: str) -> Floats:
    matrix = np.asarray(x).astype(np.float32)
    if matrix.ndim != 2 or not len(matrix) or not np.isfinite(matrix).all():
        found = f"{what} of shape {matrix.shape}" + (
            "" if np.isfinite(matrix).all() else " with NaN or infinity"
        )
        raise ConfigError(
            found, "finite numbers of shape [N,D], N >= 1", "check the model that made the features"
        )
    return matrix


def _features_and_tags(
    features_ND: npt.ArrayLike, tags_NK: npt.ArrayLike
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    features = _matrix(features_ND, "features")
    tags = np.asarray(tags_NK) != 0
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

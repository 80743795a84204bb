"""Time the boundary F-score and the bootstrap against the plain way, in turns.

Boundary: nearest outline pixels by a tree of outlines, against two distance transforms of the whole
image for each class. Bootstrap: the counts of all drawn lists as one matrix product, against adding
up the confusions of each drawn list. The plain bootstrap does a hundredth of the draws, from the
same random numbers, and its time is scaled up.

Prints the times, the ratios and the peak memory. Both sides must give the same values.

    python bench/evaluation.py --images 40
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import command_line
import memory
import numpy as np
from scipy.ndimage import distance_transform_edt

from trainer.evaluation.bootstrap import SAMPLES, compare_paired
from trainer.evaluation.boundary import boundary_f, contour, tolerance_pixels
from trainer.evaluation.image_counts import ImageCounts, sparse
from trainer.evaluation.metrics import confusion, mean_iou

Result = TypeVar("Result")


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted mask of one or two round objects of 20 classes, about 375x500 pixels."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    truth, pred = np.zeros((2, height, width), np.uint8)
    for label in rng.choice(np.arange(1, 21), 1 + seed % 2, replace=False):
        centre, radius = rng.uniform(0.2, 0.8, 2) * (height, width), rng.uniform(0.1, 0.3) * width
        shift = rng.normal(0, 6, 2)
        truth[np.hypot(y - centre[0], x - centre[1]) < radius] = label
        pred[
            np.hypot(y - centre[0] - shift[0], x - centre[1] - shift[1])
            < radius * rng.uniform(0.8, 1.2)
        ] = label
    return truth, pred


def by_distance_transform(pred: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    reach, values = tolerance_pixels(0.0075, truth.shape), np.full(classes, np.nan, np.float32)
    edges = contour(truth), contour(pred)
    for label in np.union1d(truth[edges[0]], pred[edges[1]]):
        truth_edge, pred_edge = edges[0] & (truth == label), edges[1] & (pred == label)
        values[label] = 0
        if truth_edge.any() and pred_edge.any():
            precision = (distance_transform_edt(~truth_edge)[pred_edge] <= reach).mean()
            recall = (distance_transform_edt(~pred_edge)[truth_edge] <= reach).mean()
            values[label] = (
                2 * precision * recall / (precision + recall) if precision + recall else 0
            )
    return values


def by_adding_up(a: ImageCounts, b: ImageCounts, samples: int) -> np.ndarray:
    dense = [np.stack([counts.select([name]).total() for name in counts.ids]) for counts in (a, b)]
    rng = np.random.default_rng(0)
    differences = []
    for picks in rng.integers(len(a.ids), size=(samples, len(a.ids))):
        mious = [float(mean_iou(matrices[picks].sum(0))) for matrices in dense]
        differences.append(mious[1] - mious[0])
    return np.array(differences)


def timed(work: Callable[..., Result], *arguments: Any) -> tuple[float, Result]:
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def counts_of(images: int, skill: float) -> ImageCounts:
    """Counts of small images of 21 classes; only the counts matter here."""
    confusions = []
    for n in range(images):
        rng = np.random.RandomState(n)
        truth = rng.choice([0, 1 + n % 20], (40, 40))
        pred = np.where(
            np.random.RandomState(n + 10_000).uniform(size=truth.shape) < skill, truth, 0
        )
        confusions.append(sparse(confusion(pred, truth, 21, predicted_ignore="own")))
    return ImageCounts.of(
        [str(n) for n in range(images)], [f"class{k}" for k in range(20)], confusions
    )


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--images", type=int, default=20, help="images of the boundary F-score")
    parser.add_argument("--list", type=int, default=1449, help="images of the bootstrap")
    args = parser.parse_args()
    boundary_f(*scene(0, 375, 500)[::-1], 21)  # imports
    tree = transform = 0.0
    for seed in range(args.images):
        truth, pred = scene(seed, 375, 500)
        fast, ours = timed(boundary_f, pred, truth, 21)
        slow, plain = timed(by_distance_transform, pred, truth, 21)
        tree, transform = tree + fast, transform + slow
        np.testing.assert_allclose(ours, plain, atol=1e-6)
    print(
        f"boundary F, 375x500: distance transforms {1e3 * transform / args.images:.1f} ms/image, "
        f"tree {1e3 * tree / args.images:.1f} ms/image, ratio {transform / tree:.1f}, equal"
    )
    a, b = counts_of(args.list, 0.7), counts_of(args.list, 0.72)
    few = SAMPLES // 100
    fast, _ = timed(compare_paired, a, b)
    slow, drawn = timed(by_adding_up, a, b, few)
    first = compare_paired(a, b, samples=few).difference
    np.testing.assert_allclose(
        (first.low, first.high), np.percentile(drawn, [2.5, 97.5]), atol=1e-12
    )
    print(
        f"bootstrap, {SAMPLES} draws of {args.list} images x 21 classes, two systems: adding up"
        f" {100 * slow:.0f} s, ours {fast:.2f} s, ratio {100 * slow / fast:.0f}, equal; peak memory"
        f" {memory.peak() / 2**20:.0f} MB"
    )


if __name__ == "__main__":
    main()

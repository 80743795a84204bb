"""Label maps as runs of equal labels: small, exact, and all classes in one pass.

N is height * width, R the number of runs. Row-major runs are a format of this project and give
areas and boxes. Column-major runs make COCO's run lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int64]

# COCO writes a number in groups of five bits, one character each from "0" on. The sixth bit marks
# that more groups follow.
GROUP, FIRST, MORE, SIGN = 5, 48, 0x20, 0x10


@dataclass(frozen=True)
class Runs:
    """The maximal runs of equal labels.

    Attributes:
        labels: uint8 [R], neighbours differ.
        bounds: int64 [R+1], the start of each run, then N.
    """

    labels: Pixels
    bounds: Whole

    @property
    def lengths(self) -> Whole:
        """Pixels of each run."""
        return np.diff(self.bounds)


def label_runs(labels: Pixels) -> Runs:
    """Runs of a uint8 [H,W] map, row by row; a run may continue in the next row."""
    flat = labels.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    return Runs(flat[bounds[:-1]], bounds)


def from_runs(labels: Pixels, lengths: npt.ArrayLike, height: int, width: int) -> Pixels:
    """The uint8 [H,W] map of runs.

    Raises:
        ValueError: the runs do not add up to ``height * width`` pixels.
    """
    counts = np.asarray(lengths, np.int64)
    if len(counts) != len(labels) or counts.min(initial=0) < 0 or counts.sum() != height * width:
        raise ValueError(
            f"{len(labels)} labels and {int(counts.sum())} pixels of runs for a mask of"
            f" {height}x{width}"
        )
    return np.repeat(labels, counts).reshape(height, width)


def areas(runs: Runs) -> Whole:
    """Pixels per label, int64 [256]."""
    return np.bincount(runs.labels, weights=runs.lengths, minlength=256).astype(np.int64)


def boxes(runs: Runs, width: int) -> dict[int, tuple[int, int, int, int]]:
    """Left, top, width and height in pixels of every label that occurs in row-major runs."""
    (top, left), (bottom, right) = (
        np.divmod(edge, width) for edge in (runs.bounds[:-1], runs.bounds[1:] - 1)
    )
    over = bottom > top
    left, right = np.where(over, 0, left), np.where(over, width - 1, right)
    lowest, highest = (np.full((2, 256), start, np.int64) for start in (runs.bounds[-1], -1))
    for axis, (first, last) in enumerate(((left, right), (top, bottom))):
        np.minimum.at(lowest[axis], runs.labels, first)
        np.maximum.at(highest[axis], runs.labels, last)
    size = highest - lowest + 1
    there = np.flatnonzero(highest[0] >= 0)
    return {int(k): (*map(int, lowest[:, k]), *map(int, size[:, k])) for k in there}  # type: ignore[misc]


def coco_counts(labels: Pixels) -> dict[int, bytes]:
    """COCO's compressed run lengths of every label above 0, byte for byte as pycocotools."""
    runs = label_runs(np.ascontiguousarray(labels.T))
    inside = np.flatnonzero(runs.labels)
    # A stable sort keeps the runs of a label in their order.
    order = inside[np.argsort(runs.labels[inside], kind="stable")]
    present, firsts = np.unique(runs.labels[order], return_index=True)
    if not len(present):
        return {}
    return dict(zip(present.tolist(), _compress(*_counts(runs, order, firsts))))


def _counts(runs: Runs, order: Whole, firsts: Whole) -> tuple[Whole, Whole]:
    """Alternating lengths of gaps and runs, class after class, and where each class starts.

    Args:
        runs: column by column.
        order: indices of the runs, sorted by class.
        firsts: where in ``order`` each class starts.
    """
    start, end = runs.bounds[order], runs.bounds[order + 1]
    before = np.concatenate([[0], end[:-1]])
    before[firsts] = 0
    counts = np.stack([start - before, end - start], axis=1).reshape(-1)
    lasts = np.concatenate([firsts[1:], [len(order)]])
    tail = runs.bounds[-1] - end[lasts - 1]
    # The pixels after the last run form a gap of their own, which is omitted when empty.
    tails = np.flatnonzero(tail)
    counts = np.insert(counts, 2 * lasts[tails], tail[tails])
    return counts, 2 * firsts + np.concatenate([[0], np.cumsum(tail > 0)[:-1]])


def _compress(counts: Whole, firsts: Whole) -> list[bytes]:
    """COCO's text per class: from the fourth number on, the difference to the one two before."""
    place = np.arange(len(counts)) - np.repeat(firsts, np.diff(firsts, append=len(counts)))
    values = counts.copy()
    late = np.flatnonzero(place > 2)
    values[late] -= counts[late - 2]
    # Magnitude bits of the two's complement: -16 needs one group, like 15.
    beside = np.where(values < 0, ~values, values)
    lengths = np.ones(len(values), np.int64)
    for group in range(1, int(beside.max(initial=0)).bit_length() // GROUP + 1):
        lengths += beside >= 1 << (GROUP * group - 1)
    ends = np.cumsum(lengths)
    text = np.empty(ends[-1], np.uint8)
    at = ends - lengths
    while len(at):
        more = lengths > 1
        text[at] = (values & 0x1F | np.where(more, MORE, 0)) + FIRST
        values, at, lengths = values[more] >> GROUP, at[more] + 1, lengths[more] - 1
    whole = text.tobytes()
    cuts = ends[np.append(firsts[1:], len(counts)) - 1].tolist()
    return [whole[begin:end] for begin, end in zip([0, *cuts], cuts)]


def from_coco_counts(counts: Mapping[int, bytes], height: int, width: int) -> Pixels:
    """The uint8 [H,W] map of COCO run lengths by label; uncovered pixels are 0.

    Raises:
        ValueError: malformed text, or not ``height * width`` pixels.
    """
    flat = np.zeros(height * width, np.uint8)
    for label, text in counts.items():
        lengths = _expand(text)
        if lengths.min(initial=0) < 0 or lengths.sum() != flat.size:
            raise ValueError(
                f"run lengths of {int(lengths.sum())} pixels for a mask of {height}x{width}"
            )
        inside = np.arange(len(lengths)) % 2 == 1
        flat[np.repeat(inside, lengths)] = label
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _expand(text: bytes) -> Whole:
    """The numbers of a COCO text with the differences undone."""
    values = np.frombuffer(text, np.uint8).astype(np.int64) - FIRST
    if (
        values.min(initial=0) < 0
        or values.max(initial=0) >= 2 * MORE
        or (len(values) and values[-1] & MORE)
    ):
        raise ValueError("malformed COCO run lengths: a bad character or an incomplete number")
    ends = np.flatnonzero(values & MORE == 0)
    firsts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    shift = GROUP * (np.arange(len(values)) - np.repeat(firsts, np.diff(ends, prepend=-1)))
    if shift.max(initial=0) > 60:
        raise ValueError("malformed COCO run lengths: a number with too many characters")
    numbers = (
        np.add.reduceat((values & 0x1F) << shift, firsts) if len(ends) else np.zeros(0, np.int64)
    )
    negative = values[ends] & SIGN != 0
    numbers -= np.where(negative, np.int64(1) << (shift[ends] + GROUP), 0)
    # Each number is the difference to the one two before, so even and odd positions are two
    # separate running sums.
    for parity in (1, 2):
        numbers[parity::2] = np.cumsum(numbers[parity::2])
    return numbers


def uncompressed_counts(flags: Sequence[bool] | npt.NDArray[np.bool_]) -> list[int]:
    """Alternating run lengths of False and True in a flat mask, False first; CVAT's format."""
    runs = label_runs(np.asarray(flags, np.uint8)[None])
    lengths: list[int] = runs.lengths.tolist()
    return [0] * int(runs.labels[0]) + lengths

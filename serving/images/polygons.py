"""Regions of a label map as polygons along the edges of pixels: exact, so that filling them gives
the same map.

A point (x, y) is a corner between pixels; pixel (row, column) is the square from (column, row) to
(column+1, row+1). A region is a set of pixels of one label that touch by an edge. Touching by a
corner does not join them. Each region has one clockwise outer ring and a counter-clockwise ring per
hole, so the even-odd and the non-zero rule both fill exactly its pixels.

H, W: of the map. P: number of corners.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.errors import MaskTooComplex
from serving.images.encodings import label_runs

Pixels = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int64]
Points = list[tuple[int, int]]

# Each corner takes some hundred bytes while rings are traced.
MAX_CORNERS = 1_000_000


@dataclass(frozen=True)
class Ring:
    """A closed line through corners, the first not repeated, and whether it bounds a hole."""

    points: Points
    hole: bool


@dataclass(frozen=True)
class _Corners:
    """Every corner of every region. Where two regions of a label touch, one point is two corners.

    Attributes:
        label, y, x: int64 [P].
        right, down: bool [P], direction of the horizontal and of the vertical edge; else left and
            up.
        convex: bool [P], one of the four pixels around the corner is in the region, else three.
    """

    label: Whole
    y: Whole
    x: Whole
    right: npt.NDArray[np.bool_]
    down: npt.NDArray[np.bool_]
    convex: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Edges:
    """Corners joined by edges.

    Attributes:
        across, along: the other end of a corner's horizontal and of its vertical edge.
        firsts: every corner, by label, from top to bottom and left to right.
        tops, keys: upper ends of the vertical edges, and their sorted places; see :func:`_place`.
    """

    labels: list[int]
    points: list[tuple[int, int]]
    convex: list[bool]
    across: list[int]
    along: list[int]
    firsts: list[int]
    tops: list[int]
    keys: Whole


def rings(labels: Pixels) -> dict[int, list[Ring]]:
    """The rings of every label above 0 in a uint8 [H,W] map, from top to bottom.

    Raises:
        MaskTooComplex: more corners than ``MAX_CORNERS``.
    """
    edges = _join(_corners(labels), labels.shape)
    by_label: dict[int, list[Ring]] = defaultdict(list)
    for label, corners, hole in _trace(edges):
        by_label[label].append(Ring([edges.points[corner] for corner in corners], hole))
    return dict(by_label)


def outlines(labels: Pixels) -> dict[int, list[Points]]:
    """The regions of every label above 0 in a uint8 [H,W] map, each as a single ring.

    For formats without holes: a slit of no width joins every hole to the line at its left. The
    even-odd and the non-zero rule still fill exactly the region. Raises like :func:`rings`.
    """
    edges = _join(_corners(labels), labels.shape)
    holes = [
        min(corners, key=edges.points.__getitem__) for _, corners, hole in _trace(edges) if hole
    ]
    _cut(edges, holes, labels)
    outlines: dict[int, list[Points]] = defaultdict(list)
    for label, corners, _ in _trace(edges):
        line = [edges.points[corner] for corner in corners]
        # A slit that meets the end of an edge leaves an edge of no length.
        outlines[label].append(
            [point for point, before in zip(line, [line[-1], *line]) if point != before]
        )
    return dict(outlines)


def outlines_through_centres(labels: Pixels) -> dict[int, list[Points]]:
    """The regions of every label above 0 in a uint8 [H,W] map, as lines through pixel centres.

    A point (x, y) is a pixel, and a line may be a single one. For readers that draw the line and
    fill it by the even-odd rule, like OpenCV's ``fillPoly``: they fill exactly the region. Holes
    are joined as in :func:`outlines`, by pixels of the region. Raises like :func:`rings`.
    """
    corners = _corners(labels)
    edges = _join(corners, labels.shape)
    holes = [min(ring, key=edges.points.__getitem__) for _, ring, hole in _trace(edges) if hole]
    # A convex corner stands for the one pixel that has it, a concave one for the pixel between the
    # two others.
    x, y = (
        place - 1 + np.where(corners.convex, way, ~way)
        for place, way in ((corners.x, corners.right), (corners.y, corners.down))
    )
    pixels = [[pixel] for pixel in zip(x.tolist(), y.tolist())]
    for corner, below in _cut(edges, holes, labels):
        (left, top), beside = edges.points[below], edges.points[corner][0] - 1
        pixels[corner] = [(beside, top)]
        pixels += [[(beside, top - 1), (beside, top), (left, top)], [(left, top)]]
    outlines: dict[int, list[Points]] = defaultdict(list)
    for label, ring, _ in _trace(edges):
        line = [pixel for corner in ring for pixel in pixels[corner]]
        outlines[label].append(
            [point for point, before in zip(line, [line[-1], *line]) if point != before] or line[:1]
        )
    return dict(outlines)


def fill(shapes: Iterable[tuple[int, Iterable[Points]]], height: int, width: int) -> Pixels:
    """The uint8 [H,W] map of rectilinear rings by label, filled by the even-odd rule.

    Raises:
        ValueError: a point outside the map, or a slanted edge.
    """
    labels = np.zeros((height, width), np.uint8)
    for label, lines in shapes:
        flips = np.zeros((height + 1, width + 1), np.uint8)
        for line in lines:
            start = np.asarray(line, np.int64).reshape(-1, 2)
            end = np.roll(start, -1, axis=0)
            if start.min(initial=0) < 0 or (start.max(axis=0, initial=0) > (width, height)).any():
                raise ValueError(f"a point outside of a mask of {height}x{width}")
            if not (start == end).any(axis=1).all():
                raise ValueError(
                    "a slanting edge, and the rings of masks run along the edges of pixels"
                )
            upright = start[:, 0] == end[:, 0]
            for y in (start[upright, 1], end[upright, 1]):
                # Every vertical edge flips all pixels to its right; running exclusive ors turn that
                # into inside and outside.
                np.bitwise_xor.at(flips, (y, start[upright, 0]), np.uint8(1))
        inside = np.bitwise_xor.accumulate(
            np.bitwise_xor.accumulate(flips, axis=0)[:height, :width], axis=1
        )
        labels[inside == 1] = label
    return labels


def _corners(labels: Pixels) -> _Corners:
    height, width = labels.shape
    frame = np.zeros((height + 2, width + 2), np.uint8)
    frame[1:-1, 1:-1] = labels
    beside, below = frame[:, 1:] != frame[:, :-1], frame[1:] != frame[:-1]
    y, x = np.nonzero((beside[:-1] | beside[1:]) & (below[:, :-1] | below[:, 1:]))
    if len(y) > MAX_CORNERS:
        raise MaskTooComplex(
            f"the outlines of the mask have more than {len(y):,} corners",
            f"at most {MAX_CORNERS:,}",
            "run lengths, label runs or a PNG",
            metadata={"max_corners": str(MAX_CORNERS)},
        )
    parts = []
    # Each of the four pixels around a point makes a corner if both its neighbours differ from it:
    # as the only one of its label there, or as the one that another label lacks.
    for down in (False, True):
        for right in (False, True):
            pixel, one, other, opposite = (
                frame[y + dy, x + dx]
                for dy, dx in (
                    (down, right),
                    (down, not right),
                    (not down, right),
                    (not down, not right),
                )
            )
            cut = (pixel != one) & (pixel != other)
            for convex, where, owner in (
                (True, cut & (pixel > 0), pixel),
                (False, cut & (one == other) & (one == opposite) & (one > 0), one),
            ):
                at = np.flatnonzero(where)
                flags = (np.full(len(at), flag) for flag in (right, down, convex))
                parts.append((owner[at].astype(np.int64), y[at], x[at], *flags))
    return _Corners(*(np.concatenate(column) for column in zip(*parts)))


def _join(corners: _Corners, shape: tuple[int, ...]) -> _Edges:
    height, width = shape
    # Two corners at one point are sorted by their edges: left before right, up before down. Sorted
    # like this, corners 0 and 1 of a row or column are the ends of one edge, 2 and 3 of the next.
    row = 2 * _place(corners.label, corners.y, corners.x, height, width) + corners.right
    column = 2 * _place(corners.label, corners.x, corners.y, width, height) + corners.down
    rows, columns = np.argsort(row), np.argsort(column)
    across, along = np.empty((2, len(row)), np.int64)
    for partner, order in ((across, rows), (along, columns)):
        partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return _Edges(
        labels=corners.label.tolist(),
        points=list(zip(corners.x.tolist(), corners.y.tolist())),
        convex=corners.convex.tolist(),
        across=across.tolist(),
        along=along.tolist(),
        firsts=rows.tolist(),
        tops=columns[0::2].tolist(),
        keys=column[columns[0::2]] // 2,
    )


def _place(label: Whole, line: Whole, position: Whole, lines: int, positions: int) -> Whole:
    """A number that sorts by label, then line, then position in the line."""
    return (label * (lines + 1) + line) * (positions + 1) + position


def _trace(edges: _Edges) -> Iterator[tuple[int, list[int], bool]]:
    """Label and corners of each ring, and whether it bounds a hole."""
    seen = bytearray(len(edges.points))
    for first in edges.firsts:
        if seen[first]:
            continue
        # The first corner is the leftmost of the topmost ones. At a hole's, the region has the
        # three other pixels.
        hole = not edges.convex[first]
        one, other = (edges.along, edges.across) if hole else (edges.across, edges.along)
        corners: list[int] = []
        at = first
        while not seen[at]:
            turn = one[at]
            seen[at] = seen[turn] = 1
            corners += (at, turn)
            at = other[turn]
        yield edges.labels[first], corners, hole


def _cut(edges: _Edges, holes: list[int], labels: Pixels) -> list[tuple[int, int]]:
    """Join the ring of each hole with the region's edge to its left.

    A slit runs along the upper border of the hole's first row to the nearest edge, whose ring
    starts further left than the hole. So no chain of holes closes on itself.

    Args:
        edges: changed in place.
        holes: the leftmost corner of each hole, the topmost of several.

    Returns:
        Per slit, in the order of insertion, its end at the hole and the lower of the two new
            corners at its other end; the upper one precedes it.
    """
    height, width = labels.shape
    slits: list[tuple[int, int]] = []
    x, y = np.asarray([edges.points[corner] for corner in holes], np.int64).reshape(-1, 2).T
    label = np.asarray([edges.labels[corner] for corner in holes], np.int64)
    bounds = label_runs(labels).bounds
    starts = bounds[np.searchsorted(bounds, y * width + x - 1, side="right") - 1]
    left = np.maximum(starts - y * width, 0)
    edge = np.searchsorted(edges.keys, _place(label, left, y, width, height), side="right") - 1
    for hole in np.lexsort((y, edge)).tolist():
        corner, top = holes[hole], edges.tops[edge[hole]]
        bottom, end = edges.along[top], edges.across[corner]
        above, below = len(edges.points), len(edges.points) + 1
        # The next slit on the same edge meets what is left below this one.
        edges.tops[edge[hole]] = below
        edges.points.extend([(int(left[hole]), int(y[hole]))] * 2)
        edges.along.extend([top, bottom])
        edges.across.extend([end, corner])
        edges.along[top], edges.along[bottom] = above, below
        edges.across[end], edges.across[corner] = above, below
        slits.append((corner, below))
    return slits

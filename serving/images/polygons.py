"""Regions of a label map as polygons along the edges of its pixels: exact, so a mask drawn from
them is the mask again.

A point (x, y) is a corner between pixels: pixel (row, column) is the square from (column, row) to
(column+1, row+1), and coordinates run from 0 to the width or height of the map. A region is the
pixels of one label that touch by an edge; those that touch by a corner alone are two regions. Each
has one outer ring, clockwise as seen, and a ring for every hole, counter-clockwise; so both the
even-odd and the non-zero rule fill exactly its pixels.

H, W: of the map. P: corners, of all rings together.
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

# Of a mask: some hundred bytes each stand in memory while they are joined.
MAX_CORNERS = 1_000_000


@dataclass(frozen=True)
class Ring:
    """A closed line through corners, the first not repeated, and whether it bounds a hole."""

    points: Points
    hole: bool


@dataclass(frozen=True)
class _Corners:
    """Every corner of every region. A point at which two regions of a label touch is two corners.

    Attributes:
        label, y, x: int64 [P]. right, down: bool [P], where the horizontal and the vertical edge of
        the corner lead to; else left and up.
        convex: bool [P], the region has one of the four pixels around the corner, else three.
    """

    label: Whole
    y: Whole
    x: Whole
    right: npt.NDArray[np.bool_]
    down: npt.NDArray[np.bool_]
    convex: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Edges:
    """Corners joined to lines.

    Attributes:
        labels, points, convex: of each corner.
        across, along: the other end of its horizontal and of its vertical edge.
        firsts: every corner, by label, from top to bottom and left to right.
        tops, keys: upper ends of the vertical edges and their sorted places, see :func:`_place`.
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

    For formats that know polygons and no holes: every hole is joined to the line at its left by a
    slit of no width. The even-odd and the non-zero rule still fill exactly the region.

    Raises:
        MaskTooComplex: more corners than ``MAX_CORNERS``.
    """
    edges = _join(_corners(labels), labels.shape)
    holes = [
        min(corners, key=edges.points.__getitem__) for _, corners, hole in _trace(edges) if hole
    ]
    _cut(edges, holes, labels)
    outlines: dict[int, list[Points]] = defaultdict(list)
    for label, corners, _ in _trace(edges):
        line = [edges.points[corner] for corner in corners]
        # A slit that ends where an edge does leaves an edge of no length.
        outlines[label].append(
            [point for point, before in zip(line, [line[-1], *line]) if point != before]
        )
    return dict(outlines)


def outlines_through_centres(labels: Pixels) -> dict[int, list[Points]]:
    """The regions of every label above 0 in a uint8 [H,W] map, each as a line through the centres
    of the pixels along its border; a point (x, y) is a pixel, and a line may be a single one.

    For readers that draw the line itself and fill what it encloses by the even-odd rule, as
    OpenCV's ``fillPoly`` does: they fill exactly the region. Holes are joined to the line as by
    :func:`outlines`, by pixels of the region.

    Raises:
        MaskTooComplex: more corners than ``MAX_CORNERS``.
    """
    corners = _corners(labels)
    edges = _join(corners, labels.shape)
    holes = [min(ring, key=edges.points.__getitem__) for _, ring, hole in _trace(edges) if hole]
    # A corner that only one pixel of the region has is that pixel; one that three have is the
    # pixel between the two others.
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

    Every vertical edge flips all pixels to its right; running exclusive ors tell inside from
    outside.

    Raises:
        ValueError: a point outside of the map, or a slanting edge.
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
    """Sorting finds all edges, as the first two corners of a row or column are the ends of one, the
    next two, and so on.
    """
    height, width = shape
    # Of two corners at one point, the one with the edge to the left, or upwards, comes first.
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
    """A number that sorts by label, then by line, then by the position in the line."""
    return (label * (lines + 1) + line) * (positions + 1) + position


def _trace(edges: _Edges) -> Iterator[tuple[int, list[int], bool]]:
    """Label and corners of each ring, and whether it bounds a hole."""
    seen = bytearray(len(edges.points))
    for first in edges.firsts:
        if seen[first]:
            continue
        # The first corner of a ring is the leftmost of its topmost: at a hole's the region has the
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
    """Join the line of each hole with what lies to its left.

    From the corner of the hole a slit runs along the upper border of its row to the nearest edge of
    the region, which has its leftmost corner further left than the hole has; so no chain of holes
    closes on itself.

    Args:
        edges: changed in place.
        holes: of each hole the topmost of its leftmost corners.
        labels: uint8 [H,W].

    Returns:
        Of each slit its end at the hole and the lower of the two corners at its other end; the
        upper one comes before it. In the order in which those were added.
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
        # A slit further down the same edge meets what is left of it.
        edges.tops[edge[hole]] = below
        edges.points.extend([(int(left[hole]), int(y[hole]))] * 2)
        edges.along.extend([top, bottom])
        edges.across.extend([end, corner])
        edges.along[top], edges.along[bottom] = above, below
        edges.across[end], edges.across[corner] = above, below
        slits.append((corner, below))
    return slits

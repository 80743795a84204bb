"""Outlines with few points, which people can edit."""

from __future__ import annotations

import numpy as np

from serving.images.polygons import Points, outlines
from serving.images.rgb import Pixels

# A polygon has three corners at least.
CORNERS = 3


def editable(labels: Pixels, tolerance: float) -> dict[int, list[Points]]:
    """The outlines of every label above 0 in a uint8 [H,W] map.

    Args:
        tolerance: pixels that an outline may stray from the region's edge; 0 is exact.

    Raises:
        MaskTooComplex: see :func:`serving.images.polygons.rings`.
    """
    lines = {
        label: [simplified(ring, tolerance) for ring in rings]
        for label, rings in outlines(labels).items()
    }
    return {
        label: [ring for ring in rings if len(ring) >= CORNERS] for label, rings in lines.items()
    }


def simplified(ring: Points, tolerance: float) -> Points:
    """A ring without the points that lie within ``tolerance`` of the line between their neighbours
    (Douglas and Peucker, 1973).
    """
    if tolerance <= 0 or len(ring) <= CORNERS:
        return ring
    points = np.asarray([*ring, ring[0]], float)
    # A closed line has no ends: its first point and the one farthest from it stand for them.
    middle = int(((points - points[0]) ** 2).sum(1).argmax())
    keep = np.zeros(len(points), bool)
    keep[[0, middle]] = True
    spans = [(0, middle), (middle, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distances = _distances(points[first + 1 : last], points[first], points[last])
        farthest = int(distances.argmax())
        if distances[farthest] > tolerance:
            place = first + 1 + farthest
            keep[place] = True
            spans += [(first, place), (place, last)]
    return [point for point, stays in zip(ring, keep) if stays]


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of points from the segment between two others."""
    along = end - start
    length = float(along @ along)
    shares = np.clip((points - start) @ along / length, 0, 1) if length else np.zeros(len(points))
    offsets = points - start - shares[:, None] * along
    distances: np.ndarray = np.hypot(offsets[:, 0], offsets[:, 1])
    return distances

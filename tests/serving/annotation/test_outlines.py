"""Outlines for people to edit: few points, and close to the mask."""

from __future__ import annotations

import numpy as np
import pytest

from serving.annotation.outlines import editable, simplified
from serving.images.polygons import fill, outlines


def disc(radius=40, size=100):
    y, x = np.mgrid[:size, :size] - size // 2
    return (y * y + x * x < radius * radius).astype(np.uint8)


def covered(ring, size=100):
    """Pixels whose centre lies inside, by the even-odd rule."""
    y, x = np.mgrid[:size, :size] + 0.5
    inside = np.zeros((size, size), bool)
    for (x1, y1), (x2, y2) in zip(ring, [*ring[1:], ring[0]]):
        crosses = (y1 > y) != (y2 > y)
        if y1 != y2:
            inside ^= crosses & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside


def test_without_tolerance_outlines_are_exact():
    labels = disc() * 2
    labels[40:50, 40:45] = 0
    assert editable(labels, 0) == outlines(labels)
    assert (fill(editable(labels, 0).items(), 100, 100) == labels).all()


@pytest.mark.parametrize("tolerance", [0.75, 1, 3])
def test_a_tolerance_leaves_few_points_and_nearly_the_same_pixels(tolerance):
    labels = disc()
    ((ring,),) = editable(labels, tolerance).values()
    assert 3 <= len(ring) < len(outlines(labels)[1][0]) / 2
    assert set(ring) <= set(outlines(labels)[1][0])
    mask = covered(ring)
    assert (mask & (labels > 0)).sum() / (mask | (labels > 0)).sum() > 1 - 0.05 * tolerance


def test_a_large_tolerance_leaves_no_line_instead_of_a_polygon():
    labels = np.zeros((9, 9), np.uint8)
    labels[4, 4] = 1
    assert len(editable(labels, 0)[1][0]) == 4
    assert editable(labels, 50) == {1: []}


def test_straight_lines_lose_their_inner_points():
    ring = [(0, 0), (2, 0), (4, 0), (4, 4), (2, 4), (0, 4), (0, 2)]
    assert set(simplified(ring, 0.1)) == {(0, 0), (4, 0), (4, 4), (0, 4)}
    assert simplified(ring, 0) == ring

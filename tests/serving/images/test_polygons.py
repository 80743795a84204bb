from __future__ import annotations

import numpy as np
import pytest
from filled import fill_as_opencv
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.errors import MaskTooComplex
from serving.images import polygons

MAPS = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 2)
)


def area(points: list[tuple[int, int]]) -> float:
    """Positive if the line runs clockwise with y downwards."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, [*points[1:], points[0]])) / 2


def ring_of(width: int, thickness: int = 1) -> np.ndarray:
    labels = np.full((width, width), 5, np.uint8)
    labels[thickness:-thickness, thickness:-thickness] = 0
    return labels


def test_a_rectangle_is_its_four_corners():
    labels = np.zeros((6, 9), np.uint8)
    labels[1:4, 2:8] = 3
    assert polygons.rings(labels) == {
        3: [polygons.Ring([(2, 1), (8, 1), (8, 4), (2, 4)], hole=False)]
    }
    assert polygons.outlines(labels) == {3: [[(2, 1), (8, 1), (8, 4), (2, 4)]]}


def test_a_hole_is_a_ring_of_its_own_or_behind_a_slit():
    outer, inner = polygons.rings(ring_of(4))[5]
    assert (outer.points, outer.hole) == ([(0, 0), (4, 0), (4, 4), (0, 4)], False)
    assert (inner.points, inner.hole) == ([(1, 1), (1, 3), (3, 3), (3, 1)], True)
    (line,) = polygons.outlines(ring_of(4))[5]
    assert line == [(0, 0), (4, 0), (4, 4), (0, 4), (0, 1), (1, 1), (1, 3), (3, 3), (3, 1), (0, 1)]


def test_regions_that_touch_by_a_corner_are_two():
    assert [len(lines) for lines in polygons.rings(np.eye(3, dtype=np.uint8)).values()] == [3]


@settings(deadline=None, max_examples=100)
@given(MAPS)
def test_rings_fill_exactly_their_mask_and_are_oriented(labels):
    found = polygons.rings(labels)
    shapes = [(label, [ring.points for ring in lines]) for label, lines in found.items()]
    np.testing.assert_array_equal(polygons.fill(shapes, *labels.shape), labels)
    for label, lines in found.items():
        assert sum(area(ring.points) for ring in lines) == (labels == label).sum()
        assert all((area(ring.points) < 0) == ring.hole for ring in lines)


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools' own, with NumPy 2
@settings(deadline=None, max_examples=100)
@given(MAPS)
def test_outlines_fill_the_mask_for_us_and_for_coco(labels):
    coco = pytest.importorskip("pycocotools.mask")
    found = polygons.outlines(labels)
    np.testing.assert_array_equal(polygons.fill(found.items(), *labels.shape), labels)
    outer = {
        label: sum(not ring.hole for ring in lines)
        for label, lines in polygons.rings(labels).items()
    }
    assert {label: len(lines) for label, lines in found.items()} == outer
    for label, lines in found.items():
        flat = [[float(value) for point in line for value in point] for line in lines]
        drawn = coco.decode(coco.merge(coco.frPyObjects(flat, *labels.shape)))
        np.testing.assert_array_equal(drawn == 1, labels == label)


def test_a_sieve_of_many_holes_is_one_line():
    labels = np.ones((41, 61), np.uint8)
    labels[1::2, 1::2] = 0
    (line,) = polygons.outlines(labels)[1]
    assert area(line) == labels.sum()
    np.testing.assert_array_equal(polygons.fill([(1, [line])], 41, 61), labels)


@settings(deadline=None, max_examples=300)
@given(MAPS)
def test_lines_through_centres_fill_the_mask_for_opencv(labels):
    found = polygons.outlines_through_centres(labels)
    drawn = np.zeros_like(labels)
    for label, lines in found.items():
        for line in lines:
            region = fill_as_opencv(line, *labels.shape)
            assert not drawn[region].any(), "regions are apart"
            drawn[region] = label
    np.testing.assert_array_equal(drawn, labels)
    edges = polygons.outlines(labels)
    assert {label: len(lines) for label, lines in found.items()} == {
        label: len(lines) for label, lines in edges.items()
    }


def test_lines_through_centres_of_thin_things():
    labels = np.zeros((3, 5), np.uint8)
    labels[1, 1:4], labels[0, 0] = 1, 2
    assert polygons.outlines_through_centres(labels) == {1: [[(3, 1), (1, 1)]], 2: [[(0, 0)]]}
    (line,) = polygons.outlines_through_centres(ring_of(4))[5]
    np.testing.assert_array_equal(fill_as_opencv(line, 4, 4), ring_of(4) == 5)


@pytest.mark.parametrize(
    "line", [[(0, 0), (3, 3), (0, 3)], [(0, 0), (9, 0), (9, 2), (0, 2)], [(-1, 0), (1, 0)]]
)
def test_lines_that_no_mask_has(line):
    with pytest.raises(ValueError, match=r"slanting|outside"):
        polygons.fill([(1, [line])], 5, 5)


def test_a_mask_with_too_many_corners_is_refused(monkeypatch):
    monkeypatch.setattr(polygons, "MAX_CORNERS", 100)
    noise = np.random.default_rng(0).integers(0, 2, (20, 20), dtype=np.uint8)
    for work in (polygons.rings, polygons.outlines):
        with pytest.raises(MaskTooComplex, match="at most 100"):
            work(noise)

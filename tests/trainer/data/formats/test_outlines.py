"""Outlines are drawn as pycocotools draws them, whatever it takes to keep them bounded."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.coco.outlines import Shape, compress, is_relative, pieces_of, whole

HEIGHT, WIDTH = 23, 31
POINTS = st.lists(st.tuples(st.floats(-1, 2), st.floats(-1, 2)), min_size=3, max_size=9)


def drawn(segmentation: object) -> npt.NDArray[np.uint8]:
    pieces = pieces_of(segmentation, (HEIGHT, WIDTH))
    return Shape(None, compress([pieces]), (1,)).draw(HEIGHT, WIDTH)


def reference(segmentation: object) -> npt.NDArray[np.uint8]:
    """pycocotools alone."""
    from pycocotools import mask as rle

    runs = segmentation
    if isinstance(segmentation, list):
        runs = rle.merge(rle.frPyObjects(segmentation, HEIGHT, WIDTH))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(rle.decode(runs), np.uint8)


@settings(max_examples=100, deadline=None)
@given(st.lists(POINTS, min_size=1, max_size=3))
def test_polygons_are_those_of_pycocotools(polygons: list[list[tuple[float, float]]]) -> None:
    rings = [[v for x, y in points for v in (x * WIDTH, y * HEIGHT)] for points in polygons]
    np.testing.assert_array_equal(drawn(rings), reference(rings))


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=HEIGHT * WIDTH // 8, max_size=HEIGHT * WIDTH // 8), st.integers(1, 40))
def test_compressed_runs_are_those_of_pycocotools(bits: bytes, coarse: int) -> None:
    from pycocotools import mask as rle

    flat = np.repeat(np.unpackbits(np.frombuffer(bits, np.uint8)), coarse)
    mask = np.resize(flat, (HEIGHT, WIDTH)).astype(np.uint8)
    runs = rle.encode(np.asfortranarray(mask))
    text = {"size": runs["size"], "counts": runs["counts"].decode()}
    np.testing.assert_array_equal(drawn(text), mask)


@settings(max_examples=50, deadline=None)
@given(POINTS, st.floats(10, 3e4))
def test_far_polygons_are_clipped_to_the_same_pixels(
    points: list[tuple[float, float]], far: float
) -> None:
    """The pixels of a polygon many times as large as the image, against a plain even-odd test of
    pixel centres away from its edges.
    """
    ring = np.array(points) * far
    mask = drawn([ring.ravel().tolist()])
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside, near = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        length = np.hypot(x2 - x1, y2 - y1)
        if length < 1e-6:
            continue
        across = ((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)) / length
        near |= np.abs(across) < 2
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    np.testing.assert_array_equal(mask[~near], inside[~near])


def test_whole_numbers() -> None:
    values = (5, 5.0, "5", " 5.0 ", "-5", True, 5.5, "5.5", "", None, [5], float("inf"), "9" * 40)
    assert [whole(value) for value in values] == [5, 5, 5, 5, -5, *[None] * 8]


@pytest.mark.parametrize(
    ("rings", "relative"),
    [
        ([[0.1, 0, 1, 1, 0, 0.5], [0, 0, 1, 0, 1, 1]], True),
        ([[0.1, 0, 1, 1, 0, 0.5], [0, 0, 7, 0, 1, 1]], False),
        ([[0, 0, 1, 0, 1, 1]], False),
        ([], False),
    ],
)
def test_fractions_are_told_from_pixels(rings: list[list[float]], relative: bool) -> None:
    assert is_relative(iter(rings)) is relative

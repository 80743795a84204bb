from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.card import read_card
from serving.images import buckets


@pytest.fixture(scope="module")
def card(repository):
    return replace(read_card(repository / "colours" / "1"), max_side=200, max_pixels=30_000)


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [
        ((41, 57), 1, (41, 57)),
        ((41, 57), 32, (64, 64)),
        ((64, 57), 32, (64, 64)),
        ((100, 195), 64, (128, 200)),
        ((150, 190), 64, (150, 190)),
    ],
    ids=["exact", "up", "one side fits", "longest side", "too many pixels"],
)
def test_sides_are_rounded_up_within_the_limits(card, size, multiple, expected):
    assert buckets.bucket_size(*size, multiple, card) == expected


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 30),
    st.integers(0, 30),
    st.sampled_from([1, 2, 4, 8]),
)
def test_cropping_undoes_padding(height, width, below, right, stride):
    pixels = (
        np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
    )
    tall, wide = height + below, width + right
    padded = buckets.pad(pixels, tall, wide)
    assert padded.shape == (tall, wide, 3)
    cells = padded[::stride, ::stride].transpose(2, 0, 1)
    cropped = buckets.crop(cells, (height, width), (tall, wide))
    if stride == 1:
        np.testing.assert_array_equal(cropped, pixels.transpose(2, 0, 1))
    assert cropped.shape[1] >= height * cells.shape[1] / tall
    assert cropped.shape[2] >= width * cells.shape[2] / wide
    assert cropped.shape[1] - 1 < height * cells.shape[1] / tall

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from serving.images import masks

PALETTE = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]


def test_a_label_map_survives_pillow_and_our_reader():
    labels = np.random.default_rng(0).integers(0, 3, (17, 31), dtype=np.uint8)
    data = masks.encode_labels(labels, PALETTE)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.mode == "P"
        assert image.getpalette()[:9] == [value for colour in PALETTE for value in colour]
        np.testing.assert_array_equal(np.asarray(image), labels)
    np.testing.assert_array_equal(masks.read_png(data), labels)
    assert data == masks.encode_labels(labels.copy(), PALETTE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (23, 19)])
def test_a_grey_map_survives(shape):
    values = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(masks.read_png(masks.encode_grey(values)), values)


def test_a_mask_of_a_photograph_is_small():
    y, x = np.mgrid[:375, :500]
    labels = ((y - 180) ** 2 + (x - 250) ** 2 < 120**2).astype(np.uint8)
    assert len(masks.encode_labels(labels, PALETTE)) < 2000


def test_reading_damage_and_colour_pictures():
    data = masks.encode_labels(np.ones((50, 50), np.uint8), PALETTE)
    for bad in (b"", b"no png", data[:40], data[:-30]):
        with pytest.raises(ValueError, match="no readable PNG"):
            masks.read_png(bad)
    colour = io.BytesIO()
    Image.new("RGB", (2, 2)).save(colour, "PNG")
    with pytest.raises(ValueError, match="RGB picture"):
        masks.read_png(colour.getvalue())


def test_pictures_and_undecided_pixels():
    pixels = np.random.default_rng(2).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(masks.encode_rgb(pixels))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    labels = np.array([[0, 2, 255]], np.uint8)
    with Image.open(io.BytesIO(masks.encode_labels(labels, PALETTE))) as image:
        assert image.getpalette()[:9] == [value for colour in PALETTE for value in colour]
        assert image.getpalette()[-3:] == [224, 224, 192]
        np.testing.assert_array_equal(np.asarray(image), labels)


def test_filter_resize_and_quantise():
    labels = np.array([[0, 1, 1], [2, 2, 2]], np.uint8)
    assert masks.keep_labels(labels, [2]).tolist() == [[0, 0, 0], [2, 2, 2]]
    assert set(np.unique(masks.resize_nearest(labels, 9, 7))) == {0, 1, 2}
    assert masks.resize_nearest(labels, 2, 3) is labels
    assert masks.quantise(np.array([-1, 0, 0.5, 1, 2], np.float32)).tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]

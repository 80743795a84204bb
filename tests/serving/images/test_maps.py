from __future__ import annotations

import numpy as np
import pytest

from serving.images import maps
from trainer.maps.camfile import upsample_cam


@pytest.mark.parametrize(
    ("cells", "size"),
    [((11, 15), (41, 57)), ((1, 1), (3, 200)), ((50, 40), (200, 160)), ((9, 9), (5, 4))],
)
def test_bands_are_the_trainers_up_sampling(cells, size):
    coarse = np.random.default_rng(0).random((2, *cells), dtype=np.float32)
    expected = upsample_cam(coarse, size)
    for rows, full in maps.bands(coarse, *size):
        assert full.dtype == np.float32
        np.testing.assert_allclose(full, expected[:, rows], atol=1e-6)
    assert rows.stop == size[0]


def test_the_strongest_map_above_the_threshold_wins():
    coarse = np.random.default_rng(1).random((3, 20, 30), dtype=np.float32)
    mask, confidence = maps.to_mask(coarse, [2, 5, 9], 0.5, 77, 113)
    scores = np.concatenate(
        [np.full((1, 77, 113), 0.5, np.float32), upsample_cam(coarse, (77, 113))]
    )
    np.testing.assert_array_equal(mask, np.array([0, 2, 5, 9])[scores.argmax(0)])
    np.testing.assert_allclose(confidence, 255 * scores.max(0) / scores.sum(0), atol=0.51)


def test_no_map_is_all_background_for_sure():
    mask, confidence = maps.to_mask(np.zeros((0, 4, 4), np.float32), [], 0.0, 8, 9)
    assert (mask == 0).all()
    assert (confidence == 255).all()


def test_an_overlay_is_grey_where_the_map_is_cold_and_bright_where_it_is_hot():
    pixels = np.full((80, 90, 3), (200, 40, 10), np.uint8)
    cold, hot = (maps.overlay(pixels, np.full((5, 6), value, np.float32)) for value in (0.0, 1.0))
    assert cold.shape == pixels.shape
    assert np.ptp(cold.astype(int), axis=2).max() < 10
    assert hot.min(axis=2).mean() > cold.max(axis=2).mean()

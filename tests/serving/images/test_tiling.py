from __future__ import annotations

import itertools

import numpy as np
import pytest

from serving.errors import ImageTooLarge
from serving.images import tiling


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def means(pixels: np.ndarray, reach: int) -> np.ndarray:
    """A network that looks ``reach`` pixels far: the mean of each square, zero around the image.
    Float [H,W,3].
    """
    padded = np.pad(pixels.astype(np.float64), ((reach, reach), (reach, reach), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (2 * reach + 1, 2 * reach + 1), axis=(0, 1)
    )
    return windows.mean(axis=(3, 4))


def segment(pixels: np.ndarray, reach: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mask and confidence: the brightest of the three means, and how bright."""
    seen = means(pixels, reach)
    return seen.argmax(2).astype(np.uint8), np.rint(seen.max(2)).astype(np.uint8)


def stitched(
    plan: tiling.Tiling, pixels: np.ndarray, reach: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    stitcher = tiling.MaskStitcher(plan)
    for row in plan.rows(pixels):
        stitcher.add([segment(tile[0], reach) for tile in row])
    return stitcher.labels, stitcher.confidence


@pytest.mark.parametrize("size", [(64, 64), (40, 100), (7, 900), (1, 1)])
def test_an_image_within_the_limits_is_one_tile_and_stays_as_it_is(size):
    plan = tiling.plan(*size, max_side=900, max_pixels=6400, overlap=0.25, max_tiles=1)
    assert (len(plan), plan.tile) == (1, size)
    pixels = photo(*size)
    ((tile,),) = plan.rows(pixels)
    np.testing.assert_array_equal(tile[0], pixels)
    for found, expected in zip(stitched(plan, pixels, 2), segment(pixels, 2)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("size", "side", "pixels", "overlap"),
    [
        ((300, 400), 128, 128 * 128, 0.25),
        ((129, 1000), 128, 128 * 128, 0.5),
        ((500, 131), 160, 9000, 0.0),
        ((50, 2000), 512, 20_000, 0.1),
        ((200, 300), 50, 2500, 0.3),
        ((77, 90), 20, 300, 0.25),
    ],
)
def test_tiles_cover_the_image_within_the_limits(size, side, pixels, overlap):
    plan = tiling.plan(*size, side, pixels, overlap, max_tiles=1000)
    tall, wide = plan.tile
    assert max(tall, wide) <= side
    assert tall * wide <= pixels
    covered = np.zeros((size[0] + tall, size[1] + wide), int)
    for top in plan.tops:
        for left in plan.lefts:
            covered[top : top + tall, left : left + wide] += 1
    assert covered[: size[0], : size[1]].min() >= 1
    for starts, step in ((plan.tops, tall), (plan.lefts, wide)):
        shared = [before + step - after for before, after in itertools.pairwise(starts)]
        assert all(there >= int(overlap * step) for there in shared)
    assert tall % 32 or tall < 64 or all(start % 32 == 0 for start in plan.tops)


@pytest.mark.parametrize(("size", "reach"), [((200, 333), 0), ((200, 333), 8), ((97, 260), 8)])
def test_masks_have_no_seams_where_the_network_looks_no_further_than_a_quarter_of_the_overlap(
    size, reach
):
    plan = tiling.plan(*size, max_side=96, max_pixels=96 * 96, overlap=1 / 3, max_tiles=100)
    assert len(plan) > 4
    pixels = photo(*size)
    for found, expected in zip(stitched(plan, pixels, reach), segment(pixels, reach)):
        inner = (slice(0, size[0] - reach), slice(0, size[1] - reach))
        np.testing.assert_array_equal(found[inner], expected[inner])


def test_votes_weigh_by_place_and_confidence():
    plan = tiling.Tiling((1, 12), (1, 8), (0,), (0, 4))
    one, two = np.full((1, 8), 1, np.uint8), np.full((1, 8), 2, np.uint8)
    sure, unsure = np.full((1, 8), 200, np.uint8), np.full((1, 8), 20, np.uint8)
    stitcher = tiling.MaskStitcher(plan)
    stitcher.add([(one, sure), (two, sure)])
    assert stitcher.labels.tolist() == [[1] * 6 + [2] * 6]
    assert stitcher.confidence.tolist() == [[200] * 5 + [150, 150] + [200] * 5]
    stitcher = tiling.MaskStitcher(plan)
    stitcher.add([(one, sure), (two, unsure)])
    assert stitcher.labels.tolist() == [[1] * 7 + [2] * 5]
    stitcher = tiling.MaskStitcher(plan)
    stitcher.add([(one, np.zeros_like(sure)), (one, np.zeros_like(sure))])
    assert stitcher.labels.tolist() == [[1] * 12]
    assert stitcher.confidence.tolist() == [[0] * 12]


def test_only_two_rows_of_tiles_are_kept():
    plan = tiling.plan(1000, 100, max_side=100, max_pixels=10_000, overlap=0.5, max_tiles=100)
    stitcher = tiling.MaskStitcher(plan)
    for row in plan.rows(photo(1000, 100)):
        stitcher.add([segment(tile[0]) for tile in row])
        assert len(stitcher._rows) <= 2


def maps(classes: tuple[int, ...], values: np.ndarray, scores: list[float]) -> tiling.TileMaps:
    return tiling.TileMaps(classes, values.astype(np.float32), np.array(scores, np.float32))


def test_maps_are_blended_without_seams():
    pixels = photo(200, 333)
    plan = tiling.plan(200, 333, max_side=96, max_pixels=96 * 96, overlap=0.25, max_tiles=100)
    stitcher = tiling.MapStitcher(plan)
    for row in plan.rows(pixels):
        stitcher.add([maps((1,), tile[:, ::4, ::4, 1] / 255, [0, 0.5]) for tile in row])
    classes, found = stitcher.finish()
    assert classes == (1,)
    np.testing.assert_allclose(found[0], pixels[::4, ::4, 1] / 255, atol=1e-6)


def test_faint_tiles_stay_faint_and_classes_may_be_in_some_tiles_only():
    stitcher = tiling.MapStitcher(tiling.Tiling((96, 288), (96, 96), (0,), (0, 96, 192)))
    ones = np.ones((2, 24, 24))
    stitcher.add(
        [
            maps((0,), ones[:1], [0.8, 0.1]),
            maps((0, 1), ones, [0.2, 0.0]),
            maps((), ones[:0], [0, 0]),
        ]
    )
    classes, found = stitcher.finish()
    assert classes == (0, 1)
    assert found[0][0, ::24].tolist() == pytest.approx([1, 0.25, 0])
    assert found[1][0, ::24].tolist() == pytest.approx([0, 1, 0])


def test_too_many_activations_are_refused(monkeypatch):
    monkeypatch.setattr(tiling, "MAX_ACTIVATIONS", 1000)
    stitcher = tiling.MapStitcher(tiling.Tiling((96, 192), (96, 96), (0,), (0, 96)))
    with pytest.raises(ImageTooLarge, match="2 of 2 tiles"):
        stitcher.add([maps((0,), np.ones((1, 24, 24)), [1]), maps((0,), np.ones((1, 24, 24)), [1])])


def test_a_single_tiles_maps_are_the_images():
    only = maps((2,), np.random.default_rng(0).random((1, 5, 7)), [0, 0, 0.1])
    stitcher = tiling.MapStitcher(tiling.Tiling((20, 28), (20, 28)))
    stitcher.add([only])
    assert stitcher.finish() == ((2,), only.maps)


def test_too_many_tiles_are_refused():
    with pytest.raises(ImageTooLarge, match="at most 3 tiles") as caught:
        tiling.plan(1000, 1000, max_side=500, max_pixels=250_000, overlap=0.0, max_tiles=3)
    assert caught.value.metadata == {"max_tiles": "3"}

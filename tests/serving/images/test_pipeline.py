from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from serving.card import Card, read_card
from serving.config import TilingConfig
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.errors import ImageTooLarge, OutputError
from serving.images import pipeline
from serving.images.decoding import Picture
from serving.images.options import options_for
from serving.rpc import replies


@pytest.fixture(scope="module")
def card(repository: Path) -> Card:
    return read_card(repository / "colours" / "1")


@pytest.fixture(scope="module")
def maps_card(repository: Path) -> Card:
    return read_card(repository / "maps" / "1")


def segmented(
    card: Card, pixels: np.ndarray, tiles: TilingConfig = pipeline.SCALED, **wishes
) -> pipeline.Segmented:
    prepared = pipeline.prepare(Picture(pixels, "RAW"), card, 1, tiles)
    return pipeline.segment(
        prepared, card, options_for(card, **wishes), OnnxRuntimeEngine(card).run
    )


def answered(
    card: Card, pixels: np.ndarray, bucket: int = 1, changes=None, **wishes
) -> pipeline.Answer:
    """The answer to an image that is not cut, with some of the engine's outputs exchanged."""
    prepared = pipeline.prepare(Picture(pixels, "RAW"), card, bucket)
    answer = pipeline.Answer(prepared, card, options_for(card, **wishes))
    for (batch,) in prepared.rows():
        answer.add([OnnxRuntimeEngine(card).run({"image": batch}) | (changes or {})])
    return answer


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((41, 57), (41, 57)),
        ((256, 256), (256, 256)),
        ((512, 256), (256, 128)),
        ((1000, 999), (256, 255)),
        ((4, 8), (8, 16)),
        ((1, 1), (8, 8)),
        ((8, 256), (8, 256)),
        ((16, 512), (8, 256)),
    ],
)
def test_sizes_are_scaled_into_the_limits(card, size, expected):
    assert pipeline.model_size(*size, card) == expected


def test_the_pixel_limit_counts_too(card):
    tall, wide = pipeline.model_size(200, 100, replace(card, max_pixels=5000))
    assert (tall, wide) == (100, 50)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((50, 100), (60, 120)),
        ((240, 60), (120, 30)),
        ((120, 7), (137, 8)),
        ((512, 512), (120, 120)),
    ],
)
def test_a_model_may_want_images_of_one_size(card, size, expected):
    assert pipeline.model_size(*size, replace(card, side=120)) == expected


def test_a_model_that_wants_one_size_gets_no_tiles(card):
    pixels = np.zeros((400, 900, 3), np.uint8)
    tiles = TilingConfig(oversize="tile")
    assert len(list(pipeline.prepare(Picture(pixels, "RAW"), card, 1, tiles).rows())) > 1
    wanted = pipeline.prepare(Picture(pixels, "RAW"), replace(card, side=120), 1, tiles)
    assert len(list(wanted.rows())) == 1
    assert segmented(replace(card, side=120), pixels, tiles).labels.shape == (400, 900)


def test_no_scale_fits_a_strip(card):
    for size in ((1, 100), (10, 1000), (8, 257), (4000, 8)):
        with pytest.raises(ImageTooLarge, match="too elongated"):
            pipeline.model_size(*size, card)


@pytest.mark.parametrize("size", [(600, 300), (5, 4), (300, 299)])
def test_a_mask_comes_back_at_the_size_sent(card, size):
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[: size[0] // 2, :, 1] = 255
    assert max(pipeline.prepare(Picture(pixels, "RAW"), card).model_size) <= 256
    result = segmented(card, pixels)
    assert result.labels.shape == result.confidence.shape == size
    assert set(np.unique(result.labels)) == {0, 2}
    assert (result.labels == tiny_models.expected_mask(pixels)).mean() > 0.98 or min(size) < 8
    assert result.areas.sum() == size[0] * size[1]


@pytest.mark.parametrize("wishes", [{"classes": ["red", "blue"]}, {"tags": ["red", "blue"]}])
def test_classes_kept_and_tags_known(card, pixels, wishes):
    whole, kept = segmented(card, pixels), segmented(card, pixels, **wishes)
    np.testing.assert_array_equal(whole.labels, tiny_models.expected_mask(pixels))
    np.testing.assert_array_equal(kept.labels, np.where(whole.labels == 2, 0, whole.labels))
    np.testing.assert_array_equal(kept.confidence, np.where(whole.labels == 2, 0, whole.confidence))
    assert kept.areas.tolist() == [
        whole.areas[0] + whole.areas[2],
        whole.areas[1],
        0,
        whole.areas[3],
    ]
    both = segmented(card, pixels, classes=["red", "green"], tags=["red", "blue"])
    np.testing.assert_array_equal(both.labels, np.where(whole.labels == 1, 1, 0))


def test_pixels_below_a_confidence_are_undecided(card, pixels):
    result = segmented(card, pixels, confidence_threshold=0.7, classes=["red"])
    expected = np.where(tiny_models.expected_mask(pixels) == 1, 1, 0)
    np.testing.assert_array_equal(
        result.labels, np.where(pixels.max(axis=2) < 0.7 * 255, 255, expected)
    )
    assert result.areas.sum() < pixels.shape[0] * pixels.shape[1]


def test_a_lying_graph_is_found(card, pixels):
    small, numbers = np.zeros((1, *pixels.shape[:2]), np.uint8), np.zeros((1, 3), np.float32)
    for changes, told in (
        ({"mask": small + np.uint8(9)}, "label 9"),
        ({"mask": small[:, 1:]}, "'mask'"),
        ({"scores": numbers.astype(np.float64)}, "'scores'"),
        ({"scores": numbers + np.float32(np.nan)}, "not finite"),
        ({"confidence": small[0]}, "'confidence'"),
    ):
        with pytest.raises(OutputError, match=told):
            answered(card, pixels, changes=changes)


def test_activation_maps(maps_card, pixels):
    result = answered(maps_card, pixels, score_threshold=0).activated()
    assert result.classes == (0, 1, 2)
    assert result.maps.shape == (3, (41 - 1) // 4 + 1, (57 - 1) // 4 + 1)
    np.testing.assert_allclose(result.maps, pixels[::4, ::4].transpose(2, 0, 1) / 255, rtol=1e-6)
    assert answered(maps_card, pixels, tags=["blue"]).activated().classes == (2,)
    with pytest.raises(OutputError, match="finite"):
        answered(maps_card, pixels, changes={"cam": np.full((1, 3, 11, 15), np.inf, np.float32)})


def test_a_cam_model_gives_a_mask_of_its_maps(maps_card, pixels):
    result = segmented(maps_card, pixels, tags=["red", "blue"], background_threshold=0.6)
    assert result.activated.classes == (0, 2)
    assert set(np.unique(result.labels)) == {0, 1, 3}
    centres = result.labels[1::4, 1::4]
    strongest = result.activated.maps.argmax(axis=0) * 2 + 1
    agree = (
        centres
        == np.where(result.activated.maps.max(axis=0) > 0.6, strongest, 0)[
            : centres.shape[0], : centres.shape[1]
        ]
    )
    assert agree.mean() > 0.7
    assert not segmented(maps_card, np.zeros_like(pixels)).labels.any()
    assert (segmented(maps_card, np.zeros_like(pixels)).confidence == 255).all()


TILES = TilingConfig(oversize="tile", overlap=0.25)


@pytest.mark.parametrize("size", [(300, 700), (1000, 90), (257, 256)])
def test_a_tiled_mask_equals_the_whole_one(card, size):
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert len(pipeline.prepare(Picture(pixels, "RAW"), card, 1, TILES).tiling) > 1
    result = segmented(card, pixels, TILES)
    np.testing.assert_array_equal(result.labels, tiny_models.expected_mask(pixels))
    np.testing.assert_array_equal(result.confidence, pixels.max(axis=2))
    tiles = [
        tile
        for row in pipeline.prepare(Picture(pixels, "RAW"), card, 1, TILES).rows()
        for tile in row
    ]
    assert result.scores[0] == pytest.approx(
        max(tile[..., 0].mean() / 255 for tile in tiles), abs=1e-5
    )


def test_tiled_maps_and_their_mask_equal_the_whole_ones(maps_card, repository):
    pixels = np.random.default_rng(3).integers(0, 256, (200, 250, 3), dtype=np.uint8)
    wishes = {"tags": ["red", "green", "blue"], "background_threshold": 0.4}
    whole = segmented(maps_card, pixels, **wishes)
    result = segmented(replace(maps_card, max_side=128), pixels, TILES, **wishes)
    assert result.activated.maps.shape == whole.activated.maps.shape
    # Each tile's maps count by its score, which differs a little from tile to tile here.
    np.testing.assert_allclose(result.activated.maps, whole.activated.maps, atol=0.05)
    assert (result.labels == whole.labels).mean() > 0.95


@pytest.mark.parametrize(
    ("size", "rule", "tiled"),
    [
        ((256, 256), "tile", False),
        ((300, 300), "scale", False),
        ((300, 300), "auto", False),
        ((600, 600), "auto", True),
        ((257, 30), "tile", True),
        ((1000, 7), "tile", False),
    ],
)
def test_the_rule_for_images_above_the_limits(card, size, rule, tiled):
    assert pipeline.is_tiled(*size, card, rule) == tiled


@pytest.mark.parametrize("bucket", [16, 64, 100])
def test_padding_changes_neither_size_nor_values_of_a_mask(card, pixels, bucket):
    """The tiny model looks at one pixel at a time, so its mask must not depend on the padding at
    all.
    """
    prepared = pipeline.prepare(Picture(pixels, "RAW"), card, bucket)
    assert prepared.model_size == (-(-41 // bucket) * bucket, -(-57 // bucket) * bucket)
    assert prepared.inner == (41, 57)
    np.testing.assert_array_equal(prepared.batch[0, :41, :57], pixels)
    assert (prepared.batch[0, 41:, :57] == pixels[-1]).all()
    assert (prepared.batch[0, :41, 57:] == pixels[:, -1:]).all()
    result = answered(card, pixels, bucket).segmented()
    np.testing.assert_array_equal(result.labels, tiny_models.expected_mask(pixels))
    assert result.areas.sum() == 41 * 57


def test_padded_activation_maps_cover_the_image_alone(maps_card, pixels):
    for bucket in (1, 32):
        result = answered(maps_card, pixels, bucket, score_threshold=0).activated()
        assert result.maps.shape == (3, 11, 15)
        np.testing.assert_allclose(
            result.maps, pixels[::4, ::4].transpose(2, 0, 1) / 255, rtol=1e-6
        )


def test_each_class_has_its_own_score_threshold(card: Card, maps_card: Card):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    scores = segmented(maps_card, pixels).scores
    # Red is just present, green is just not.
    own = (float(scores[0]), float(np.nextafter(scores[1], np.float32(2))), 0.0)
    strict = replace(maps_card, score_thresholds=own)
    assert answered(strict, pixels).activated().classes == (0, 2)
    assert set(np.unique(segmented(strict, pixels).labels)) <= {0, 1, 3}
    # A request with one number for all has its way with maps.
    assert answered(strict, pixels, score_threshold=0).activated().classes == (0, 1, 2)
    # A segmenter's own thresholds are in its graph; a request can only raise them.
    whole = segmented(card, pixels)
    assert set(np.unique(whole.labels)) == {0, 1, 2, 3}
    middle = float(np.sort(whole.scores)[1])
    raised = segmented(card, pixels, score_threshold=middle)
    lost = np.flatnonzero(whole.scores < np.float32(middle)) + 1
    assert len(lost) == 1
    np.testing.assert_array_equal(
        raised.labels, np.where(np.isin(whole.labels, lost), 0, whole.labels)
    )
    assert not raised.confidence[np.isin(whole.labels, lost)].any()


def test_the_verdict_of_a_reply_is_that_of_its_mask(card: Card, maps_card: Card):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    for model in (card, maps_card):
        for threshold in np.linspace(0, 1, 11).tolist():
            options = options_for(model, score_threshold=threshold)
            result = segmented(model, pixels, score_threshold=threshold)
            for entry in replies.classes(model, result.scores, options, result):
                assert entry.present == (result.labels == entry.label).any()
                assert not entry.present or entry.score >= np.float32(threshold)
    options = options_for(card, score_threshold=0.5)
    without_mask = replies.classes(card, np.float32([0.4, 0.5, 0.6]), options)
    assert [entry.present for entry in without_mask] == [False, True, True]

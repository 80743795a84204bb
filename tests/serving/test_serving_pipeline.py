from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from serving import pipeline
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.errors import ImageTooLarge, OutputError
from serving.image import Picture
from serving.repository import Card, read_card


@pytest.fixture(scope="module")
def card(repository: Path) -> Card:
    return read_card(repository / "colours" / "1")


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


def test_no_scale_fits_a_strip(card):
    for size in ((1, 100), (10, 1000)):
        with pytest.raises(ImageTooLarge, match="too elongated"):
            pipeline.model_size(*size, card)


@pytest.mark.parametrize("size", [(600, 300), (5, 4), (300, 299)])
def test_a_mask_comes_back_at_the_size_sent(card, size):
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[: size[0] // 2, :, 1] = 255
    prepared = pipeline.prepare(Picture(pixels, "RAW"), card)
    assert max(prepared.model_size) <= 256
    result = pipeline.segmented(OnnxRuntimeEngine(card).run({"image": prepared.batch}), prepared, card)
    assert result.labels.shape == result.confidence.shape == size
    assert set(np.unique(result.labels)) == {0, 2}
    assert (result.labels == tiny_models.expected_mask(pixels)).mean() > 0.98 or min(size) < 8
    assert result.areas.sum() == size[0] * size[1]


def test_the_class_filter(card, pixels):
    prepared = pipeline.prepare(Picture(pixels, "RAW"), card)
    outputs = OnnxRuntimeEngine(card).run({"image": prepared.batch})
    whole, kept = (pipeline.segmented(outputs, prepared, card, labels) for labels in (None, [1, 3]))
    np.testing.assert_array_equal(whole.labels, tiny_models.expected_mask(pixels))
    np.testing.assert_array_equal(kept.labels, np.where(whole.labels == 2, 0, whole.labels))
    np.testing.assert_array_equal(kept.confidence, np.where(whole.labels == 2, 0, whole.confidence))
    assert kept.areas.tolist() == [whole.areas[0] + whole.areas[2], whole.areas[1], 0, whole.areas[3]]


def test_a_lying_graph_is_found(card, pixels):
    prepared = pipeline.prepare(Picture(pixels, "RAW"), card)
    good = OnnxRuntimeEngine(card).run({"image": prepared.batch})
    with pytest.raises(OutputError, match="label 9"):
        pipeline.segmented(good | {"mask": np.full_like(good["mask"], 9)}, prepared, card)
    with pytest.raises(OutputError, match="'mask'"):
        pipeline.segmented(good | {"mask": good["mask"][:, 1:]}, prepared, card)
    with pytest.raises(OutputError, match="'scores'"):
        pipeline.segmented(good | {"scores": good["scores"].astype(np.float64)}, prepared, card)
    with pytest.raises(OutputError, match="finite"):
        pipeline.segmented(good | {"scores": np.full_like(good["scores"], np.nan)}, prepared, card)
    with pytest.raises(OutputError, match="no output 'confidence'"):
        pipeline.segmented({name: good[name] for name in ("mask", "scores")}, prepared, card)


def test_activation_maps(repository, pixels):
    card = read_card(repository / "maps" / "1")
    prepared = pipeline.prepare(Picture(pixels, "RAW"), card)
    outputs = OnnxRuntimeEngine(card).run({"image": prepared.batch})
    result = pipeline.activated(outputs, prepared, card)
    assert result.maps.shape == (3, (41 - 1) // 4 + 1, (57 - 1) // 4 + 1)
    np.testing.assert_allclose(result.maps, pixels[::4, ::4].transpose(2, 0, 1) / 255, rtol=1e-6)
    with pytest.raises(OutputError, match="finite"):
        pipeline.activated(outputs | {"cam": np.full_like(outputs["cam"], np.inf)}, prepared, card)


@pytest.mark.parametrize("bucket", [16, 64, 100])
def test_padding_changes_neither_size_nor_values_of_a_mask(card, pixels, bucket):
    """The tiny model looks at one pixel at a time, so its mask must not depend on the padding at all."""
    prepared = pipeline.prepare(Picture(pixels, "RAW"), card, bucket)
    assert prepared.model_size == (-(-41 // bucket) * bucket, -(-57 // bucket) * bucket)
    assert prepared.inner == (41, 57)
    np.testing.assert_array_equal(prepared.batch[0, :41, :57], pixels)
    assert (prepared.batch[0, 41:, :57] == pixels[-1]).all()
    assert (prepared.batch[0, :41, 57:] == pixels[:, -1:]).all()
    result = pipeline.segmented(OnnxRuntimeEngine(card).run({"image": prepared.batch}), prepared, card)
    np.testing.assert_array_equal(result.labels, tiny_models.expected_mask(pixels))
    assert result.areas.sum() == 41 * 57


def test_padded_activation_maps_cover_the_image_alone(repository, pixels):
    card = read_card(repository / "maps" / "1")
    engine = OnnxRuntimeEngine(card)
    for bucket in (1, 32):
        prepared = pipeline.prepare(Picture(pixels, "RAW"), card, bucket)
        result = pipeline.activated(engine.run({"image": prepared.batch}), prepared, card)
        assert result.maps.shape == (3, 11, 15)
        np.testing.assert_allclose(result.maps, pixels[::4, ::4].transpose(2, 0, 1) / 255, rtol=1e-6)

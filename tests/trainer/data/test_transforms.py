import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.transforms import (
    MEAN,
    STD,
    classify_planes,
    color_jitter,
    crop_window,
    normalise,
    random_crop,
    random_crops,
    resize_long,
    sample_rng,
    segment_sample,
    to_tensor,
)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_generator_of_a_sample_is_a_function_of_seed_epoch_and_index():
    draws = {
        (s, e, i): sample_rng(s, e, i).random() for s in (0, 1) for e in (0, 1) for i in (0, 1, 2)
    }
    assert len(set(draws.values())) == len(draws)
    assert all(sample_rng(*key).random() == value for key, value in draws.items())


@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [
        ((500, 333), 256, (256, 170)),
        ((333, 500), 256, (170, 256)),
        ((60, 60), 32, (32, 32)),
        ((900, 1), 32, (32, 1)),
    ],
)
def test_resize_long_keeps_the_aspect(size, long_side, expected):
    assert resize_long(Image.new("RGB", size), long_side).size == expected


def test_normalise_is_that_of_imagenet():
    pixels = noise(5, 7)
    expected = (pixels / 255.0 - np.array(MEAN)) / np.array(STD)
    for image in (pixels, Image.fromarray(pixels)):
        out = normalise(image)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, expected, atol=2e-6)


def test_to_tensor_shares_memory_and_stays_channels_last():
    image = normalise(noise(5, 7))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 5, 7)
    assert tensor[None].is_contiguous(memory_format=torch.channels_last)
    assert np.shares_memory(image, tensor.numpy())


def test_every_offset_of_a_window_is_drawn():
    rng = sample_rng(0, 0, 0)
    assert {crop_window(12, 8, rng) for _ in range(200)} == {(y, 0, 8) for y in range(5)}
    assert {crop_window(6, 8, rng) for _ in range(200)} == {(0, top, 6) for top in range(3)}
    assert crop_window(8, 8, rng) == (0, 0, 8)


def test_a_small_image_is_kept_whole_on_zeros_and_a_large_one_is_cut():
    image = normalise(noise(6, 20)) + 10
    out = random_crop(image, 12, sample_rng(0, 0, 1))
    assert out.shape == (12, 12, 3)
    rows = np.flatnonzero(out.any((1, 2)))
    assert len(rows) == 6
    inside = out[rows[0] : rows[0] + 6]
    assert any(np.array_equal(inside, image[:, x : x + 12]) for x in range(9))


def test_planes_are_cut_alike_with_their_own_ground():
    index = np.arange(30, dtype=np.float32).reshape(5, 6)
    first, second = random_crops(
        [(index + 1, 0.0), (index.astype(np.uint8), 255)], 8, sample_rng(1, 0, 0)
    )
    assert second.dtype == np.uint8
    assert ((first == 0) == (second == 255)).all()
    assert (first == 0).sum() == 64 - 30
    np.testing.assert_array_equal(first[first > 0] - 1, second[second < 255])


def test_jitter_follows_the_generator_only_and_keeps_size():
    image = Image.fromarray(noise(9, 12))
    one, same, other = (np.asarray(color_jitter(image, sample_rng(0, 0, i))) for i in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.shape == (9, 12, 3)
    still = color_jitter(image, sample_rng(0, 0, 0), strength=0.0, hue=0.0)
    assert np.abs(np.asarray(still, int) - np.asarray(image, int)).max() <= 8


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (9, 200)])
@pytest.mark.parametrize("jitter", [False, True])
def test_views_of_the_classifier(size, jitter):
    views = [
        classify_planes(noise(*size), [], sample_rng(0, 0, i), (24, 48), 32, jitter)[0]
        for i in (0, 0, 1)
    ]
    assert views[0].shape == (3, 32, 32)
    assert views[0].dtype == torch.float32
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_both_orientations_are_seen():
    pixels = noise(32, 32)
    straight = to_tensor(normalise(pixels))
    views = [
        classify_planes(pixels, [], sample_rng(0, 0, i), (32, 32), 32, False)[0] for i in range(20)
    ]
    kinds = {torch.equal(v, straight) for v in views}
    assert kinds == {True, False}
    assert all(torch.equal(v, straight) or torch.equal(v.flip(2), straight) for v in views)


def test_image_and_mask_go_together():
    """The picture is painted with its mask's values, so that any disagreement shows."""
    mask = np.zeros((40, 60), np.uint8)
    mask[8:30, 10:40], mask[15:35, 30:50] = 1, 2
    pixels = np.stack([mask * 100] * 3, -1)
    for i in range(12):
        image, label = segment_sample(pixels, mask, sample_rng(0, 0, i), (0.7, 1.5), 48, False)
        assert image.shape == (3, 48, 48)
        assert label.shape == (48, 48)
        assert label.dtype == torch.uint8
        outside = label == 255
        assert (image[:, outside] == 0).all()
        painted = ((image[0] * STD[0] + MEAN[0]) * 255 / 100).round().clamp(0, 2)
        assert (painted == label)[~outside].float().mean() > 0.93
        assert set(label.unique().tolist()) <= {0, 1, 2, 255}


def test_segment_sample_scales_within_its_range():
    mask = np.ones((40, 40), np.uint8)
    shares = [
        (segment_sample(noise(40, 40), mask, sample_rng(0, 0, i), (0.5, 1.0), 64, True)[1] == 1)
        .sum()
        .item()
        for i in range(20)
    ]
    assert 20**2 <= min(shares) < 28**2 < max(shares) <= 40**2

"""What tells the three segmenters apart: training views, loss, groups, test, knobs (spec
refine-segment 6, 7 and 15).
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import U
from PIL import Image
from torch import nn

from trainer.data.dataset import IGNORE
from trainer.data.transforms import CAFFE_PIXELS, normalise, sample_rng, shift_hsv
from trainer.errors import ConfigError
from trainer.options import Options, make_configs
from trainer.segmenters import make_segmenter
from trainer.segmenters.base import Segmenter, mean_probabilities
from trainer.segmenters.config import PRESETS, SCRATCH, SegmentConfig
from trainer.segmenters.largefov_r38 import multi_scale_probabilities

NAMES = tuple(PRESETS)


def segmenter(name: str, classes: int = 3, **knobs) -> Segmenter:
    knobs = {"width": 1 / 16, **knobs} if name != "aspp" else knobs
    return make_segmenter(replace(PRESETS[name], **knobs), "resnet18", classes)


def picture(height: int = 40, width: int = 52, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.integers(
        0, 4, (height, width), dtype=np.uint8
    )


# Training views


@pytest.mark.parametrize("name", NAMES)
def test_views_have_the_crop_and_open_pixels_outside_of_the_image(name):
    made = segmenter(name, crop=64, scale=(0.5, 0.5), label_stride=1)
    image, label = made.sample(*picture(), sample_rng(0, 0, 0))
    assert (image.dtype, image.shape) == (torch.float32, (3, 64, 64))
    assert (label.dtype, label.shape) == (torch.uint8, (64, 64))
    assert ((label != IGNORE).sum()) == 20 * 26
    assert not image[:, label == IGNORE].any()
    assert image.stride()[0] == 1, "channels last"
    again = pickle.loads(pickle.dumps(made)).sample(*picture(), sample_rng(0, 0, 0))
    assert torch.equal(again[0], image)
    assert torch.equal(again[1], label)


def test_deeplab_v2_view_by_hand():
    """Spec 6.3 in the order of the released loader, pixel by pixel."""
    pixels, mask = picture()
    made = segmenter("deeplab-v2-r101", crop=48)
    flips, scales = set(), set()
    for seed in range(12):
        image, label = made.sample(pixels, mask, sample_rng(0, 0, seed))
        rng = sample_rng(0, 0, seed)
        factor = float(rng.choice([0.5, 0.75, 1.0, 1.25, 1.5]))
        h, w = int(40 * factor), int(52 * factor)
        bgr = np.zeros((h, w, 3))
        for y in range(h):
            for x in range(w):
                v, u = (
                    np.clip((i + 0.5) * old / new - 0.5, 0, old - 1)
                    for i, old, new in ((y, 40, h), (x, 52, w))
                )
                y0, x0 = int(v), int(u)
                y1, x1, a, b = min(y0 + 1, 39), min(x0 + 1, 51), v - y0, u - x0
                four = pixels[[y0, y0, y1, y1], [x0, x1, x0, x1]].astype(float)
                bgr[y, x] = (np.array([(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b]) @ four)[
                    ::-1
                ]
        wanted = np.asarray(Image.fromarray(mask).resize((w, h), Image.Resampling.NEAREST))
        bgr = np.pad(
            bgr - (104.008, 116.669, 122.675), ((0, max(48 - h, 0)), (0, max(48 - w, 0)), (0, 0))
        )
        wanted = np.pad(wanted, ((0, max(48 - h, 0)), (0, max(48 - w, 0))), constant_values=255)
        top, left = (int(rng.integers(0, side - 48 + 1)) for side in wanted.shape)
        bgr, wanted = (
            bgr[top : top + 48, left : left + 48],
            wanted[top : top + 48, left : left + 48],
        )
        if rng.random() < 0.5:
            bgr, wanted = bgr[:, ::-1], wanted[:, ::-1]
            flips.add(seed)
        scales.add(factor)
        np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), bgr, atol=1e-3)
        assert np.array_equal(label.numpy(), wanted)
    assert 0 < len(flips) < 12
    assert len(scales) > 3


def test_largefov_view_by_hand():
    """Spec 7: colours, flip, scale, normalise, crop; OpenCV's cubic is torch's."""
    pixels, mask = picture()
    made = segmenter("largefov-r38", crop=48)
    for seed in range(6):
        image, label = made.sample(pixels, mask, sample_rng(0, 0, seed))
        rng = sample_rng(0, 0, seed)
        shifted = np.asarray(shift_hsv(Image.fromarray(pixels), rng, 10))
        flip = rng.random() < 0.5
        view, truth = (shifted[:, ::-1], mask[:, ::-1]) if flip else (shifted, mask)
        factor = rng.uniform(0.5, 1.5)
        h, w = round(40 * factor), round(52 * factor)
        planes = torch.from_numpy(view.copy()).permute(2, 0, 1)[None].double()
        planes = (
            F.interpolate(planes, (h, w), mode="bicubic", align_corners=False).round().clamp(0, 255)
        )
        rows, columns = (np.arange(n) * old // n for n, old in ((h, 40), (w, 52)))
        truth = truth[rows[:, None], columns]
        (y, top, hh), (x, left, ww) = (
            (int(rng.integers(0, n - 48 + 1)), 0, 48)
            if n > 48
            else (0, int(rng.integers(0, 48 - n + 1)), n)
            for n in (h, w)
        )
        expected, labels = np.zeros((48, 48, 3)), np.full((48, 48), 255)
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        scaled = (planes[0].permute(1, 2, 0).numpy() / 255 - mean) / std
        expected[top : top + hh, left : left + ww] = scaled[y : y + hh, x : x + ww]
        labels[top : top + hh, left : left + ww] = truth[y : y + hh, x : x + ww]
        np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=0.02)
        assert np.array_equal(label.numpy(), labels)


def test_colours_are_shifted_by_whole_numbers_of_hue_saturation_and_value():
    image = Image.fromarray(np.full((4, 4, 3), (200, 60, 40), np.uint8))
    before = np.asarray(image.convert("HSV"))[0, 0].astype(int)
    seen = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        after = np.asarray(shift_hsv(image, rng, 10).convert("HSV"))[0, 0].astype(int)
        hue = (after[0] - before[0] + 127) % 255 - 127
        assert abs(hue) <= 16
        assert np.abs(after[1:] - before[1:]).max() <= 12
        seen.add(tuple(after))
    assert len(seen) > 30
    still = shift_hsv(Image.fromarray(picture()[0]), np.random.default_rng(0), 0)
    error = np.abs(np.asarray(still).astype(int) - picture()[0])
    assert error.max() <= 8
    assert error.mean() < 1


def test_input_of_caffe():
    pixel = np.array([[[255, 128, 0]]], np.uint8)
    assert normalise(pixel, CAFFE_PIXELS).ravel().tolist() == pytest.approx(
        [-104.008, 128 - 116.669, 255 - 122.675], rel=1e-6
    )
    made = segmenter("deeplab-v2-r101", input="torchvision_rgb")
    expected = [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, -0.406 / 0.225]
    assert normalise(pixel, made.pixels).ravel().tolist() == pytest.approx(expected, rel=1e-6)


def test_a_set_of_scales_for_any_segmenter():
    made = segmenter("aspp", scale=(0.5, 1.0), scale_draw="set", crop=64)
    sizes = {
        int((made.sample(*picture(), sample_rng(0, 0, i))[1] != IGNORE).sum()) for i in range(12)
    }
    assert sizes == {20 * 26, 40 * 52}


# Loss and groups


class Fixed(nn.Module):
    """Gives its logits whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


def loss_of(made, network, labels, images=None):
    batch = {"image": labels if images is None else images, "label": labels}
    return made.loss(network, batch, np.random.default_rng(0))["ce"]


def test_ignored_pixels_count_for_nothing():
    labels = torch.randint(
        0, 4, (2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels[:, :, 5:] = IGNORE
    net = Fixed(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)))
    loss = loss_of(segmenter("aspp", label_stride=1), net, labels)
    torch.testing.assert_close(loss, F.cross_entropy(net.logits[..., :5], labels[..., :5].long()))
    loss.backward()
    assert net.logits.grad is not None
    assert not net.logits.grad[..., 5:].any()
    assert net.logits.grad[..., :5].any()


def test_a_batch_of_ignored_pixels_only_is_harmless():
    net = Fixed(torch.randn(2, 4, 8, 8))
    loss = loss_of(segmenter("aspp"), net, torch.full((2, 32, 32), IGNORE, dtype=torch.uint8))
    assert loss.item() == 0
    loss.backward()
    assert net.logits.grad is not None
    assert not net.logits.grad.any()


def test_labels_are_picked_at_cell_centres():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[0, 2, 6] = 1
    net = Fixed(torch.zeros(1, 2, 2, 2))
    net.logits.data[0, 0] = 20.0
    loss = loss_of(segmenter("aspp", label_stride=4), net, labels)
    assert loss.item() == pytest.approx(20 / 4)


@pytest.mark.parametrize(("name", "outputs"), [("deeplab-v2-r101", 4), ("largefov-r38", 1)])
def test_loss_of_a_step_is_that_of_the_papers(name, outputs):
    torch.manual_seed(0)
    made = segmenter(name, crop=65)
    network = made.build().train()
    images, labels = torch.randn(2, 3, 65, 65), torch.randint(0, 4, (2, 65, 65), dtype=torch.uint8)
    labels[:, :9] = IGNORE
    torch.manual_seed(1)
    found = loss_of(made, network, labels, images)
    torch.manual_seed(1)
    levels = network(images)
    levels = levels if outputs > 1 else [levels]
    assert len(levels) == outputs
    expected = 0.0
    for level in levels:
        size = tuple(level.shape[2:])
        small = [
            np.asarray(Image.fromarray(m.numpy()).resize(size[::-1], Image.Resampling.NEAREST))
            for m in labels
        ]
        expected += F.cross_entropy(
            level, torch.from_numpy(np.stack(small)).long(), ignore_index=255
        ).item()
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_those_of_deeplab(name):
    made = segmenter(name, lr=1e-3, weight_decay=5e-4)
    network = made.build().train()
    groups = made.groups(network)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [
        (pytest.approx(1e-3), 5e-4),
        (pytest.approx(1e-2), 5e-4),
        (pytest.approx(2e-2), 0.0),
    ]
    grouped = {id(p) for g in groups for p in g["params"]}
    assert grouped == {id(p) for p in network.parameters() if p.requires_grad}
    assert [g["lr"] for g in segmenter(name, new_factor=1.0).groups(network)][1] == pytest.approx(
        PRESETS[name].lr
    )


# The test


def test_deeplab_v2_is_asked_as_published():
    torch.manual_seed(0)
    made = segmenter("deeplab-v2-r101")
    network = made.build().eval()
    pixels, _ = picture(41, 56)
    views = made.views()
    assert views.scales == (1.0,)
    view = views.make(pixels, 1.0)[None]
    np.testing.assert_allclose(
        view[0].permute(1, 2, 0),
        pixels[..., ::-1] - np.array([104.008, 116.669, 122.675]),
        atol=1e-4,
    )
    with torch.no_grad():
        found = made.probabilities(network, [view], (41, 56))
        expected = F.interpolate(
            network(view), (41, 56), mode="bilinear", align_corners=False
        ).softmax(1)
    torch.testing.assert_close(found, expected)
    assert not made.config.flip


class Ramp(nn.Module):
    """Two classes; sees left and right, brightness, and how large its input is."""

    def forward(self, x):
        slope = torch.linspace(-1, 1, x.shape[3], dtype=x.dtype).expand(x.shape[2], -1)
        return torch.stack([slope * x.mean(1), (x[:, 0] + x.shape[3] / 100).square()], 1)[
            :, :, ::2, ::2
        ]


def test_largefov_merges_views_as_logits():
    images = U((2, 3, 15, 20), 1)
    network, config = Ramp(), PRESETS["largefov-r38"]
    found = multi_scale_probabilities(network, images, config.scales, config.flip)
    assert config.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    logits = []
    for scale in config.scales:
        size = [round(15 * scale), round(20 * scale)]
        view = (
            images
            if scale == 1
            else F.interpolate(images, size, mode="bicubic", align_corners=False)
        )
        for mirror in (False, True):
            one = network(view.flip(3) if mirror else view)
            full = F.interpolate(one, (15, 20), mode="bilinear", align_corners=True)
            logits.append(full.flip(3) if mirror else full)
    torch.testing.assert_close(found, torch.stack(logits).mean(0).softmax(1))
    torch.testing.assert_close(found.sum(1), torch.ones(2, 15, 20).double())


def test_mirrored_images_have_mirrored_probabilities():
    images = U((1, 3, 12, 18), 4)
    found = multi_scale_probabilities(Ramp(), images, (1.0, 0.5), True)
    torch.testing.assert_close(
        multi_scale_probabilities(Ramp(), images.flip(3), (1.0, 0.5), True), found.flip(3)
    )
    one = multi_scale_probabilities(Ramp(), images, (1.0,), flip=False)
    torch.testing.assert_close(
        one, F.interpolate(Ramp()(images), (12, 18), mode="bilinear", align_corners=True).softmax(1)
    )
    both = mean_probabilities(Ramp(), [images.float()], (12, 18), True)
    torch.testing.assert_close(
        mean_probabilities(Ramp(), [images.float().flip(3)], (12, 18), True), both.flip(3)
    )


# Knobs


def configs(*settings: str, **more) -> SegmentConfig:
    return make_configs(Options(data=Path(), run=Path(), settings=settings, **more)).segment


def test_presets_are_what_the_specification_says():
    v2, fov = configs(segmenter="deeplab-v2-r101"), configs(segmenter="largefov-r38")
    assert (v2, fov) == (PRESETS["deeplab-v2-r101"], PRESETS["largefov-r38"])
    assert (v2.updates, v2.batch, v2.accumulate, v2.lr, v2.momentum, v2.weight_decay) == (
        20_000,
        10,
        2,
        2.5e-4,
        0.9,
        5e-4,
    )
    assert (v2.schedule, v2.crop, v2.rates, v2.msc, v2.crf) == (
        "poly_held",
        321,
        (6, 12, 18, 24),
        (0.5, 0.75),
        "P3",
    )
    assert (fov.updates, fov.batch, fov.lr, fov.momentum, fov.weight_decay) == (
        20_000,
        10,
        1e-3,
        0.9,
        5e-4,
    )
    assert (fov.schedule, fov.crop, fov.scale, fov.hsv, fov.bn, fov.crf) == (
        "poly_open",
        448,
        (0.5, 1.5),
        10,
        "batch",
        "P4",
    )
    assert v2.init == fov.init == "auto"
    for config in (v2, fov, SegmentConfig(), SCRATCH):
        assert (config.teacher, config.balanced, config.crf_image) == ("none", False, "raw")


def test_aspp_is_what_comes_without_a_name():
    assert configs() == PRESETS["aspp"] == SegmentConfig()
    assert configs(weights="none") == SCRATCH
    assert configs(weights="none", segmenter="largefov-r38") == PRESETS["largefov-r38"]


def test_epochs_are_asked_for_instead_of_updates():
    assert configs(segmenter="deeplab-v2-r101", epochs=3).updates == 0
    assert configs("segment.updates=30000", segmenter="deeplab-v2-r101").updates == 30_000
    assert configs(segmenter="deeplab-v2-r101", size=161).crop == 161


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("aspp", "segment.msc=0.5", "aspp has no knob 'msc'"),
        ("aspp", "segment.stride_on=3x3", "aspp has no knob 'stride_on'"),
        ("deeplab-v2-r101", "segment.bn=train", "deeplab-v2-r101 has no knob 'bn'"),
        ("largefov-r38", "segment.rates=1,2", "largefov-r38 has no knob 'rates'"),
        ("largefov-r38", "segment.input=caffe_bgr", "largefov-r38 has no knob 'input'"),
        ("deeplab", "segment.lr=1", "there is no segmenter 'deeplab'"),
        ("aspp", "segment.scale=1.5,0.5", "segment.scale=1.5,0.5"),
        ("aspp", "segment.scale=0.5,1,1.5", "segment.scale=0.5,1,1.5"),
        ("deeplab-v2-r101", "segment.scale=0.5,-1", "segment.scale=0.5,-1"),
        ("aspp", "segment.scales=", "segment.scales="),
        ("aspp", "segment.scales=1,0", "segment.scales=1.0,0.0"),
        ("largefov-r38", "segment.width=0", "segment.width=0"),
        ("aspp", "segment.hsv=-1", "hsv=-1"),
        ("aspp", "segment.teacher=replace", "segment.teacher=replace without averaged weights"),
        ("aspp", "segment.teacher_confidence=2", "teacher_confidence"),
        ("aspp", "segment.updates=-1", "updates=-1"),
        ("aspp", "segment.crf_image=bgr", "segment.crf_image=bgr"),
    ],
)
def test_impossible_knobs_are_named(name, setting, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")) as caught:
        configs(setting, segmenter=name)
    assert caught.value.expected


def test_largefov_has_two_modes_of_batch_norm():
    with pytest.raises(ConfigError, match="batch norm mode 'train'"):
        segmenter("largefov-r38", bn="train").build()
    assert segmenter("largefov-r38", bn="frozen").build() is not None

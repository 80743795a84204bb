"""Losses of the segmenters: labels at each size as Pillow and nearest-exact have them, means over
known pixels.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import U
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.segmenters.losses import label_loss, multi_scale_loss, resize_labels


@pytest.mark.parametrize(
    ("old", "new"), [(321, 41), (321, 21), (321, 31), (512, 128), (513, 65), (375, 94), (448, 56)]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_labels_are_resized_as_by_pillow(old, new, dtype):
    labels = np.random.default_rng(old).integers(0, 256, (old, old), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(labels).resize((new, new), Image.Resampling.NEAREST))
    found = resize_labels(torch.from_numpy(labels).to(dtype)[None], (new, new))
    assert found.dtype == dtype
    assert np.array_equal(found[0].numpy(), expected)


@settings(max_examples=60, deadline=None)
@given(*(st.integers(1, 400) for _ in range(4)))
def test_labels_are_resized_as_by_nearest_exact(height, width, h, w):
    labels = torch.arange(height * width).reshape(1, height, width)
    expected = F.interpolate(labels[None].double(), (h, w), mode="nearest-exact")[0].long()
    assert torch.equal(resize_labels(labels, (h, w)), expected)


def test_pillow_differs_on_the_edge_of_two_pixels_only():
    for old, new in ((680, 509), (246, 33), (448, 748), (108, 14)):
        line = np.arange(old, dtype=np.int32)[None]
        pillow = np.asarray(Image.fromarray(line).resize((new, 1), Image.Resampling.NEAREST))[0]
        found = resize_labels(torch.from_numpy(line), (1, new))[0].numpy()
        other = np.flatnonzero(pillow != found)
        assert ((2 * other + 1) * old % (2 * new) == 0).all()
        assert (np.abs(pillow - found) <= 1).all()


def test_loss_is_the_sum_over_outputs_of_means_over_known_pixels():
    labels = (4 * U((2, 33, 41), 1)).long()
    labels[labels == 3] = 255
    sizes = ((5, 6), (3, 4), (4, 5), (5, 6))
    logits = [4 * U((2, 3, *size), 2 + i) - 2 for i, size in enumerate(sizes)]
    expected = 0.0
    for level in logits:
        small = F.interpolate(labels[:, None].double(), level.shape[2:], mode="nearest-exact")[
            :, 0
        ].long()
        expected += F.cross_entropy(level, small, ignore_index=255).item()
    assert multi_scale_loss(logits, labels).item() == pytest.approx(expected, rel=1e-12)
    assert multi_scale_loss(logits, labels.to(torch.uint8)).item() == pytest.approx(
        expected, rel=1e-12
    )


def test_balanced_loss_is_background_and_foreground_apart():
    logits, labels = 4 * U((1, 3, 4, 5), 1) - 2, (3 * U((1, 4, 5), 2)).long()
    labels[0, 0] = 255
    chance = -logits.log_softmax(1).gather(1, labels.clamp(max=2)[:, None])[:, 0]
    expected = chance[labels == 0].mean() + chance[(labels == 1) | (labels == 2)].mean()
    torch.testing.assert_close(label_loss(logits, labels, balanced=True), expected)


@pytest.mark.parametrize("balanced", [False, True])
def test_nothing_but_ignored_pixels_is_no_loss(balanced):
    logits = torch.randn(1, 3, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    loss = label_loss(logits, torch.full((1, 2, 2), 255), balanced)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == 0
    assert not logits.grad.any()


def test_weights_of_pixels_are_those_of_a_mean():
    logits, labels = 4 * U((2, 3, 4, 5), 1) - 2, (3 * U((2, 4, 5), 2)).long()
    labels[1, :2] = 255
    weights = U((2, 4, 5), 3)
    chance = -logits.log_softmax(1).gather(1, labels.clamp(max=2)[:, None])[:, 0]
    known = labels != 255
    expected = (chance * weights)[known].sum() / weights[known].sum()
    torch.testing.assert_close(label_loss(logits, labels, weights_Bhw=weights), expected)
    torch.testing.assert_close(
        label_loss(logits, labels, weights_Bhw=(weights > 0.5).double()),
        label_loss(logits, torch.where(weights > 0.5, labels, 255)),
    )
    levels = [logits, logits[:, :, ::2, ::2]]
    picked = resize_labels(weights, (2, 3))
    small = label_loss(levels[1], resize_labels(labels, (2, 3)), weights_Bhw=picked)
    torch.testing.assert_close(
        multi_scale_loss(levels, labels, weights_BHW=weights), expected + small
    )


def test_labels_are_resized_once_for_each_size(monkeypatch):
    from trainer.segmenters import losses

    seen = []
    monkeypatch.setattr(
        losses,
        "resize_labels",
        lambda labels, size: seen.append(tuple(size)) or resize_labels(labels, size),
    )
    multi_scale_loss(
        [torch.zeros(1, 3, s, s) for s in (41, 21, 31, 41)],
        torch.zeros(1, 321, 321, dtype=torch.uint8),
    )
    assert sorted(seen) == [(21, 21), (31, 31), (41, 41)]

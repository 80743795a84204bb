"""Training on few true masks beside many pseudo masks: windows, orders, losses, and a teacher that
fills open pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_nets import TinyBackbone, pictures
from torch import nn

from trainer.data.dataset import Record
from trainer.data.sampling import MixedOrder
from trainer.nets.aspp import AsppSegmenter
from trainer.run import Metrics, Output
from trainer.segmenters.aspp import Aspp
from trainer.segmenters.config import SegmentConfig
from trainer.segmenters.noise import heard
from trainer.segmenters.training import around_object, make_sample, train_segmenter
from trainer.training.averaging import Teacher

FILL = SegmentConfig(teacher="fill", ema=0.9, teacher_confidence=0.8, teacher_after=0.0)


def records(number: int, negatives: int = 0) -> list[Record]:
    return [Record(str(i), None, () if i < negatives else (0,)) for i in range(number)]  # type: ignore[arg-type]


# Orders


@pytest.mark.parametrize(("number", "others"), [(6, 2), (7, 2), (2, 9), (1, 1), (8, 8)])
def test_every_second_image_has_a_true_mask(number, others):
    order = MixedOrder(records(number), others, 1.0, False, seed=3)
    assert len(order) == number
    for epoch in range(6):
        drawn = order(epoch)
        assert (drawn[::2] < number).all()
        assert (drawn[1::2] >= number).all()
        assert np.array_equal(drawn, order(epoch))
    # Two epochs draw each of the many once; the few come up equally often.
    pair = np.concatenate([order(4)[::2], order(5)[::2]])
    assert set(pair.tolist()) == set(range(number))
    few = np.concatenate([order(epoch)[1::2] for epoch in range(2 * others)])
    counts = np.bincount(few, minlength=number + others)[number:]
    assert counts.max() - counts.min() <= 1


def test_negatives_keep_their_share_of_the_other_half():
    order = MixedOrder(records(40, negatives=30), 4, 0.5, False, seed=0)
    assert len(order) == 20
    drawn = np.concatenate([order(0)[::2], order(1)[::2]])
    assert (drawn < 30).sum() == 10


# Windows


def test_a_window_lies_around_an_object():
    mask = np.zeros((50, 80), np.uint8)
    mask[40:42, 3] = 2
    mask[:, 79] = 255
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    window, label = around_object(pixels, mask, 20, np.random.default_rng(1))
    assert window.shape == (20, 20, 3)
    assert (label == 2).sum() == 2
    assert np.array_equal(window, pixels[30:50, 0:20])
    whole, same = around_object(pixels, mask, 200, np.random.default_rng(1))
    assert whole.shape == pixels.shape
    assert np.array_equal(same, mask)


def test_an_image_without_an_object_stays_whole():
    mask = np.full((5, 8), 255, np.uint8)
    mask[0] = 0
    pixels = np.zeros((5, 8, 3), np.uint8)
    assert around_object(pixels, mask, 2, np.random.default_rng(0))[0] is pixels


def test_small_classes_are_drawn_as_often_as_large_ones():
    mask = np.ones((60, 60), np.uint8)
    mask[:3, :3] = 2
    pixels, rng = np.zeros((60, 60, 3), np.uint8), np.random.default_rng(0)
    windows = [around_object(pixels, mask, 9, rng)[1] for _ in range(200)]
    share = np.mean([(window == 2).any() for window in windows])
    assert 0.4 < share < 0.65


# The teacher


def logits(*chances: list[float]) -> torch.Tensor:
    """``[1,L,1,W]`` whose soft-max is given pixel by pixel."""
    return torch.tensor(chances).log().T[None, :, None]


GROUND, FIRST = [0.9, 0.05, 0.05], [0.05, 0.9, 0.05]
EVERYTHING = torch.ones(1, 3, dtype=torch.bool)


def test_open_pixels_get_the_label_that_the_teacher_is_sure_of():
    labels = torch.tensor([[[255, 255, 255, 0, 1, 255]]], dtype=torch.uint8)
    answer = logits(GROUND, FIRST, [0.5, 0.3, 0.2], FIRST, GROUND, FIRST)
    inside = torch.tensor([[[True] * 5 + [False]]])
    filled, weights = heard(labels, answer, EVERYTHING, FILL, inside)
    assert filled.tolist() == [[[0, 1, 255, 1, 0, 255]]]
    assert weights is None
    replaced, _ = heard(labels, answer, EVERYTHING, replace(FILL, teacher="replace"), inside)
    assert replaced.tolist() == [[[255, 255, 255, 1, 0, 255]]]


def test_a_teacher_that_sees_no_class_fills_nothing_with_background():
    labels = torch.tensor([[[255, 255]]], dtype=torch.uint8)
    filled, _ = heard(labels, logits(GROUND, GROUND), EVERYTHING, FILL)
    assert filled.tolist() == labels.tolist()


def test_excluded_classes_fill_nothing():
    labels = torch.tensor([[[255, 255]]], dtype=torch.uint8)
    possible = torch.tensor([[True, False, True]])
    filled, _ = heard(labels, logits(FIRST, FIRST), possible, FILL)
    assert 1 not in filled


# The loss


def segmenter(**knobs: Any) -> tuple[Aspp, AsppSegmenter]:
    config = replace(SegmentConfig(crop=32, batch=4, precision="fp32", workers=0), **knobs)
    torch.manual_seed(0)
    return Aspp(config, "tiny", 2), AsppSegmenter(TinyBackbone(), 3, (1, 2))


def batch(true: list[bool], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    number = len(true)
    return {
        "image": torch.rand(number, 3, 32, 32, generator=generator) + 0.1,
        "label": torch.randint(0, 3, (number, 32, 32), generator=generator, dtype=torch.uint8),
        "possible": torch.ones(number, 3, dtype=torch.bool),
        "is_true": torch.tensor(true),
    }


def test_true_masks_weigh_as_much_as_all_the_others():
    own, network = segmenter()
    mixed = batch([True, False, False, False])
    terms = own.loss(network, mixed, np.random.default_rng(0))
    parts = {
        name: {k: v[rows] for k, v in mixed.items() if k != "is_true"}
        for name, rows in (("ce_masks", slice(0, 1)), ("ce_tags", slice(1, 4)))
    }
    assert terms.keys() == parts.keys()
    network.eval()
    for name, part in parts.items():
        alone = own.loss(network, part, np.random.default_rng(0))["ce"]
        torch.testing.assert_close(
            own.loss(network, mixed, np.random.default_rng(0))[name], alone / 2
        )


def test_a_batch_of_one_kind_has_its_whole_loss():
    own, network = segmenter()
    network.eval()
    mixed = batch([True, True])
    terms = own.loss(network, mixed, np.random.default_rng(0))
    del mixed["is_true"]
    assert list(terms) == ["ce_masks"]
    torch.testing.assert_close(
        terms["ce_masks"], own.loss(network, mixed, np.random.default_rng(0))["ce"]
    )


class Certain(nn.Module):
    """Everything is class 2."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 3, 8, 8)
        logits[:, 2] = 20
        return logits


@pytest.mark.parametrize("teacher", ["fill", "replace", "weigh"])
def test_no_teacher_corrects_a_true_mask(teacher):
    own, network = segmenter(teacher=teacher, ema=0.9, teacher_after=0.0)
    network.eval()
    mixed = batch([True, False])
    mixed["label"][:, :, 0] = 2
    plain = own.loss(network, mixed, np.random.default_rng(0))
    own.teacher = Teacher(Certain())
    taught = own.loss(network, mixed, np.random.default_rng(0))
    torch.testing.assert_close(taught["ce_masks"], plain["ce_masks"])
    assert not torch.allclose(taught["ce_tags"], plain["ce_tags"])


def test_padding_is_never_filled():
    own, network = segmenter(teacher="fill", ema=0.9, teacher_after=0.0, label_stride=1)
    network.eval()
    own.teacher = Teacher(Certain())
    mixed = batch([False])
    mixed["label"][:] = 255
    mixed["image"][:, :, :, 16:] = 0
    inside = {name: x.clone() for name, x in mixed.items()}
    inside["label"][:, :, :16] = 2
    own_loss = own.loss(network, mixed, np.random.default_rng(0))["ce_tags"]
    del inside["is_true"]
    own.teacher = None
    torch.testing.assert_close(own.loss(network, inside, np.random.default_rng(0))["ce"], own_loss)


# A training


def test_few_masks_teach_what_pseudo_masks_hide(tmp_path):
    """The pseudo masks are open everywhere; those of two images are true."""
    own, network = segmenter(epochs=12, lr=0.05, label_stride=1, scale=(1.0, 1.0))
    dataset = pictures(tmp_path / "images", 8, classes=2)
    several = list(dataset.records.values())

    def read(record: Record) -> npt.NDArray[np.uint8]:
        mask = dataset.read_mask(record)
        return mask if record in several[:2] else np.full_like(mask, 255)

    train_segmenter(
        own,
        network,
        several[2:],
        read,
        Output(tmp_path),
        Metrics(tmp_path / "metrics.csv", "segment"),
        0,
        {"backbone": "tiny", "classes": ["a", "b"]},
        "cpu",
        several[:2],
    )
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    values = [float(row.split(",")[-1]) for row in rows if ",loss_ce_masks," in row]
    assert len(values) > 1
    assert values[-1] < values[0]


def test_samples_say_whether_their_mask_is_true(tmp_path):
    dataset = pictures(tmp_path, 1, classes=2)
    (record,) = dataset.records.values()
    own, _ = segmenter(teacher="fill", ema=0.9)

    def sample(*true: str) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(0)
        return make_sample(record, rng, own, dataset.read_mask, frozenset(true))

    assert "is_true" not in sample()
    assert sample(record.id)["is_true"]
    assert not sample("other")["is_true"]
    assert sample("other")["possible"].tolist() == [True, True, False]

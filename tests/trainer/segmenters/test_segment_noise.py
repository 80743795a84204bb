"""Training on masks that are wrong: the teacher's rule, when it is heard, and what each knob does
to a training.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tiny_nets import TinyBackbone, pictures
from torch import nn

from trainer.data.dataset import Record
from trainer.data.pixels import read_image
from trainer.nets.aspp import AsppSegmenter
from trainer.run import Metrics, Output
from trainer.segmenters import training
from trainer.segmenters.aspp import Aspp
from trainer.segmenters.config import SegmentConfig
from trainer.segmenters.noise import heard
from trainer.training.averaging import Teacher
from trainer.training.inference import Views

CONFIG = SegmentConfig(teacher="replace", ema=0.9, teacher_confidence=0.8, teacher_after=0.0)
EVERYTHING = torch.ones(1, 3, dtype=torch.bool)


def logits(*chances: list[float]) -> torch.Tensor:
    """``[1,L,1,W]`` whose soft-max is given pixel by pixel."""
    return torch.tensor(chances).log().T[None, :, None]


def row(*labels: int) -> torch.Tensor:
    return torch.tensor([[labels]], dtype=torch.uint8)


SURE = {0: [0.9, 0.05, 0.05], 1: [0.05, 0.9, 0.05], 2: [0.05, 0.05, 0.9]}
SAID = logits(SURE[0], SURE[0], [0.7, 0.2, 0.1], SURE[2], SURE[0], SURE[1])
LABELS = row(0, 1, 1, 1, 255, 1)


def test_labels_are_replaced_where_the_teacher_is_sure_and_of_another_opinion():
    labels, weights = heard(LABELS, SAID, EVERYTHING, CONFIG)
    assert labels.tolist() == row(0, 0, 1, 2, 255, 1).tolist()
    assert labels.dtype == torch.uint8
    assert weights is None


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_pixels_are_weighed_where_the_teacher_is_sure_and_of_another_opinion(weight):
    labels, weights = heard(
        LABELS, SAID, EVERYTHING, replace(CONFIG, teacher="weigh", teacher_weight=weight)
    )
    assert torch.equal(labels, LABELS)
    assert weights is not None
    assert weights.tolist() == [[[1, weight, 1, weight, 1, 1]]]


def test_the_teacher_cannot_see_what_the_tags_deny():
    possible = torch.tensor([[True, True, False]])
    labels, _ = heard(
        row(0, 1),
        logits([0.05, 0.15, 0.8], [0.3, 0.1, 0.6]),
        possible,
        replace(CONFIG, teacher_confidence=0.7),
    )
    assert labels.tolist() == row(1, 0).tolist()


def test_a_class_that_the_teacher_does_not_know_is_not_erased():
    labels, _ = heard(
        row(1, 1, 0, 2), logits(SURE[0], SURE[0], SURE[0], SURE[2]), EVERYTHING, CONFIG
    )
    assert labels.tolist() == row(1, 1, 0, 2).tolist()
    both = torch.cat([row(1, 1), row(1, 1)])
    said = torch.cat([logits(SURE[0], SURE[1]), logits(SURE[0], SURE[0])])
    labels, _ = heard(both, said, EVERYTHING.expand(2, -1), CONFIG)
    assert labels.tolist() == [[[0, 1]], [[1, 1]]], "each image for itself"


def test_coarse_opinions_are_stretched_to_the_labels():
    coarse = torch.zeros(1, 3, 2, 2)
    coarse[:, 2, :, 1] = 9
    labels, _ = heard(torch.zeros(1, 8, 8, dtype=torch.uint8), coarse, EVERYTHING, CONFIG)
    assert not labels[0, :, :3].any()
    assert (labels[0, :, 6:] == 2).all()


class Counted(nn.Module):
    """Sure of class 2 everywhere, and counts how often it was asked."""

    asked = 0

    def forward(self, images):
        self.asked += 1
        out = torch.zeros(len(images), 3, 2, 2)
        out[:, 2] = 9
        return out


@pytest.mark.parametrize(("progress", "asked"), [(0.1, 0), (0.3, 1), (0.9, 1)])
def test_the_teacher_is_heard_late(progress, asked):
    network = Counted()
    teacher = Teacher(network)
    teacher.progress = progress
    made = Aspp(replace(CONFIG, teacher_after=0.3, label_stride=1), "resnet18", 2)
    student = nn.Conv2d(3, 3, 1)
    images, labels = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    made.teacher = teacher
    batch = {"image": images, "label": labels, "possible": EVERYTHING}
    loss = made.loss(student, batch, np.random.default_rng(0))["ce"]
    target = torch.full((1, 4, 4), 2 if asked else 0)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(student(images), target))
    assert network.asked == asked


def test_a_sample_says_what_its_tags_allow(tmp_path):
    data = pictures(tmp_path, count=2)
    made = Aspp(replace(CONFIG, crop=32), "resnet18", 3)
    sample = training.make_sample(
        data.subset("all")[1], np.random.default_rng(0), made, data.read_mask
    )
    assert sample["possible"].tolist() == [True, False, True, False]


# Whole trainings on synthetic pictures


def trained(tmp_path, data, read, name: str, epochs: int = 25, **knobs: Any) -> nn.Module:
    config = SegmentConfig(
        epochs=epochs,
        batch=6,
        crop=40,
        scale=(1.0, 1.0),
        workers=0,
        precision="fp32",
        rates=(1,),
        lr=0.02,
        new_factor=10.0,
        label_stride=4,
        momentum=0.9,
        **knobs,
    )
    torch.manual_seed(0)
    network = AsppSegmenter(TinyBackbone(), 4, (1,))
    stage = Output(tmp_path / name)
    stage.folder.mkdir()
    made = Aspp(config, "tiny", 3)
    metrics = Metrics(tmp_path / f"{name}.csv", "segment")
    training.train_segmenter(made, network, data.subset("all"), read, stage, metrics, 0, {}, "cpu")
    return network.eval()


@torch.no_grad()
def chances(network: nn.Module, record: Record) -> torch.Tensor:
    """``[L,H,W]``."""
    pixels = read_image(record.image)
    logits = network(Views((1.0,)).make(pixels, 1.0)[None])
    return nn.functional.interpolate(logits, pixels.shape[:2], mode="bilinear").softmax(1)[0]


def on_objects(network: nn.Module, data: Any) -> float:
    """Mean probability of the true class on the pixels of objects."""
    values = []
    for record in data.subset("all"):
        mask = torch.from_numpy(data.read_mask(record)).long()
        values.append(chances(network, record).gather(0, mask[None])[0][mask > 0])
    return float(torch.cat(values).mean())


def half_missing(record: Record, data: Any) -> np.ndarray:
    """The true mask, but every third object is background."""
    mask = data.read_mask(record)
    return np.zeros_like(mask) if int(record.id[1:]) % 3 == 0 else mask


def test_a_teacher_finds_objects_that_a_third_of_the_masks_miss(tmp_path):
    data = pictures(tmp_path / "data", count=12, classes=1)
    read = partial(half_missing, data=data)
    plain = trained(tmp_path, data, read, "plain", 80)
    knobs: dict[str, Any] = {"ema": 0.9, "teacher_confidence": 0.5, "teacher_after": 0.5}
    replaced = trained(tmp_path, data, read, "replaced", 80, teacher="replace", **knobs)
    ignored = trained(tmp_path, data, read, "ignored", 80, teacher="weigh", **knobs)
    assert on_objects(replaced, data) > on_objects(plain, data) + 0.15
    assert on_objects(ignored, data) > on_objects(plain, data) + 0.1
    changed = right = 0
    for record in data.subset("all"):
        given, true = (
            torch.from_numpy(mask)[None] for mask in (read(record), data.read_mask(record))
        )
        possible = torch.tensor([[True, True, False, False]])
        labels, _ = heard(given, chances(replaced, record).log()[None], possible, CONFIG)
        changed += int((labels != given).sum())
        right += int(((labels != given) & (labels == true)).sum())
    assert changed > 500
    assert right / changed > 0.8


def test_balanced_classes_find_more_of_rare_objects(tmp_path):
    data = pictures(tmp_path / "data", count=6, classes=1)

    def rare(record: Record) -> np.ndarray:
        """The object in one picture of six only, so that background is almost all there is."""
        mask = data.read_mask(record)
        return mask if record.id == "p1" else np.zeros_like(mask)

    plain = on_objects(trained(tmp_path, data, rare, "plain"), data)
    balanced = on_objects(trained(tmp_path, data, rare, "balanced", balanced=True), data)
    assert balanced > plain + 0.2


def test_open_pixels_teach_nothing(tmp_path):
    """Objects are wrong in every mask, but left open: only then is background alone learnt, and no
    wrong class.
    """
    data = pictures(tmp_path / "data", count=6, classes=2)

    def wrong(record: Record, open_: bool) -> np.ndarray:
        mask = data.read_mask(record)
        return np.where(mask > 0, 255 if open_ else 3, mask).astype(np.uint8)

    def of_class_3(network: nn.Module) -> float:
        objects = [
            chances(network, r)[3][torch.from_numpy(data.read_mask(r)) > 0]
            for r in data.subset("all")
        ]
        return float(torch.cat(objects).mean())

    assert of_class_3(trained(tmp_path, data, partial(wrong, open_=False), "wrong")) > 0.5
    assert of_class_3(trained(tmp_path, data, partial(wrong, open_=True), "open")) < 0.3

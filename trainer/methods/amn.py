"""Class activation maps of a network that segments, from sure labels of a classifier's maps, and
that is kept from being too sure.

Lee et al., "Threshold Matters in WSSS: Manipulating the Activation for the Robust and Accurate
Segmentation Model Against Thresholds", CVPR 2022 ("AMN").

1. The first training is ``cam``. Its maps of the training images, above a high background score and
  below a low one and after a dense CRF, give IRNet's labels l: background, a class, or open.
2. The second training learns them. With f the backbone's features and Y the tags,

    z = ASPP(f * (V Y)),   L = soft margin(W pool(f), Y) + (CE_background + CE_classes) / 2

The targets of the cross-entropies, means over pixels of either kind, are smoothed: 1 - e at l and
e / K at the K other labels (e = 0.4). V Y tells the network which classes to look for.

Maps: M = softmax(z) without the background, with scores of the classifier for Y.

Deviations: the published network has no classifier and gets the true tags when it makes maps; here
a served image has scores too, and takes its tags from them. Maps are merged after the softmax, and
set between their minimum and maximum everywhere. The second training goes on from the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from trainer.config import Range
from trainer.data.dataset import IGNORE, Record, read_index_png
from trainer.data.loader import Batch
from trainer.data.pixels import image_size
from trainer.errors import ConfigError
from trainer.methods.base import at_least_float32, full_precision
from trainer.methods.declaration import Declaration
from trainer.methods.inputs import Input
from trainer.methods.linear import LinearCam
from trainer.methods.preparation import Preparation, Prepared, Workshop
from trainer.methods.recipes import ClassifyConfig
from trainer.methods.second_training import (
    FIRST,
    SecondConfig,
    continued_groups,
    first_training,
    shortened,
)
from trainer.methods.tag_loss import EPS, present, tag_loss
from trainer.nets.aspp import Aspp
from trainer.nets.backbone import Backbone
from trainer.run import Output
from trainer.training.collectives import process_mean

PROTOCOL = "seam"
"""Its maps lie between their own minimum and maximum, as AMN's do."""
PRESETS: dict[str, dict[str, Any]] = {"code": {}}
SMALL: dict[str, Any] = {"second_lr": 0.05}
"""Changes for small networks and short trainings, which no paper has."""
LABELS = "labels"
"""The stage of the labels, and the folder in it that has them."""
RATES = (6, 12, 18, 24)
NEW_FACTOR = 20.0
"""Published rates: 5e-6 for the backbone, 1e-4 for the new layers."""


@dataclass(frozen=True)
class Config(SecondConfig):
    """Knobs of ``amn``, besides those of ``SecondConfig``.

    Attributes:
        smoothing: share of the target that goes to the other labels.
        foreground: background score in the search for sure pixels of a class.
        background: background score in the search for sure background.
        tag_dropout: dropout of the features that know the tags.
    """

    second_lr: Annotated[float, Range(0, 100, above=True)] = 5e-5
    smoothing: Annotated[float, Range(0, 1, below=True)] = 0.4
    foreground: Annotated[float, Range(0, 1, below=True)] = 0.30
    background: Annotated[float, Range(0, 1, below=True)] = 0.05
    tag_dropout: Annotated[float, Range(0, 1, below=True)] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.background > self.foreground:
            raise ConfigError(
                f"method.background={self.background} foreground={self.foreground}",
                "background is the smaller one",
            )


class Amn(LinearCam):
    """``Cam`` with layers that segment, or ``Cam`` itself in the first training."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        channels = self.classifier.in_channels
        self.segmenter: nn.ModuleDict | None = None
        if config.second:
            self.segmenter = nn.ModuleDict(
                {
                    "tags": nn.Linear(num_classes, channels),
                    "aspp": Aspp(channels, num_classes + 1, RATES),
                }
            )

    def cams_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Method``."""
        if self.segmenter is None:
            return super().cams_and_logits(images)
        f = self.features(images)
        logits = self.logits_of_maps(f, self.classifier(f))
        return self.label_logits(f, logits.sigmoid()).softmax(1)[:, 1:], logits

    def label_logits(self, f_BChw: torch.Tensor, tags_BK: torch.Tensor) -> torch.Tensor:
        """Logits ``[B,K+1,h,w]`` of the labels, background first."""
        assert self.segmenter is not None
        wanted = self.segmenter["tags"](tags_BK)[:, :, None, None]
        x = F.dropout(f_BChw * wanted, self.config.tag_dropout, self.training)
        logits: torch.Tensor = self.segmenter["aspp"](x)
        return logits

    def continue_from(self, state: Mapping[str, torch.Tensor]) -> None:
        """All weights but those of the new layers, which start anew."""
        self.load_state_dict(state, strict=False)

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Soft margin loss of the image: ``cls``, and cross-entropy of its labels: ``label``.

        ``batch["label"]`` is int64 ``[B,H,W]``, see ``as_target``.
        """
        if self.segmenter is None:
            return super().loss(batch, rng)
        tags, f = batch["tags"], self.features(batch["image"])
        terms = {"cls": tag_loss(at_least_float32(self.logits(f)), tags)}
        with full_precision(f.device.type):
            known = present(at_least_float32(tags))
            logits = self.label_logits(at_least_float32(f), known)
        plane = batch["label"][:, None].float()
        label = F.interpolate(plane, logits.shape[2:], mode="nearest")[:, 0].long()
        return {**terms, "label": label_loss(logits, label, self.config.smoothing)}

    def param_groups(
        self, lr: float, weight_decay: float, new_factor: float = 10.0
    ) -> list[dict[str, Any]]:
        """See ``Method``. In the second training, only the layers that segment are new."""
        if self.segmenter is None:
            return super().param_groups(lr, weight_decay, new_factor)
        return continued_groups(self, self.segmenter, lr, weight_decay, new_factor)


def label_loss(
    logits_BLhw: torch.Tensor, label_Bhw: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Cross-entropy with smoothed targets: half its mean over the background, and half that over
    the pixels of classes. A half without a pixel is 0.

    Args:
        logits_BLhw: of L labels, background first.
        label_Bhw: the label + 1; 0 is open and in neither mean.
        smoothing: share of the target that the L - 1 other labels have together.
    """
    log_p = logits_BLhw.log_softmax(1)
    own = log_p.gather(1, (label_Bhw - 1).clamp(min=0)[:, None])[:, 0]
    others = (log_p.sum(1) - own) / (logits_BLhw.shape[1] - 1)
    losses = -((1 - smoothing) * own + smoothing * others)
    ground, objects = (
        (losses * mask).sum() / process_mean(mask.sum()).clamp(min=EPS)
        for mask in (label_Bhw == 1, label_Bhw > 1)
    )
    return (ground + objects) / 2


def preparations(config: Config) -> list[Preparation]:
    """The first training and its labels."""
    if not config.second:
        return []
    knobs = {"foreground": config.foreground, "background": config.background}
    return [*first_training(config), Preparation(LABELS, knobs, False, _make_labels, maps=True)]


def prepared(config: Config, run: Path) -> Prepared:
    """The second training, from the weights of the first and with its labels."""
    folder = run / LABELS / LABELS
    inputs = {
        "label": Input(partial(read_label, folder=folder), follows_image=True, finish=as_target)
    }
    return Prepared(config, inputs, FIRST, partial(gentle, config))


def gentle(config: Config, classify: ClassifyConfig) -> ClassifyConfig:
    """Knobs of the second training: Adam, and rates further apart."""
    optimizer = "adam" if classify.optimizer == "sgd" else classify.optimizer
    return replace(shortened(config, classify), optimizer=optimizer, new_factor=NEW_FACTOR)


def read_label(record: Record, folder: Path) -> npt.NDArray[np.uint16]:
    """The label of each pixel + 1, 0 where it is open, ``uint16 [H,W]``."""
    if record.tags:
        label = read_index_png(folder / f"{record.id}.png").astype(np.uint16)
    else:
        label = np.zeros(image_size(record.image), np.uint16)
    if record.unknown:
        # What no map shows may be a class of which nobody said whether it is there.
        label[label == 0] = IGNORE
    return np.where(label == IGNORE, 0, label + 1).astype(np.uint16)


def as_target(plane_HW: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The plane in a type that torch counts with."""
    return plane_HW.astype(np.int64)


def _make_labels(shop: Workshop, stage: Output) -> None:
    start = Prepared(replace(shop.config, second=False), weights_from=FIRST)
    shop.label(shop.build(start), stage, shop.config.foreground, shop.config.background)


METHOD = Declaration(
    Amn,
    Config,
    presets=PRESETS,
    training={"irn": {"detach_after": "none"}},
    small=SMALL,
    protocol=PROTOCOL,
    preparations=preparations,
    prepared=prepared,
)

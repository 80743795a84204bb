"""Class activation maps of a multi-label classifier: the baseline of every method.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2, in the two
forms that the weakly-supervised papers start from: ResNet-38 (Ahn and Kwak, CVPR 2018, "psa") and
ResNet-50 (Ahn et al., CVPR 2019, "irn"). The contrast of segments is that of Kweon and Yoon, CVPR
2024 ("S2C").

Network, maps and the loss ``cls`` are those of ``linear``. With ``contrast``, a second loss pulls
the features of each segment together and those of different segments apart, see ``contrast``.

Deviations: ``adapt_conv`` follows the text of the SC-CAM and Mixup-CAM papers. Their released code
has no such layer, and neither have we by default. S2C takes its segments from SAM; here the user
brings them, or they are super-pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from trainer.config import Range
from trainer.data.loader import Batch
from trainer.data.superpixels import MAX_SUPERPIXELS
from trainer.methods.base import at_least_float32, full_precision
from trainer.methods.contrast import (
    SUPERPIXELS,
    WIDTH,
    check_folder,
    contrast_loss,
    segment_stage,
    with_segments,
)
from trainer.methods.declaration import Declaration
from trainer.methods.linear import LinearCam, LinearConfig
from trainer.methods.preparation import Preparation, Prepared
from trainer.methods.tag_loss import tag_loss
from trainer.nets.backbone import Backbone

PRESETS: dict[str, dict[str, Any]] = {"code": {}, "paper": {"method.adapt_conv": 512}}


@dataclass(frozen=True)
class Config(LinearConfig):
    """Knobs of ``cam``, besides those of ``LinearConfig``.

    Attributes:
        contrast: weight of the contrast of segments beside the loss of the tags, 1 in S2C; 0 is
            off.
        segments: the segments: ``superpixels`` of the image, or a folder with a label PNG or a JSON
            of COCO run lengths for each training image.
        superpixels: how many of them to make in an image.
        loss_stride: pixels of the training view for one cell of the compared features, 1 in S2C.
    """

    later: ClassVar[Mapping[str, Any]] = {
        "contrast": 0.0,
        "segments": SUPERPIXELS,
        "superpixels": 200,
        "loss_stride": 4,
    }

    contrast: Annotated[float, Range(0, 1000)] = 0.0
    segments: str = SUPERPIXELS
    superpixels: Annotated[int, Range(2, MAX_SUPERPIXELS)] = 200
    loss_stride: Annotated[int, Range(1, 64)] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder(self.segments)


class Cam(LinearCam):
    """Classifier with a linear head, and with a head for the contrast of segments if that is on."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        self.embedding = None
        if config.contrast:
            self.embedding = nn.Conv2d(self.classifier.in_channels, WIDTH, 1, bias=False)

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """``cls``: multi-label soft margin loss; ``contrast``: see ``contrast_loss``.

        ``batch["segments"]`` are ids, int64 ``[B,H,W]``, 0 outside of all segments.
        """
        if self.embedding is None:
            return super().loss(batch, rng)
        f = self.features(batch["image"])
        stride, (height, width) = self.config.loss_stride, batch["image"].shape[2:]
        size = (-(-height // stride), -(-width // stride))
        with full_precision(f.device.type):
            small = self.embedding(at_least_float32(f))
            e = F.interpolate(small, size, mode="bilinear", align_corners=False)
            ids = F.interpolate(batch["segments"][:, None].float(), size)[:, 0].long()
            contrast = self.config.contrast * contrast_loss(e, ids)
        cls = tag_loss(at_least_float32(self.logits(f)), batch["tags"])
        return {"cls": cls, "contrast": contrast}


def preparations(config: Config) -> list[Preparation]:
    """The segments, where they are contrasted."""
    return [segment_stage(config.segments, config.superpixels)] if config.contrast else []


def prepared(config: Config, run: Path) -> Prepared:
    """The training with the segments."""
    return Prepared(config, with_segments(run))


METHOD = Declaration(Cam, Config, presets=PRESETS, preparations=preparations, prepared=prepared)

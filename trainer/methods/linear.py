"""A multi-label classifier with a linear head, whose weights also make the maps: ``cam``, and the
base of the methods that add to it.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2. Pooling
heads: Ru et al., IJCAI 2021 ("VWE").

Training: f are the backbone's features, y = W pool(f), L is the multi-label soft margin loss. Maps:
M = ReLU(W f).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from trainer.config import Range
from trainer.data.loader import Batch
from trainer.methods.base import Method, at_least_float32
from trainer.methods.pooling import OF_MAPS, PoolingConfig, gap, pooled_logits
from trainer.methods.tag_loss import tag_loss
from trainer.nets.backbone import Backbone

RARE = -2.0
"""Logit that a class starts from where maps are pooled: one image in eight shows it."""


@dataclass(frozen=True)
class LinearConfig(PoolingConfig):
    """Knobs of a linear head, besides those of ``PoolingConfig``.

    Attributes:
        dropout: channel dropout before pooling; ``auto`` is 0.5 on ResNet-38 and 0 elsewhere, as
            published.
        adapt_conv: channels of an extra 3x3 convolution and ReLU before pooling; 0 is none, as
            released.
    """

    dropout: Annotated[float | Literal["auto"], Range(0, 1, below=True)] = "auto"
    adapt_conv: Annotated[int, Range(0, 8192)] = 0


class LinearCam(Method):
    """Classifier with a linear head, whose weights also make the maps. It has no bias, except for
    poolings of the maps.
    """

    config: LinearConfig
    released = MappingProxyType({"classifier.weight": ("fc8.weight", "newly_added.0.weight")})

    def __init__(self, config: LinearConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        channels = self.backbone.channels[self.backbone.top]
        self.adapt = (
            nn.Conv2d(channels, config.adapt_conv, 3, padding=1, bias=False)
            if config.adapt_conv
            else None
        )
        rate = self.backbone.traits.dropout if config.dropout == "auto" else config.dropout
        self.dropout = nn.Dropout2d(rate)
        self.classifier = self.new_head(config.adapt_conv or channels, num_classes)

    def new_head(self, channels: int, outputs: int) -> nn.Conv2d:
        """A linear head on the pooled features, Xavier on ResNet-38, as released.

        All heads of a method start alike: one that starts larger than the others outweighs them.
        """
        if self.config.pooling in OF_MAPS:
            # Most images show no class, and a map without an offset has about as many cells above 0
            # as below: its log-sum-exp could never be clearly negative.
            head = nn.Conv2d(channels, outputs, 1)
            nn.init.normal_(head.weight, std=0.01)
            nn.init.constant_(head.get_parameter("bias"), RARE)
            return head
        head = nn.Conv2d(channels, outputs, 1, bias=False)
        if self.backbone.traits.head == "xavier":
            nn.init.xavier_uniform_(head.weight)
        return head

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Deepest features ``[B,C,h,w]``."""
        f: torch.Tensor = self.backbone(images)[self.backbone.top]
        return f if self.adapt is None else F.relu(self.adapt(f))

    def logits(self, f: torch.Tensor) -> torch.Tensor:
        """Image logits ``[B,K]`` of features ``[B,C,h,w]``."""
        return pooled_logits(self.config, self.dropout(f), self.classifier)

    def cams_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Method``. With ``hspp``, logits come from average pooling: its pyramid fails on
        maps smaller than 4x4.
        """
        f = self.features(images)
        maps: torch.Tensor = self.classifier(f)
        return F.relu(maps), self.logits_of_maps(f, maps)

    def logits_of_maps(self, f: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """Image logits ``[B,K]`` of features whose class maps ``[B,K,h,w]`` are there already."""
        # The average commutes with the linear head; the maximum does not, and must come first.
        if self.config.pooling in ("gap", "hspp"):
            return gap(maps)
        return pooled_logits(self.config, f, self.classifier)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Image logits ``[B,K]``."""
        return self.logits(self.features(images))

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """``cls``: multi-label soft margin loss."""
        return {"cls": tag_loss(at_least_float32(self(batch["image"])), batch["tags"])}

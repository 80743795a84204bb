"""Finer features: several depths of a backbone joined at 8 pixels a cell.

Hariharan et al., "Hypercolumns for Object Segmentation and Fine-grained Localization", CVPR 2015.
The deepest features of a network know the most about objects of photographs. A scratch of ten
pixels is gone there, and shows in the features before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainer.errors import ConfigError
from trainer.nets.backbone import Backbone
from trainer.nets.resampling import resize_bilinear

STRIDE = 8
"""Input pixels a cell of the joined features."""
WIDTH = 128
"""Channels of the joined features."""


class Detailed(Backbone):
    """A backbone whose deepest feature, ``detail``, joins all of another one from stride 8 on.

    Each feature is normalised over the batch, since depths differ in scale and images may be unlike
    those that the weights were trained on, and resized to the finest. A 1x1 convolution joins them.

    Args:
        network: a backbone with a feature of stride 8, on trained weights or not.

    Raises:
        ConfigError: it has no such feature.
    """

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.levels = [name for name, stride in network.strides.items() if stride >= STRIDE]
        if not self.levels or network.strides[self.levels[0]] != STRIDE:
            raise ConfigError(
                f"detail=fine needs a feature of stride {STRIDE}; this network has"
                f" {', '.join(map(str, network.strides.values()))}",
                "a network such as efficientnet_lite0, resnet50 or mobilenet_v2",
                "--detail coarse",
            )
        self.network, self.traits = network, network.traits
        self.channels = {**network.channels, "detail": WIDTH}
        self.strides = {**network.strides, "detail": STRIDE}
        self.top = "detail"
        self.depths = (*network.depths, network.top)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(network.channels[name], affine=False) for name in self.levels
        )
        joined = sum(network.channels[name] for name in self.levels)
        self.join = nn.Conv2d(joined, WIDTH, 1)
        nn.init.kaiming_normal_(self.join.weight, nonlinearity="relu")
        nn.init.zeros_(self.join.get_parameter("bias"))

    @property
    def pretrained(self) -> Backbone:
        """See ``Backbone``."""
        return self.network

    def forward(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        """See ``Backbone``."""
        features: dict[str, Tensor] = self.network(x_B3HW)
        levels = [norm(features[name]) for name, norm in zip(self.levels, self.norms)]
        size = levels[0].shape[2:]
        same = [levels[0], *(resize_bilinear(level, size) for level in levels[1:])]
        return {**features, "detail": F.relu(self.join(torch.cat(same, 1)))}

    def freeze(self) -> None:
        """See ``Backbone``; the joining layers always train."""
        self.network.freeze()

    def hook(self, depth: str, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """See ``Backbone``."""
        return self.network.hook(depth, change)

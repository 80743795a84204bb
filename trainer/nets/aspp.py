"""DeepLab-v2's head: parallel dilated convolutions (ASPP), and the generic segmenter with it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from trainer.nets.backbone import Backbone


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling of DeepLab-v2: parallel dilated 3x3 convolutions, summed.

    Chen et al., TPAMI 2018. No batch norm, ReLU or concatenation. Weights
    N(0, 0.01), bias 0. State-dict names ``c0`` .. ``c{n-1}``.

    Args:
        channels: input channels.
        num_classes: output channels.
        rates: dilation (= padding) of each branch.
    """

    def __init__(self, channels: int, num_classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        for i, rate in enumerate(rates):
            conv = nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate)
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.add_module(f"c{i}", conv)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """``[B, C, h, w]`` -> ``[B, num_classes, h, w]``."""
        first, *others = self.children()
        logits: Tensor = first(x_BChw)
        for branch in others:
            logits = logits + branch(x_BChw)
        return logits


class AsppSegmenter(nn.Module):
    """DeepLab-v2's head on any backbone.

    Args:
        backbone: its deepest feature is classified.
        num_classes_with_background: K + 1; channel 0 is background.
        rates: dilations of the ASPP branches; (6, 12, 18, 24) were chosen at output stride 8.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes_with_background: int,
        rates: Sequence[int] = (6, 12, 18, 24),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.aspp = Aspp(backbone.channels[backbone.top], num_classes_with_background, rates)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Normalised RGB ``[B, 3, H, W]`` -> logits ``[B, K + 1, h, w]`` at the backbone's
        stride.
        """
        features = self.backbone(images_B3HW)
        logits: Tensor = self.aspp(features[self.backbone.top])
        return logits

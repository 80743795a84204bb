"""DeepLab-LargeFOV on ResNet-38, the segmenter of SEAM and CPN.

Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs",
ICLR 2015, on the network of Wu et al. 2016, as in SEAM's segmentation code base. Shapes: B images,
K classes with the background, H W image.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import ConfigError, nearest
from trainer.nets.backbone import batch_norms, fix, fix_batch_norms
from trainer.nets.folding import fold_batch_norms
from trainer.nets.resnet38 import ResNet38, thinner

BatchNormMode = Literal["batch", "frozen"]

WIDTH = 512
RATE = 12
BN_MOMENTUM = 3e-4


class FreeResNet38(ResNet38):
    """ResNet-38 whose convolutions all train and whose batch norms follow the mode; only their
    affine is fixed.
    """

    def freeze(self) -> None:
        """Take the gradient from the affine of every batch norm."""
        fix(batch_norms([self]))


class LargeFOVResNet38(nn.Module):
    """Large field of view: one 3x3 convolution of dilation 12 on ResNet-38, and two 1x1 ones.

    Forward takes ``[B,3,H,W]`` RGB normalised by ImageNet's mean and deviation and returns logits
    ``[B,K,H,W]`` at the size of the input (bilinear, corners aligned), in both modes.

    The released trainer never calls ``train()``, where its batch norms would have
    been frozen, and so trained with batch statistics by accident, nothing frozen but the affine of
    batch norm, which no optimiser had. That is ``bn="batch"``; the papers do not say.

    Args:
        num_classes: K, with the background.
        bn: batch norms of the backbone in train mode: ``batch`` statistics as released (running
            ones move by 3e-4 an update), or ``frozen``. Those of the head are new and use batch
            statistics either way.
        width: share of the published channels.

    Raises:
        ConfigError: another ``bn``.
    """

    def __init__(self, num_classes: int, bn: BatchNormMode = "batch", width: float = 1.0) -> None:
        super().__init__()
        if bn not in get_args(BatchNormMode):
            raise ConfigError(
                f"batch norm mode {bn!r} for LargeFOV", nearest(bn, get_args(BatchNormMode))
            )
        self.bn = bn
        self.backbone = FreeResNet38(width=width)
        channels = self.backbone.channels[self.backbone.top]
        wide = thinner(WIDTH, width)
        self.conv_fov = nn.Conv2d(channels, wide, 3, padding=RATE, dilation=RATE, bias=False)
        self.bn_fov = nn.BatchNorm2d(wide)
        self.conv_fov2 = nn.Conv2d(wide, wide, 1, bias=False)
        self.bn_fov2 = nn.BatchNorm2d(wide)
        self.dropout = nn.Dropout(0.5)
        self.cls_conv = nn.Conv2d(wide, num_classes, 1)
        for conv in (self.conv_fov, self.conv_fov2, self.cls_conv):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.cls_conv.bias)  # type: ignore[arg-type]
        for norm in batch_norms([self]):
            norm.momentum = BN_MOMENTUM
        fix(batch_norms([self]))
        fold_batch_norms(self)
        # Freezes the batch norms that ``bn`` names.
        self.train()

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """See the class."""
        x = self.backbone(images_B3HW)[self.backbone.top]
        x = self.bn_fov(self.conv_fov(x)).relu_()
        x = self.bn_fov2(self.conv_fov2(x)).relu_()
        logits = self.cls_conv(self.dropout(x))
        return F.interpolate(logits, images_B3HW.shape[2:], mode="bilinear", align_corners=True)

    def train(self, mode: bool = True) -> LargeFOVResNet38:
        """As ``nn.Module.train``, but frozen batch norms stay frozen."""
        super().train(mode)
        if self.bn == "frozen":
            fix_batch_norms([self.backbone])
        return self

    def param_groups(
        self, lr: float = 1e-3, weight_decay: float = 5e-4, new_factor: float = 10.0
    ) -> list[dict[str, Any]]:
        """Optimiser groups: backbone x1, weights of the head x10, the classifier's bias
        x20 without decay.
        """
        head = [self.conv_fov.weight, self.conv_fov2.weight, self.cls_conv.weight]
        parts = (
            (
                "backbone",
                [p for p in self.backbone.parameters() if p.requires_grad],
                1,
                weight_decay,
            ),
            ("head weights", head, new_factor, weight_decay),
            ("head bias", [self.cls_conv.bias], 2 * new_factor, 0.0),
        )
        return [
            {"name": n, "params": ps, "lr": lr * factor, "weight_decay": wd}
            for n, ps, factor, wd in parts
        ]

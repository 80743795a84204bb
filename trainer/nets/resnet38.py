"""ResNet-38 ("38d", Wu et al. 2016) as AffinityNet and its successors use it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainer.errors import ConfigError
from trainer.nets.backbone import Backbone, Traits, fix, fix_batch_norms
from trainer.nets.folding import fold_batch_norms


class BasicBlock(nn.Module):
    """Pre-activation block of two 3x3 convolutions.

    The short cut is the input when sizes agree, else a 1x1 convolution of the *activated* input.

    Args:
        channels_in: input channels.
        channels_mid: channels between the two convolutions.
        channels_out: output channels.
        stride: of the first convolution and the short cut.
        first_dilation: of the first convolution.
        dilation: of the second convolution.
    """

    def __init__(
        self,
        channels_in: int,
        channels_mid: int,
        channels_out: int,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(channels_in)
        self.conv_branch2a = _conv3x3(channels_in, channels_mid, first_dilation, stride)
        self.bn_branch2b1 = nn.BatchNorm2d(channels_mid)
        self.conv_branch2b1 = _conv3x3(channels_mid, channels_out, dilation)
        self.conv_branch1: nn.Conv2d | None = None
        if channels_in != channels_out or stride != 1:
            self.conv_branch1 = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def activate(self, x_BChw: Tensor) -> Tensor:
        """ReLU(BN(x)): the activated input, which ResNet-38 also gives out as a feature."""
        return _bn_relu(self.bn_branch2a, x_BChw)

    def after_activation(self, x_BChw: Tensor, active_BChw: Tensor) -> Tensor:
        """The block's output from its input and its activated input."""
        # The published weights expect the convolution on the activated input, not on x.
        shortcut = x_BChw if self.conv_branch1 is None else self.conv_branch1(active_BChw)
        main = _bn_relu(self.bn_branch2b1, self.conv_branch2a(active_BChw))
        return torch.add(shortcut, self.conv_branch2b1(main))

    def forward(self, x_BChw: Tensor) -> Tensor:
        """``[B, in, h, w]`` -> ``[B, out, ceil(h / stride), ceil(w / stride)]``."""
        return self.after_activation(x_BChw, self.activate(x_BChw))


class Bottleneck(nn.Module):
    """Pre-activation block 1x1, dilated 3x3, 1x1 with channel dropout.

    Args:
        channels_in: input channels.
        channels_out: output channels; a quarter and a half of it lie between the convolutions.
        dilation: of the 3x3 convolution.
        dropout: share of whole feature maps that is dropped, twice, in train mode.
    """

    def __init__(
        self, channels_in: int, channels_out: int, dilation: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        quarter, half = channels_out // 4, channels_out // 2
        self.bn_branch2a = nn.BatchNorm2d(channels_in)
        self.conv_branch2a = nn.Conv2d(channels_in, quarter, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = _conv3x3(quarter, half, dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(half, channels_out, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def activate(self, x_BChw: Tensor) -> Tensor:
        """ReLU(BN(x)): the activated input, which ResNet-38 also gives out as a feature."""
        return _bn_relu(self.bn_branch2a, x_BChw)

    def after_activation(self, active_BChw: Tensor) -> Tensor:
        """The block's output from its activated input."""
        main = self.dropout_2b1(_bn_relu(self.bn_branch2b1, self.conv_branch2a(active_BChw)))
        main = self.dropout_2b2(_bn_relu(self.bn_branch2b2, self.conv_branch2b1(main)))
        return torch.add(self.conv_branch1(active_BChw), self.conv_branch2b2(main))

    def forward(self, x_BChw: Tensor) -> Tensor:
        """``[B, in, h, w]`` -> ``[B, out, h, w]``."""
        return self.after_activation(self.activate(x_BChw))


class ResNet38(Backbone):
    """The 38-layer wide residual network, output stride 8, bias-free, without its head.

    ``forward`` takes ``[B, 3, H, W]`` normalised RGB and returns ``conv4`` (512 channels: activated
    input of ``b5``), ``conv5`` (1024: of ``b6``) and ``conv6`` (4096: ReLU(``bn7``)), each
    ``[ceil(H / 8), ceil(W / 8)]``.

    In every mode all batch norms are fixed with their affine, and ``conv1a``, ``b2``, ``b2_1``,
    ``b2_2`` are frozen. Channel dropout 0.3 and 0.5 in ``b6`` and ``b7`` works
    in train mode.

    Args:
        output_stride: 8.
        bn: ``frozen``.
        width: share of the published channels, to try things out.

    Raises:
        ConfigError: another output stride or batch norm mode.
    """

    traits = Traits(
        recipe="psa",
        knobs=(),
        head="xavier",
        dropout=0.5,
        file="ilsvrc-cls_rna-a1_cls1000_ep-0001.params",
    )
    depths = ("b2_2", "b3_2", "b4_5", "b5_2", "b6")

    def __init__(self, output_stride: int = 8, bn: str = "frozen", width: float = 1.0) -> None:
        super().__init__()
        if output_stride != 8:
            raise ConfigError(
                f"output stride {output_stride} for resnet38", "8, the only one that it has"
            )
        if bn != "frozen":
            raise ConfigError(
                f"batch norm mode {bn!r} for resnet38", "'frozen', the only one that it has"
            )
        c64, c128, c256, c512, c1024, c2048, c4096 = (thinner(64 << i, width) for i in range(7))
        self.channels = {"conv4": c512, "conv5": c1024, "conv6": c4096}
        self.strides = dict.fromkeys(self.channels, 8)
        self.top = "conv6"
        self.conv1a = _conv3x3(3, c64)
        self.b2 = BasicBlock(c64, c128, c128, stride=2)
        self.b2_1, self.b2_2 = (BasicBlock(c128, c128, c128) for _ in range(2))
        self.b3 = BasicBlock(c128, c256, c256, stride=2)
        self.b3_1, self.b3_2 = (BasicBlock(c256, c256, c256) for _ in range(2))
        self.b4 = BasicBlock(c256, c512, c512, stride=2)
        self.b4_1, self.b4_2, self.b4_3, self.b4_4, self.b4_5 = (
            BasicBlock(c512, c512, c512) for _ in range(5)
        )
        self.b5 = BasicBlock(c512, c512, c1024, first_dilation=1, dilation=2)
        self.b5_1, self.b5_2 = (
            BasicBlock(c1024, c512, c1024, first_dilation=2, dilation=2) for _ in range(2)
        )
        self.b6 = Bottleneck(c1024, c2048, dilation=4, dropout=0.3)
        self.b7 = Bottleneck(c2048, c4096, dilation=4, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(c4096)
        fold_batch_norms(self)
        self.freeze()

    def forward(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        """Features ``conv4``, ``conv5``, ``conv6`` of normalised RGB images."""
        x = self.b2_2(self.b2_1(self.b2(self.conv1a(x_B3HW))))
        x = self.b3_2(self.b3_1(self.b3(x)))
        for block in (self.b4, self.b4_1, self.b4_2, self.b4_3, self.b4_4, self.b4_5):
            x = block(x)
        conv4 = self.b5.activate(x)
        x = self.b5_2(self.b5_1(self.b5.after_activation(x, conv4)))
        conv5 = self.b6.activate(x)
        x = self.b7(self.b6.after_activation(conv5))
        return {"conv4": conv4, "conv5": conv5, "conv6": _bn_relu(self.bn7, x)}

    def hook(self, depth: str, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """See ``Backbone``."""
        if depth != "b6":
            return super().hook(depth, change)
        # ``forward`` calls the two halves of b6, not b6: its output shows as the input of b7 only.
        return self.b7.register_forward_pre_hook(lambda _, x: (change(x[0]),))

    def freeze(self) -> None:
        """See ``Backbone.freeze``: all batch norms, and everything before ``b3``."""
        fix_batch_norms([self])
        # psa's choice, which its successors share.
        fix([self.conv1a, self.b2, self.b2_1, self.b2_2])


def thinner(channels: int, width: float) -> int:
    """The share ``width`` of a number of channels, a multiple of 16.

    Not fewer: the backward pass of a channels-last 1x1 convolution of stride 2 with less than 16
    inputs writes over foreign memory (torch 2.15, oneDNN, CPU).
    """
    return max(16, int(channels * width) // 16 * 16)


def _conv3x3(channels_in: int, channels_out: int, dilation: int = 1, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        channels_in, channels_out, 3, stride, padding=dilation, dilation=dilation, bias=False
    )


def _bn_relu(bn: nn.BatchNorm2d, x_BChw: Tensor) -> Tensor:
    # In place is safe: batch norm keeps its input for the backward pass, not its output.
    return torch.relu_(bn(x_BChw))

"""DeepLab-v2 on the Caffe ResNet-101 at three scales, the segmenter of most papers here.

Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution,
and Fully Connected CRFs", TPAMI 2018; released state-dict names of deeplab-pytorch. Shapes: B
images, K classes with the background, H W image, h w its logits of 8 pixels a cell.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.transforms import CAFFE_PIXELS, IMAGENET_PIXELS, PixelScale
from trainer.errors import ConfigError, nearest
from trainer.nets.backbone import fix_batch_norms
from trainer.nets.folding import fold_batch_norms
from trainer.nets.resnet38 import thinner

StrideOn = Literal["1x1", "3x3"]
Input = Literal["caffe_bgr", "torchvision_rgb"]

# Layer: blocks, channels out, stride, dilation.
LAYERS = {
    "layer2": (3, 256, 1, 1),
    "layer3": (4, 512, 2, 1),
    "layer4": (23, 1024, 1, 2),
    "layer5": (3, 2048, 1, 4),
}
INPUTS: dict[Input, PixelScale] = {"caffe_bgr": CAFFE_PIXELS, "torchvision_rgb": IMAGENET_PIXELS}
OURS = "a DeepLab-v2 ResNet-101"


class Layout(NamedTuple):
    """What weights were made for: which convolution has the stride, and which pixels."""

    stride_on: StrideOn
    input: Input


CAFFE, TORCHVISION = Layout("1x1", "caffe_bgr"), Layout("3x3", "torchvision_rgb")


class ConvBn(nn.Module):
    """Convolution without bias, batch norm and, unless ``relu`` is off, ReLU. Padding keeps the
    size.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride, padding, dilation, bias=False
        )
        self.bn = nn.BatchNorm2d(channels_out)
        self.relu = relu

    def forward(self, x_BChw: Tensor) -> Tensor:
        """``[B, in, h, w]`` -> ``[B, out, ceil(h / stride), ceil(w / stride)]``."""
        x: Tensor = self.bn(self.conv(x_BChw))
        # In place is safe: neither layer needs its output for the backward pass.
        return torch.relu_(x) if self.relu else x


class CaffeBottleneck(nn.Module):
    """1x1, dilated 3x3, 1x1 and the short cut, which is a convolution in the first block of a
    layer.

    Args:
        channels_in: input channels.
        channels_out: output channels; a quarter of it lies between the convolutions.
        stride: of the block.
        dilation: of the 3x3 convolution.
        first: whether the short cut is a convolution.
        stride_on: the convolution with the stride: ``1x1``, the first, as in Caffe; ``3x3`` as in
        torchvision.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        dilation: int,
        first: bool,
        stride_on: StrideOn,
    ) -> None:
        super().__init__()
        quarter = channels_out // 4
        on_1x1, on_3x3 = (stride, 1) if stride_on == "1x1" else (1, stride)
        self.reduce = ConvBn(channels_in, quarter, 1, on_1x1)
        self.conv3x3 = ConvBn(quarter, quarter, 3, on_3x3, dilation)
        self.increase = ConvBn(quarter, channels_out, 1, relu=False)
        self.shortcut = (
            ConvBn(channels_in, channels_out, 1, stride, relu=False) if first else nn.Identity()
        )

    def forward(self, x_BChw: Tensor) -> Tensor:
        """``[B, in, h, w]`` -> ``[B, out, ceil(h / stride), ceil(w / stride)]``."""
        main: Tensor = self.increase(self.conv3x3(self.reduce(x_BChw)))
        return torch.relu_(torch.add(main, self.shortcut(x_BChw)))


class DeepLabV2(nn.Module):
    """DeepLab-v2 at one scale: ``[B,3,H,W]`` -> logits ``[B,K,h,w]``, stride 8 (321 -> 41, 500 ->
    63).

    Args:
        num_classes: K, with the background.
        rates: dilations of the ASPP; (3, 6, 9, 12) is the small variant.
        stride_on: see ``CaffeBottleneck``.
        width: share of the published channels.
    """

    def __init__(
        self, num_classes: int, rates: Sequence[int], stride_on: StrideOn, width: float = 1.0
    ) -> None:
        # Not at the top: that module offers this one's network under its own name too.
        from trainer.nets.aspp import Aspp

        super().__init__()
        # Caffe rounds sizes up where torch rounds them down.
        pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        channels = thinner(64, width)
        self.layer1 = nn.Sequential(OrderedDict(conv1=ConvBn(3, channels, 7, stride=2), pool=pool))
        for name, (blocks, outputs, stride, dilation) in LAYERS.items():
            layer = nn.Sequential()
            wide = thinner(outputs, width)
            for i in range(blocks):
                first = i == 0
                block = CaffeBottleneck(
                    channels, wide, stride if first else 1, dilation, first, stride_on
                )
                layer.add_module(f"block{i + 1}", block)
                channels = wide
            self.add_module(name, layer)
        self.aspp = Aspp(channels, num_classes, rates)
        fold_batch_norms(self)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Logits of normalised images."""
        x = images_B3HW
        for module in self.children():
            x = module(x)
        return x


class DeepLabV2ResNet101(nn.Module):
    """DeepLab-v2 at scales 1, 0.5 and 0.75 of its input, merged by the largest logit.

    Forward takes ``[B,3,H,W]`` in the scale of ``INPUTS[input]``. In train mode it returns four
    tensors: logits of scale 1, 0.5, 0.75 at their own sizes (321 -> 41, 21, 31) and the maximum at
    the first size; in eval mode the maximum only. Batch norms are fixed with their affine in every
    mode.

    Args:
        num_classes: K, with the background.
        rates: dilations of the ASPP.
        scales: the further scales; without any there is one tensor in train mode too, in a list.
        stride_on: ``1x1`` for Caffe's weights, ``3x3`` for torchvision's.
        input: the pixels that these weights want; goes with ``stride_on``.
        width: share of the published channels.

    Raises:
        ConfigError: an unknown ``stride_on`` or ``input``.
    """

    def __init__(
        self,
        num_classes: int,
        rates: Sequence[int] = (6, 12, 18, 24),
        scales: Sequence[float] = (0.5, 0.75),
        stride_on: StrideOn = "1x1",
        input: Input = "caffe_bgr",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if stride_on not in get_args(StrideOn):
            raise ConfigError(f"stride_on={stride_on!r}", nearest(stride_on, get_args(StrideOn)))
        if input not in INPUTS:
            raise ConfigError(f"input={input!r}", nearest(input, INPUTS))
        self.stride_on = stride_on
        self.input = input
        self.scales = tuple(scales)
        self.base = DeepLabV2(num_classes, rates, stride_on, width)
        fix_batch_norms([self])

    def forward(self, images_B3HW: Tensor) -> Tensor | list[Tensor]:
        """See the class."""
        logits = [self.base(images_B3HW)]
        if not self.scales:
            return logits if self.training else logits[0]
        for scale in self.scales:
            view = F.interpolate(
                images_B3HW, scale_factor=scale, mode="bilinear", align_corners=False
            )
            logits.append(self.base(view))
        size = logits[0].shape[2:]
        others = [
            F.interpolate(other, size, mode="bilinear", align_corners=False) for other in logits[1:]
        ]
        largest = torch.stack([logits[0], *others]).max(0).values
        return [*logits, largest] if self.training else largest

    def train(self, mode: bool = True) -> DeepLabV2ResNet101:
        """As ``nn.Module.train``, but batch norms stay fixed."""
        super().train(mode)
        fix_batch_norms([self])
        return self

    def param_groups(
        self, lr: float = 2.5e-4, weight_decay: float = 5e-4, new_factor: float = 10.0
    ) -> list[dict[str, Any]]:
        """Optimiser groups: backbone convolutions x1, ASPP weights x10, ASPP biases x20
        without decay.
        """
        parameters = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        head = [(name, p) for name, p in parameters if name.startswith("base.aspp.")]
        parts = (
            (
                "backbone",
                [p for name, p in parameters if not name.startswith("base.aspp.")],
                1,
                weight_decay,
            ),
            (
                "aspp weights",
                [p for name, p in head if name.endswith(".weight")],
                new_factor,
                weight_decay,
            ),
            ("aspp biases", [p for name, p in head if name.endswith(".bias")], 2 * new_factor, 0.0),
        )
        return [
            {"name": n, "params": ps, "lr": lr * factor, "weight_decay": wd}
            for n, ps, factor, wd in parts
        ]


def take_torchvision(network: DeepLabV2ResNet101, backbone: nn.Module) -> None:
    """Copy a ResNet-101 with torchvision's names, and without a head, into the network."""
    by_torchvision_names(network.base).load_state_dict(backbone.state_dict())


def by_torchvision_names(base: DeepLabV2) -> nn.Module:
    """The same layers under torchvision's names, without the ASPP; what is loaded into it is in
    ``base``.
    """
    view = nn.Module()
    stem = cast(ConvBn, base.layer1.get_submodule("conv1"))
    view.conv1, view.bn1 = stem.conv, stem.bn
    for i, name in enumerate(LAYERS, 1):
        blocks = nn.Sequential()
        for block in base.get_submodule(name).children():
            blocks.append(_block_by_torchvision_names(cast(CaffeBottleneck, block)))
        view.add_module(f"layer{i}", blocks)
    return view


def _block_by_torchvision_names(block: CaffeBottleneck) -> nn.Module:
    view = nn.Module()
    for i, part in enumerate((block.reduce, block.conv3x3, block.increase), 1):
        view.add_module(f"conv{i}", part.conv)
        view.add_module(f"bn{i}", part.bn)
    if isinstance(block.shortcut, ConvBn):
        view.downsample = nn.Sequential(block.shortcut.conv, block.shortcut.bn)
    return view

"""Layers of timm's convolutional networks in the forms that train and export well."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.nets.folding import FoldedBatchNorm2d, FoldingConv2d, join

SIDE = 64
"""Of the image that shows which layers follow each other: two cells of the coarsest feature."""


class EndPaddedConv2d(FoldingConv2d):
    """A strided convolution that pads as TensorFlow does where each side is a multiple of the
    stride: an odd zero goes to the right and below.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """As ``nn.Conv2d``."""
        total = self.dilation[0] * (self.kernel_size[0] - 1) + 1 - self.stride[0]
        before, after = total // 2, total - total // 2
        return super().forward(F.pad(x_BCHW, (before, after, before, after)))


class FoldedNormAct(FoldedBatchNorm2d):
    """A batch norm with the activation that timm puts inside."""

    act: nn.Module

    def forward(self, x_BChw: Tensor) -> Tensor:
        """The batch norm, if nobody has done it, and the activation."""
        activated: Tensor = self.act(super().forward(x_BChw))
        return activated


def pad_as_tensorflow(net: nn.Module) -> bool:
    """Give a network of TensorFlow's a padding that does not depend on the size of the image, and
    say whether it is such a network.
    """
    from timm.layers.conv2d_same import Conv2dSame

    convs: list[nn.Conv2d] = [conv for conv in net.modules() if isinstance(conv, Conv2dSame)]
    for conv in convs:
        # The exporter cannot follow timm's own, which computes the padding from a symbolic size.
        conv.__class__ = EndPaddedConv2d
    return bool(convs)


def fold_adjacent(network: nn.Module) -> None:
    """Join, in place, every bias-free convolution with the batch norm that directly follows it, as
    ``trainer.nets.folding`` does.

    Args:
        network: takes ``[1, 3, 64, 64]``.
    """
    from timm.layers.norm_act import BatchNormAct2d

    kinds = ((nn.Conv2d, EndPaddedConv2d), (nn.BatchNorm2d, BatchNormAct2d))
    pairs = [
        pair
        for parent in network.modules()
        for pair in pairwise(parent.children())
        # Exactly these classes: a subclass may compute something else.
        if all(type(layer) in own for layer, own in zip(pair, kinds)) and _is_plain(*pair)
    ]
    for conv, norm in _adjacent(network, pairs):
        join(conv, norm, FoldedBatchNorm2d if type(norm) is nn.BatchNorm2d else FoldedNormAct)


def _is_plain(conv: nn.Module, norm: nn.Module) -> bool:
    # timm may drop features between the batch norm and its activation.
    has_bias = getattr(conv, "bias", None) is not None
    return not has_bias and isinstance(getattr(norm, "drop", nn.Identity()), nn.Identity)


def _adjacent(
    network: nn.Module, pairs: list[tuple[nn.Module, nn.Module]]
) -> list[tuple[nn.Module, nn.Module]]:
    """The pairs whose second layer takes what the first one gives. The order of the children is
    the order of their definition, which some networks do not call them in.
    """
    outputs: dict[nn.Module, Tensor] = {}
    inputs: dict[nn.Module, Tensor] = {}

    def keep_output(module: nn.Module, _: object, output: Tensor) -> None:
        outputs[module] = output

    def keep_input(module: nn.Module, args: tuple[Tensor]) -> None:
        inputs[module] = args[0]

    handles = [conv.register_forward_hook(keep_output) for conv, _ in pairs]
    handles += [norm.register_forward_pre_hook(keep_input) for _, norm in pairs]
    was_training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, SIDE, SIDE))
    network.train(was_training)
    for handle in handles:
        handle.remove()
    return [pair for pair in pairs if outputs[pair[0]] is inputs[pair[1]]]

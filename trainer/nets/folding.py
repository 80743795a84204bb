"""Batch norms with fixed statistics done inside the convolution before them.

A frozen batch norm is a scale and a shift of each channel. Moved into the convolution's weight it
costs nothing, saves one pass over memory forward and two backward, and one stored feature map a
layer. Names in the state dict stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from trainer.nets.depthwise import applies, depthwise_conv2d, quick_conv2d


class FoldingConv2d(nn.Conv2d):
    """A convolution that also does the batch norm after it whenever that one uses its running
    statistics.

    Gradients of weight and affine are those of the two layers one after the other.
    """

    # In a tuple because an attribute that is a module would enter the state dict a second time.
    followed_by: tuple[FoldedBatchNorm2d, ...] = ()
    ready: tuple[Tensor, Tensor] | None = None

    @property
    def folds(self) -> bool:
        """Whether this convolution does the work of its batch norm."""
        return any(norm.is_folded() for norm in self.followed_by)

    def fold(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the two layers as one."""
        (norm,) = self.followed_by
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale

    def forward(self, x_BChw: Tensor) -> Tensor:
        """The convolution, normalised if the batch norm is in eval mode."""
        if not self.folds:
            return quick_conv2d(self, x_BChw)
        weight, bias = self.ready or self.fold()
        if applies(x_BChw, self):
            return depthwise_conv2d(x_BChw, weight, bias, self)
        return torch.conv2d(
            x_BChw, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that has nothing left to do in eval mode, because a ``FoldingConv2d`` has done
    it.
    """

    joined = True

    def is_folded(self) -> bool:
        """Whether the convolution does the work. Not while a graph is exported: engines fold for
        themselves.
        """
        return self.joined and not self.training and not torch.compiler.is_exporting()

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Batch norm in train mode, the identity when folded."""
        return x_BChw if self.is_folded() else super().forward(x_BChw)


@contextlib.contextmanager
def folded_once(network: nn.Module) -> Iterator[None]:
    """Fold now instead of in every forward pass. Weights must not change while this lasts."""
    convolutions = [m for m in network.modules() if isinstance(m, FoldingConv2d) and m.folds]
    try:
        for convolution in convolutions:
            convolution.ready = convolution.fold()
        yield
    finally:
        for convolution in convolutions:
            convolution.ready = None


def fold_batch_norms(network: nn.Module) -> None:
    """Join, in place, every bias-free convolution with the batch norm that directly follows it in
    the same module.
    """
    for parent in list(network.modules()):
        children = list(parent.children())
        for conv, norm in pairwise(children):
            # Exactly these classes: a subclass may compute something else.
            if type(conv) is nn.Conv2d and conv.bias is None and type(norm) is nn.BatchNorm2d:
                join(conv, norm, FoldedBatchNorm2d)


def join(conv: nn.Module, norm: nn.Module, kind: type[FoldedBatchNorm2d]) -> None:
    """Let a convolution do the work of the batch norm after it, which becomes a ``kind``."""
    # Changing the class keeps the parameters, their names and all that refers to them.
    if not isinstance(conv, FoldingConv2d):
        conv.__class__ = FoldingConv2d
    norm.__class__ = kind
    cast(FoldingConv2d, conv).followed_by = (cast(FoldedBatchNorm2d, norm),)


def unfold(network: nn.Module) -> None:
    """Undo ``fold_batch_norms``, in place."""
    for module in network.modules():
        if isinstance(module, FoldingConv2d):
            module.followed_by = ()
        elif isinstance(module, FoldedBatchNorm2d):
            module.joined = False

"""Depthwise convolution with a fast backward pass on CPU.

The gradient for the input of a convolution is itself a convolution: of the output gradient and the
mirrored kernel. The CPU library's forward depthwise kernel is 7 to 50 times faster than its own
backward one (``bench/train_step.py``), so the gradient is taken that way. The result is the same
but for rounding. With a stride, zeros between the cells would cost more than that saves.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: torch.nn.Conv2d
) -> Tensor:
    """``conv`` with the given weight ``[C,1,k,k]`` and bias, for ``conv.groups == C`` and stride
    1.
    """
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(low), weight.to(low), None if bias is None else bias.to(low)
    return _Depthwise.apply(x, weight, bias, conv.padding[0], conv.dilation[0])  # type: ignore[no-any-return]


def applies(x: Tensor, conv: torch.nn.Conv2d) -> bool:
    """Whether ``depthwise_conv2d`` is worth while: a depthwise convolution of stride 1 on CPU whose
    gradient will be wanted.
    """
    return (
        conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.stride[0] == 1
        and all(len({*pair}) == 1 for pair in _geometry(conv))
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _geometry(conv: torch.nn.Conv2d) -> list[Any]:
    return [conv.kernel_size, conv.stride, conv.padding, conv.dilation]


def quick_conv2d(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    """What ``conv`` does to ``x``, in the fast way where there is one."""
    if applies(x, conv):
        return depthwise_conv2d(x, conv.weight, conv.bias, conv)
    return torch.nn.Conv2d.forward(conv, x)


class QuickConv2d(torch.nn.Conv2d):
    """A convolution that takes the fast way where there is one."""

    def forward(self, x: Tensor) -> Tensor:
        """See ``quick_conv2d``."""
        return quick_conv2d(self, x)


def quicken(network: torch.nn.Module) -> None:
    """Make every plain depthwise convolution of a network a fast one, in place. Names stay."""
    for module in network.modules():
        # Not subclasses: those of timm pad in their own way.
        if type(module) is torch.nn.Conv2d and module.groups == module.in_channels > 1:
            module.__class__ = QuickConv2d


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: int,
        dilation: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = padding, dilation
        return F.conv2d(x, weight, bias, 1, padding, dilation, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        padding, dilation = ctx.geometry
        g = gradients[0].contiguous(memory_format=torch.channels_last)
        dx = _input_gradient(g, weight, padding, dilation) if ctx.needs_input_grad[0] else None
        dw = None
        if ctx.needs_input_grad[1]:
            dw = _weight_gradient(g, x, weight, padding, dilation)
        db = g.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return dx, dw, db, None, None


def _input_gradient(g: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
    # The mirrored kernel must reach every input cell, less what the forward pass had padded.
    edge = dilation * (weight.shape[-1] - 1) - padding
    return F.conv2d(g, weight.flip(2, 3), None, 1, edge, dilation, groups=g.shape[1])


def _weight_gradient(g: Tensor, x: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
    if dilation > 1:
        reach = dilation * (weight.shape[-1] - 1)
        side = [-(-n // dilation) * dilation for n in g.shape[2:]]
        x = _phases(x, padding, [n + reach for n in side], dilation)
        g, padding, dilation = _phases(g, 0, side, dilation), 0, 1
    geometry = ([1, 1], [padding] * 2, [dilation] * 2, False, [0, 0], x.shape[1])
    dw: Tensor = torch.ops.aten.convolution_backward(
        g, x, weight, None, *geometry, [False, True, False]
    )[1]
    return dw


def _phases(x: Tensor, before: int, size: list[int], step: int) -> Tensor:
    """Every ``step``-th row and column as an image of its own, ``[step*step*B,C,..]``: dilation
    becomes 1.

    The library's weight gradient is an order of magnitude slower for a dilated depthwise kernel
    than for a plain one.
    """
    after = [size[0] - x.shape[2] - before, size[1] - x.shape[3] - before]
    x = F.pad(x, (before, after[1], before, after[0]))
    batch, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(batch, height // step, step, width // step, step, channels)
    return (
        x.permute(2, 4, 0, 1, 3, 5)
        .reshape(-1, height // step, width // step, channels)
        .permute(0, 3, 1, 2)
    )

"""Depthwise convolution with a fast backward pass on CPU.

The gradient for the input of a convolution is itself a convolution: of the output gradient, with
zeros put between its cells where the stride was, and the mirrored kernel. The CPU library's forward
depthwise kernel is 7 to 50 times faster than its own backward one (``bench/train_step.py``), so the
gradient is taken that way. The result is the same but for rounding.
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
    """``conv`` with the given weight ``[C,1,k,k]`` and bias, for ``conv.groups == C`` and equal
    stride both ways.
    """
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(low), weight.to(low), None if bias is None else bias.to(low)
    return _Depthwise.apply(x, weight, bias, conv.stride[0], conv.padding[0], conv.dilation[0])  # type: ignore[no-any-return]


def applies(x: Tensor, conv: torch.nn.Conv2d) -> bool:
    """Whether ``depthwise_conv2d`` is worth while: a depthwise convolution on CPU whose gradient
    will be wanted.
    """
    return (
        conv.groups == conv.in_channels == conv.out_channels > 1
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
        stride: int,
        padding: int,
        dilation: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, dilation
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        g = gradients[0].contiguous(memory_format=torch.channels_last)
        dx = (
            _input_gradient(g, x.shape, weight, stride, padding, dilation)
            if ctx.needs_input_grad[0]
            else None
        )
        dw = None
        if ctx.needs_input_grad[1]:
            dw = _weight_gradient(g, x, weight, stride, padding, dilation)
        db = g.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return dx, dw, db, None, None, None


def _input_gradient(
    g: Tensor, shape: torch.Size, weight: Tensor, stride: int, padding: int, dilation: int
) -> Tensor:
    reach = dilation * (weight.shape[-1] - 1)
    # The mirrored kernel must reach every input cell, less what the forward pass had padded.
    edge = reach - padding
    size = [side + 2 * padding - reach for side in shape[2:]]
    if list(g.shape[2:]) != size:
        # Zeros stand where the stride left cells out, also behind its last step.
        spread = g.new_zeros(g.shape[0], g.shape[1], *size).contiguous(
            memory_format=torch.channels_last
        )
        spread[:, :, ::stride, ::stride] = g
        g = spread
    return F.conv2d(g, weight.flip(2, 3), None, 1, edge, dilation, groups=shape[1])


def _weight_gradient(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int
) -> Tensor:
    if dilation > 1 and stride == 1:
        reach = dilation * (weight.shape[-1] - 1)
        side = [-(-n // dilation) * dilation for n in g.shape[2:]]
        x = _phases(x, padding, [n + reach for n in side], dilation)
        g, padding, dilation = _phases(g, 0, side, dilation), 0, 1
    geometry = ([stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], x.shape[1])
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

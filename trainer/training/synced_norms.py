"""Batch norms over the batch of all processes.

A batch norm in train mode uses the statistics of its batch. With the share of one process, a
training would depend on the number of processes, and with few images in each share the statistics
are poor. torch's ``SyncBatchNorm`` runs on GPUs only and replaces modules. Here the function is
replaced while the loss is computed, so networks stay as they are, on every device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from trainer.ranks import rank, world_size
from trainer.training.collectives import is_joined


def synced(module: nn.Module) -> contextlib.AbstractContextManager[object]:
    """While this lasts, batch norms in train mode use the statistics of all processes."""
    norms = (m for m in module.modules() if isinstance(m, _BatchNorm))
    if not is_joined() or not any(norm.training for norm in norms):
        return contextlib.nullcontext()
    return _Synced()


class _Synced(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return (batch_norm if func is F.batch_norm else func)(*args, **kwargs)


def batch_norm(
    x_BChw: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` over the batches of all processes, which are of one
    size.
    """
    if not training:
        return F.batch_norm(x_BChw, running_mean, running_var, weight, bias, False, momentum, eps)
    wide = x_BChw.float()
    axes = [axis for axis in range(wide.ndim) if axis != 1]
    own_2C = torch.stack(torch.var_mean(wide, axes, correction=0))
    # Each process fills its own row, so that the sum over the processes holds all of them.
    vars_WC, means_WC = _Sum.apply(
        F.pad(own_2C[None], (0, 0, 0, 0, rank(), world_size() - 1 - rank()))
    ).unbind(1)
    mean_C = means_WC.mean(0)
    # Variance within the processes and between them; squares of large values would cancel.
    var_C = (vars_WC + (means_WC - mean_C) ** 2).mean(0)
    if running_mean is not None and running_var is not None:
        count = wide.numel() // wide.shape[1] * world_size()
        with torch.no_grad():
            running_mean.lerp_(mean_C.to(running_mean.dtype), momentum)
            unbiased = var_C * (count / max(1, count - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    shape = [1, -1, *[1] * (wide.ndim - 2)]
    scale_C = torch.rsqrt(var_C + eps)
    scale_C = scale_C if weight is None else scale_C * weight
    normal = (wide - mean_C.view(shape)) * scale_C.view(shape)
    normal = normal if bias is None else normal + bias.view(shape)
    same: Tensor = normal.to(x_BChw.dtype)
    return same


class _Sum(torch.autograd.Function):
    """The sum over all processes. Its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total

"""Resizing inside exported graphs, with sizes that are only known when the graph runs.

Only operators that onnxruntime, OpenVINO and TensorRT share: the bicubic resize is a pair of matrix
products because OpenVINO ignores the antialiasing of ``Resize`` and TensorRT refuses it. The
bilinear resize of logits is one too: that is faster in onnxruntime (bench/export_head.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import torch
import torch.nn.functional as F


def resize_bilinear(maps_NKhw: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """``F.interpolate(mode="bilinear", align_corners=False)`` to ``size`` = (H, W)."""
    return F.interpolate(maps_NKhw, size=list(size), mode="bilinear", align_corners=False)


def resize_aligned(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """``F.interpolate(mode="bilinear", align_corners=True)`` of ``[B,L,h,w]`` or ``[B,h,w]``."""
    maps = logits if logits.ndim == 4 else logits[None]
    large = F.interpolate(maps, list(size), mode="bilinear", align_corners=True)
    return large if logits.ndim == 4 else large[0]


def bilinear_weights(old: int, new: int, like: torch.Tensor) -> torch.Tensor:
    """Resampling matrix ``[new, old]`` of ``F.interpolate(mode="bilinear",
    align_corners=False)``.
    """
    weights = (1 - distances(old, new, 2 * new, like)).clamp_min(0)
    # Before the first and after the last of the old centres only the nearest one counts.
    return weights / weights.sum(1, keepdim=True)


def resize_bicubic(pixels_N3HW: torch.Tensor, scale: float) -> torch.Tensor:
    """Antialiased bicubic resize as Pillow's (a = -0.5), unrounded, of ``[N,3,H,W]`` to
    ``scaled_size`` of H and W.
    """
    height, width = pixels_N3HW.shape[2:]
    rows = bicubic_weights(height, scaled_size(height, scale), pixels_N3HW)
    columns = bicubic_weights(width, scaled_size(width, scale), pixels_N3HW)
    return rows @ (pixels_N3HW @ columns.T)


def scaled_size(size: int, scale: float) -> int:
    """``round(size * scale)``, half to even as Python and NumPy do, in integer arithmetic that a
    graph can hold.
    """
    # A float such as 1.1 is not 11/10. The nearest fraction with a small denominator is what was
    # meant.
    exact = Fraction(scale).limit_denominator(16)
    product, d = size * exact.numerator, exact.denominator
    return product if d == 1 else (2 * product + d - 1 + product // d % 2) // (2 * d)


def bicubic_weights(old: int, new: int, like: torch.Tensor) -> torch.Tensor:
    """Resampling matrix ``[new, old]`` of a cubic convolution filter (Keys 1981, a = -0.5) widened
    when it shrinks.
    """
    d = distances(old, new, 2 * cast(int, torch.sym_max(old, new)), like)
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = torch.where(d < 1, near, torch.where(d < 2, far, 0.0))
    # Pillow divides every row by its sum, which matters at the borders.
    return weights / weights.sum(1, keepdim=True)


def distances(old: int, new: int, unit: int, like: torch.Tensor) -> torch.Tensor:
    """``[new, old]``: how far the cells of two grids over one length are apart, from centre to
    centre.

    The length has ``2 * old * new`` parts; the distance is counted in ``unit`` of them. It is a
    whole number of parts until the last step: an engine that computes in bfloat16 would lose
    positions above 256, and with them the image.
    """
    rows = 2 * torch.arange(new, dtype=torch.int32, device=like.device) + 1
    columns = 2 * torch.arange(old, dtype=torch.int32, device=like.device) + 1
    return (columns[None, :] * new - rows[:, None] * old).abs().to(like.dtype) / unit

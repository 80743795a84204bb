"""Global pooling heads (spec methods 18): GAP, GMP and HSPP of the VWE paper (Ru et al., IJCAI
2021).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

Pooling = Literal["gap", "gmp", "hspp"]


def gap(f: torch.Tensor) -> torch.Tensor:
    """Global average pooling, ``[B,C,h,w] -> [B,C]``."""
    return f.mean(dim=(2, 3))


def gmp(f: torch.Tensor) -> torch.Tensor:
    """Global max pooling, ``[B,C,h,w] -> [B,C]``; the gradient goes to one maximum, not to all
    ties.
    """
    return F.adaptive_max_pool2d(f, 1).flatten(1)


def hspp(
    f: torch.Tensor, gamma: float = 2.0, bins: Literal["floor", "adaptive"] = "floor"
) -> torch.Tensor:
    """Hybrid spatial pyramid pooling, ``[B,C,h,w] -> [B,C]``.

    The means of block maxima on 1x1, 2x2 and 4x4 grids, plus ``gamma`` times the average, over ``3
    + gamma``.

    Args:
        f: features.
        gamma: weight of the average.
        bins: ``floor`` cuts blocks of floor(h/r) x floor(w/r) as the released code does (more bins,
            or dropped rows, where r does not divide the size); ``adaptive`` always makes r x r
            bins.

    Raises:
        ValueError: ``floor`` on a map with a side under 4.
    """
    height, width = f.shape[2:]
    total = gamma * gap(f)
    for r in (1, 2, 4):
        if bins == "adaptive":
            maxima = F.adaptive_max_pool2d(f, r)
        elif min(height, width) < r:
            raise ValueError(
                f"hspp with bins='floor' needs maps of at least 4x4, not {height}x{width}"
            )
        else:
            maxima = F.max_pool2d(f, (height // r, width // r))
        total = total + maxima.mean(dim=(2, 3))
    return total / (3 + gamma)


def pool(
    f: torch.Tensor, kind: Pooling, gamma: float = 2.0, bins: Literal["floor", "adaptive"] = "floor"
) -> torch.Tensor:
    """Pool by name."""
    if kind == "gap":
        return gap(f)
    return gmp(f) if kind == "gmp" else hspp(f, gamma, bins)

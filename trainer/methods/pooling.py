"""Global pooling heads: GAP, GMP and HSPP of the VWE paper (Ru et al., IJCAI 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from trainer.config import Knobs, Range

Pooling = Literal["gap", "gmp", "hspp"]
Bins = Literal["floor", "adaptive"]
LEVELS = (1, 2, 4)
"""Sides of the grids of HSPP, as published."""


def gap(f: torch.Tensor) -> torch.Tensor:
    """Global average pooling, ``[B,C,h,w] -> [B,C]``."""
    return f.mean(dim=(2, 3))


def gmp(f: torch.Tensor) -> torch.Tensor:
    """Global max pooling, ``[B,C,h,w] -> [B,C]``; the gradient goes to one maximum, not to all
    ties.
    """
    return F.adaptive_max_pool2d(f, 1).flatten(1)


@dataclass(frozen=True)
class PoolingConfig(Knobs):
    """Knobs of a method that pools its features.

    Attributes:
        pooling: ``gap`` average, ``gmp`` maximum, ``hspp`` hybrid spatial pyramid.
        hspp_bins: ``floor`` as released, ``adaptive`` for maps of any size.
        hspp_gamma: weight of the average beside the block maxima of ``hspp``, 0 or more.
        hspp_levels: sides of the grids whose blocks ``hspp`` takes the maxima of.
    """

    pooling: Pooling = "gap"
    hspp_bins: Bins = "floor"
    hspp_gamma: Annotated[float, Range(0, 1000)] = 2.0
    hspp_levels: Annotated[tuple[int, ...], Range(1, 64, least=1)] = LEVELS


def hspp(
    f: torch.Tensor,
    gamma: float = 2.0,
    bins: Bins = "floor",
    levels: Sequence[int] = LEVELS,
) -> torch.Tensor:
    """Hybrid spatial pyramid pooling, ``[B,C,h,w] -> [B,C]`` (VWE, eqs. 5 to 7).

    The means of block maxima on grids of 1x1, 2x2 and 4x4, plus ``gamma`` times the average, over
    ``3 + gamma``.

    Args:
        f: features.
        gamma: weight of the average.
        bins: ``floor`` cuts blocks of floor(h/r) x floor(w/r) as the released code does (more bins,
            or dropped rows, where r does not divide the size); ``adaptive`` always makes r x r
            bins.
        levels: sides of the grids.

    Raises:
        ValueError: ``floor`` on a map with a side under the largest grid's.
    """
    height, width = f.shape[2:]
    largest = max(levels)
    if bins == "floor" and min(height, width) < largest:
        raise ValueError(
            f"hspp with bins='floor' needs maps of at least {largest}x{largest},"
            f" not {height}x{width}"
        )
    total = gamma * gap(f)
    for r in levels:
        if bins == "adaptive":
            maxima = F.adaptive_max_pool2d(f, r)
        else:
            maxima = F.max_pool2d(f, (height // r, width // r))
        total = total + maxima.mean(dim=(2, 3))
    return total / (len(levels) + gamma)


def pool(
    f: torch.Tensor,
    kind: Pooling,
    gamma: float = 2.0,
    bins: Bins = "floor",
    levels: Sequence[int] = LEVELS,
) -> torch.Tensor:
    """Pool by name."""
    if kind == "gap":
        return gap(f)
    return gmp(f) if kind == "gmp" else hspp(f, gamma, bins, levels)


def pool_by(config: PoolingConfig, f: torch.Tensor) -> torch.Tensor:
    """Pool as the knobs say."""
    return pool(f, config.pooling, config.hspp_gamma, config.hspp_bins, config.hspp_levels)

"""Global pooling: average, maximum, HSPP (Ru et al., "VWE", IJCAI 2021), log-sum-exp and top-k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from trainer.config import Knobs, Range
from trainer.errors import ConfigError

Pooling = Literal["gap", "gmp", "hspp", "lse", "topk"]
OF_MAPS = ("lse", "topk")
"""Poolings of the class maps. The others pool the features below them."""
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
        pooling: ``gap`` average, ``gmp`` maximum, ``hspp`` hybrid spatial pyramid; for objects of
            any size, down to a cell, ``lse`` log-sum-exp or ``topk`` mean of the highest cells.
        lse_sharpness: 0 is the average, large values are the maximum.
        topk_share: share of the cells that ``topk`` averages; one cell at least.
        hspp_bins: ``floor`` as released, ``adaptive`` for maps of any size.
        hspp_gamma: weight of the average beside the block maxima of ``hspp``, 0 or more.
        hspp_levels: sides of the grids whose blocks ``hspp`` takes the maxima of.
    """

    pooling: Pooling = "gap"
    hspp_bins: Bins = "floor"
    hspp_gamma: Annotated[float, Range(0, 1000)] = 2.0
    hspp_levels: Annotated[tuple[int, ...], Range(1, 64, least=1)] = LEVELS
    lse_sharpness: Annotated[float, Range(0, 1000, above=True)] = 4.0
    topk_share: Annotated[float, Range(0, 1, above=True)] = 0.05


def lse(maps: torch.Tensor, sharpness: float = 4.0) -> torch.Tensor:
    """Log-sum-exp pooling, ``[B,K,h,w] -> [B,K]``: log(mean(exp(r M))) / r, a smooth step from
    average to maximum (Pinheiro and Collobert, CVPR 2015, eq. 6).
    """
    cells = sharpness * maps.flatten(2)
    # Without the largest value nothing overflows. A mean instead of the logarithm of the number of
    # cells, which an exported graph would keep from the image that it was traced with.
    top = cells.detach().amax(2, keepdim=True)
    return ((cells - top).exp().mean(2).log() + top[:, :, 0]) / sharpness


def topk(maps: torch.Tensor, share: float = 0.05) -> torch.Tensor:
    """Mean of the highest cells of each map, ``[B,K,h,w] -> [B,K]``."""
    cells = maps.flatten(2)
    # In whole numbers: the number of cells has no value yet while a graph is exported.
    part = Fraction(share).limit_denominator(10_000)
    count = (2 * part.numerator * cells.shape[2] + part.denominator) // (2 * part.denominator)
    return cells.topk(torch.sym_max(count, 1), dim=2).values.mean(2)


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


def pool_by(config: PoolingConfig, f: torch.Tensor) -> torch.Tensor:
    """Pool features or maps as the knobs say, ``[B,C,h,w] -> [B,C]``.

    Raises:
        ConfigError: ``hspp`` on maps that are too small for its grids.
    """
    if config.pooling == "gmp":
        return gmp(f)
    if config.pooling == "hspp":
        try:
            return hspp(f, config.hspp_gamma, config.hspp_bins, config.hspp_levels)
        except ValueError as error:
            hint = "larger views (--size), or --set method.hspp_bins=adaptive"
            raise ConfigError(f"the images are too small: {error}", "larger maps", hint) from error
    if config.pooling == "lse":
        return lse(f, config.lse_sharpness)
    return topk(f, config.topk_share) if config.pooling == "topk" else gap(f)


def pooled_logits(
    config: PoolingConfig, f: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Image logits ``[B,K]`` of a linear head on the features ``[B,C,h,w]``."""
    if config.pooling in OF_MAPS:
        return pool_by(config, head(f))
    return head(pool_by(config, f)[:, :, None, None]).flatten(1)

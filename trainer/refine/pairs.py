"""Pairs of neighbouring cells that AffinityNet and IRNet compare, and the cells between them.

Shapes: h w map, P pairs per cell, n source cells: those from which no offset of
``half_plane(radius)`` leaves the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from trainer.data.dataset import IGNORE
from trainer.errors import ConfigError

Offset = tuple[int, int]
PairLabels = tuple[Tensor, Tensor, Tensor]


@cache
def half_plane(radius: int) -> tuple[Offset, ...]:
    """Offsets (dy, dx) shorter than ``radius``, one of each two opposite ones, in psa's order."""
    right = [(0, dx) for dx in range(1, radius)]
    below = [
        (dy, dx)
        for dy in range(1, radius)
        for dx in range(1 - radius, radius)
        if dy**2 + dx**2 < radius**2
    ]
    return (*right, *below)


@cache
def paths(radius: int) -> tuple[tuple[Offset, tuple[Offset, ...]], ...]:
    """Each offset of ``half_plane`` with the cells of a thick line to it, short lines first.

    The cells start at the destination.
    """
    lines = [(offset, _line(*offset)) for offset in half_plane(radius)]
    # IRN's order: short lines first, in the half plane's order among equals.
    return tuple(sorted(lines, key=lambda item: len(item[1])))


def shifted(x_hw: Tensor, offset: Offset, radius: int) -> Tensor:
    """The value at ``offset`` from each source cell: a view ``[...,h-r+1,w-2r+2]``, r the radius.

    Raises:
        ConfigError: a map without source cells.
    """
    (dy, dx), reach = offset, radius - 1
    rows, columns = x_hw.shape[-2] - reach, x_hw.shape[-1] - 2 * reach
    if rows < 1 or columns < 1:
        raise ConfigError(
            f"a map of {x_hw.shape[-2]}x{x_hw.shape[-1]} cells for pairs of radius {radius}",
            f"at least {radius}x{2 * radius - 1} cells",
            "larger images or crops, or a smaller radius",
        )
    return x_hw[..., dy : dy + rows, reach + dx : reach + dx + columns]


def pair_labels(label_hw: Tensor, offsets: Sequence[Offset], radius: int) -> PairLabels:
    """Pairs of two background cells, of one class, and of two different labels: bool ``[...,P,n]``.

    Source cells are in row order. A pair with an open cell belongs to none of the three.

    Args:
        label_hw: ``[...,h,w]``: 0 background, 255 open, else any numbers of classes.
        offsets: of ``half_plane(radius)``.
        radius: pairs are cells less than this apart.

    Raises:
        ConfigError: a map without source cells.
    """
    start = shifted(label_hw, (0, 0), radius).flatten(-2).unsqueeze(-2)
    end = torch.stack([shifted(label_hw, offset, radius) for offset in offsets], -3).flatten(-2)
    valid = (start != IGNORE) & (end != IGNORE)
    alike, ground = valid & (start == end), start == 0
    return alike & ground, alike & ~ground, valid & ~alike


def _line(dy: int, dx: int) -> tuple[Offset, ...]:
    """Cells of the box less than 1 from the line, both ends included, the furthest first."""
    box = [
        (y, x) for y in range(min(dy, 0), max(dy, 0) + 1) for x in range(min(dx, 0), max(dx, 0) + 1)
    ]
    # The distance of a cell from the line is |dy x - dx y| / sqrt(dy^2 + dx^2).
    near = [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy**2 + dx**2]
    return tuple(sorted(near, key=lambda cell: -abs(cell[0]) - abs(cell[1])))

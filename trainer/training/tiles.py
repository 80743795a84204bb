"""Large images tile by tile: the same maps and logits in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainer.data.sizes import MARGIN


def in_tiles(network: Callable[[Tensor], Tensor], images_BCHW: Tensor, side: int) -> Tensor:
    """``network(images)``, of images larger than a tile in overlapping tiles.

    Tiles start at multiples of 32, so that each cell sees the pixels that it sees in the whole
    image, except for those beyond the margin. What a network pools over the whole image, it pools
    over a tile.

    Args:
        network: ``[B,C,h,w]`` images to maps or logits at a stride that divides 32.
        images_BCHW: any size.
        side: of a tile, as ``check_tile`` has it; 0 looks at whole images.
    """
    height, width = images_BCHW.shape[2:]
    if not side or max(height, width) <= side:
        return network(images_BCHW)
    rows = []
    for top, bottom, above, below in _spans(height, side):
        parts = []
        for left, right, before, behind in _spans(width, side):
            tile = images_BCHW[:, :, above:below, before:behind].contiguous(
                memory_format=torch.channels_last
            )
            maps = network(tile)
            stride = -(-tile.shape[2] // maps.shape[2])
            y, x = (top - above) // stride, (left - before) // stride
            high, wide = -(-(bottom - top) // stride), -(-(right - left) // stride)
            parts.append(maps[:, :, y : y + high, x : x + wide])
        rows.append(torch.cat(parts, 3))
    return torch.cat(rows, 2)


def _spans(length: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    """Along one axis: start and end of each tile's own part, and of what it sees."""
    step = side - 2 * MARGIN
    for start in range(0, length, step):
        end = min(start + step, length)
        yield start, end, max(0, start - MARGIN), min(length, end + MARGIN)

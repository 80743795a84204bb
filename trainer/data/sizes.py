"""The size at which an image is processed: a budget of pixels bounds the memory.

This module does not import torch, so worker processes need not load it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.config import Range
from trainer.errors import ConfigError

PIXELS = 4_000_000
"""How many pixels are processed at once by default.

The networks here need 0.1 to 0.8 kB for each pixel, a dense CRF about 0.3 kB.
"""

TILE = 1024
"""Side of a tile, pixels, where small objects matter."""
MARGIN = 128
"""What a tile shows around its own part, pixels. What lies further away changes little in it."""
TILED = 4
"""How many times as many pixels an image may have that is looked at in tiles."""

PIXEL_RANGE = Range(10_000, 10_000_000_000)
SIDE_RANGE = Range(0, 100_000)

Pixels = npt.NDArray[np.uint8]


def check_tile(knob: str, side: int) -> None:
    """Refuse a side that no tile can have.

    Raises:
        ConfigError: tiles start at whole cells of every network, and half of a tile is its own.
    """
    if side % 32 or 0 < side < 4 * MARGIN:
        raise ConfigError(f"{knob}={side}", f"0, or a multiple of 32 from {4 * MARGIN} on")


def tiled_pixels(pixels: int, tile: int) -> int:
    """Pixels that the largest view of an image may have: more where it is looked at in tiles."""
    return pixels * TILED if tile else pixels


def working_size(
    size: tuple[int, int], pixels: int, scale: float = 1.0, canvas: int = 1, side: int = 0
) -> tuple[int, int]:
    """(H, W) at which an image is processed: its own or one of a wanted ``side``, or the largest of
    the same shape that fits.

    Args:
        size: (H, W) of the image.
        pixels: limit on the pixels of its largest view.
        scale: of that view. Below 1, the image itself is the largest view.
        canvas: each side of a view has at least this many pixels.
        side: longer side that the image gets, as far as the budget allows; 0: its own.
    """
    height, width = size
    budget = max(pixels, canvas * canvas)
    share = math.sqrt(budget / (height * width)) / max(1.0, scale)
    # The short side is padded to the canvas, which leaves less of the budget for the long side.
    if min(size) * share < canvas:
        share = min(share, budget / (canvas * max(size)))
    share = min(share, side / max(size) if side else 1.0)
    if share == 1:
        return height, width
    # A side of exactly ``side`` must not lose a pixel to rounding.
    return max(1, int(height * share + 1e-6)), max(1, int(width * share + 1e-6))


def shrunk(image_HW3: Pixels, size: tuple[int, int]) -> Pixels:
    """The image resized to ``size`` (bicubic); unchanged if that is its size."""
    if image_HW3.shape[:2] == size:
        return image_HW3
    small = Image.fromarray(image_HW3).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(small)


def enlarged(mask_HW: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """The label map resized to the ``size`` of its image, by nearest neighbour."""
    if mask_HW.shape == size:
        return mask_HW
    rows, columns = (
        ((np.arange(large) + 0.5) * small / large).astype(np.int64)
        for small, large in zip(mask_HW.shape, size)
    )
    mask: npt.NDArray[Any] = mask_HW[rows[:, None], columns]
    return mask

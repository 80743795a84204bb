"""Image sizes rounded up to a multiple, so that images share a run; the padding is cut off again.

Server and labeller share these functions, so that equal settings give equal masks.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from serving.card import Card

D = TypeVar("D", bound=np.generic)


def bucket_size(height: int, width: int, multiple: int, card: Card) -> tuple[int, int]:
    """Sides rounded up to a multiple within the model's limits; unchanged if that has too many
    pixels.
    """
    tall, wide = (min(-(-side // multiple) * multiple, card.max_side) for side in (height, width))
    return (tall, wide) if tall * wide <= card.max_pixels else (height, width)


def pad(pixels: npt.NDArray[np.uint8], tall: int, wide: int) -> npt.NDArray[np.uint8]:
    """uint8 [H,W,3] grown to [tall,wide,3] by repeating its last row and column."""
    height, width = pixels.shape[:2]
    if (height, width) == (tall, wide):
        return pixels
    return np.pad(pixels, ((0, tall - height), (0, wide - width), (0, 0)), mode="edge")


def crop(maps: npt.NDArray[D], inner: tuple[int, int], outer: tuple[int, int]) -> npt.NDArray[D]:
    """The cells of maps [...,h,w] of a padded image that cover the image itself.

    Args:
        inner, outer: height and width of the image before and after padding.
    """
    rows, columns = (
        -(-side * cells // full) for side, cells, full in zip(inner, maps.shape[-2:], outer)
    )
    return maps[..., :rows, :columns]

"""Sizes that images share, so that they can share a run: sides rounded up to a multiple, by pixels
that the mask loses.

Server and labeller use these functions alike, so that equal settings give equal masks.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from serving.card import Card

D = TypeVar("D", bound=np.generic)


def bucket_size(height: int, width: int, multiple: int, card: Card) -> tuple[int, int]:
    """Sides rounded up to a multiple, or to the longest that the model takes; as they are if those
    are too many pixels.
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
    """The part of [...,h,w] maps of an image padded from ``inner`` to ``outer`` that covers its own
    part, in whole cells.
    """
    rows, columns = (
        -(-side * cells // full) for side, cells, full in zip(inner, maps.shape[-2:], outer)
    )
    return maps[..., :rows, :columns]

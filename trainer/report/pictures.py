"""Pictures as data URLs, small enough that a page holds hundreds of them."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.report.overlays import heat

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]
# Levels of a map: thresholds in steps of 0.01 fall between two of them.
LEVELS = 200


def fit(shape: tuple[int, ...], side: int) -> Size:
    """``(width, height)`` of ``[H,W,...]`` shrunk to ``side``; smaller ones stay as they are."""
    factor = min(1.0, side / max(shape[:2]))
    return max(1, round(shape[1] * factor)), max(1, round(shape[0] * factor))


def shrink(mask: Pixels, size: Size) -> Pixels:
    """A label map ``[H,W]`` at ``size``, by nearest pixels."""
    # A mean of two class indices would be a third class.
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def photo_address(photo: Pixels, size: Size, quality: int = 70) -> str:
    """RGB pixels ``[H,W,3]`` at ``size``."""
    image = Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return _address(image, quality=quality)


def layer_address(layer: Pixels) -> str:
    """RGBA pixels ``[H,W,4]``, lossless."""
    return _address(Image.fromarray(layer), lossless=True, quality=50, method=2)


def map_address(values: npt.NDArray[np.floating], side: int) -> str:
    """A map 0..1 ``[H,W]``, shrunk to ``side``, in the colours of ``heat``, lossless.

    The colour of a level stands for values from ``(level - 1) / LEVELS`` to ``level / LEVELS``, so
    that the page's script can compare pixels with a threshold.
    """
    image = Image.fromarray(np.asarray(values, np.float32))
    size = fit(values.shape, side)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    levels = np.ceil(np.clip(np.nan_to_num(np.asarray(image)), 0, 1) * LEVELS - 1e-4)
    colours = map_colours()[levels.astype(np.intp)]
    return _address(Image.fromarray(colours), lossless=True, quality=50, method=2)


def map_colours() -> Pixels:
    """The colour of each level of a map, ``uint8 [LEVELS+1,3]``, no two alike."""
    return heat(np.arange(LEVELS + 1) / LEVELS)


def _address(image: Image.Image, **options: bool | int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"

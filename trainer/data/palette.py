"""The PASCAL VOC colours, and index masks written with them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.files import write_atomic


def voc_palette(n: int = 256) -> npt.NDArray[np.uint8]:
    """The first ``n`` (at most 256) colours of the VOC devkit as ``uint8 [n,3]`` RGB.

    The index is read in groups of three bits: bit 0 goes to red, bit 1 to green, bit 2 to blue. The
    lowest group sets the highest bit of each colour.
    """
    index = np.arange(n, dtype=np.int64)
    colours = np.zeros((n, 3), np.int64)
    for group in range(3):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * group + channel)) & 1) << (7 - group)
    return colours.astype(np.uint8)


def encode_index_png(mask_HW: npt.NDArray[np.uint8]) -> bytes:
    """A palette PNG (mode P) whose pixel values are those of ``uint8 [H,W]``."""
    image = Image.fromarray(np.ascontiguousarray(mask_HW))
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_index_png(path: Path, mask_HW: npt.NDArray[np.uint8]) -> None:
    """Write a label map ``uint8 [H,W]`` as a palette PNG, whole or not at all.

    Raises:
        ValueError: another type or shape.
        RunError: no space left, or the folder cannot be written.
    """
    if mask_HW.dtype != np.uint8 or mask_HW.ndim != 2:
        raise ValueError(f"a label map is uint8 [H,W], not {mask_HW.dtype} {mask_HW.shape}")
    write_atomic(path, encode_index_png(mask_HW))

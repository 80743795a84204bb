"""Masks saved as colours instead of class indices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.palette import voc_palette
from trainer.errors import DataError

GREY_HINT = (
    "unpack the original masks again: aeroplane and pottedplant have the same grey, so this cannot"
    " be undone"
)
Colour = tuple[int, int, int]
VOC_COLOURS: dict[Colour, int] = {
    (r, g, b): k for k, (r, g, b) in enumerate(voc_palette().tolist())
}


def indices_of(
    image: Image.Image, where: Path | str, colours: Mapping[Colour, int] = VOC_COLOURS
) -> npt.NDArray[np.uint8]:
    """``uint8 [H,W]`` indices of a mask that holds ``colours``; grey masks hold indices already.

    Raises:
        DataError: a colour that is none of them.
    """
    if image.mode in ("L", "1"):
        return np.array(image, dtype=np.uint8)
    pixels = _packed(np.asarray(image.convert("RGB")))
    table = _packed(np.array(list(colours), np.uint8))
    order = np.argsort(table)
    # A colour above all of the table would get a place behind its end.
    places = order[np.minimum(np.searchsorted(table, pixels, sorter=order), len(table) - 1)]
    strange = table[places] != pixels
    if strange.any():
        first = int(pixels[strange][0])
        colour = (first >> 16, first >> 8 & 255, first & 255)
        source = "the VOC palette" if colours is VOC_COLOURS else "the data set's class table"
        raise DataError(
            f"mask {where} holds colours that {source} lacks, at {strange.mean():.1%} of its"
            f" pixels: first {colour}",
            "the exact colours of the palette: resizing and JPEG blur them",
        )
    return np.array(list(colours.values()), np.uint8)[places]


def reindexed(image: Image.Image) -> bool:
    """Whether a palette image has VOC's colours at other indices, as some tools write them."""
    if image.mode != "P":
        return False
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    indices = [i for i in np.unique(np.asarray(image)).tolist() if i < len(palette)]
    colours, originals = palette[indices], voc_palette()[indices]
    # VOC's masks hold the colours of 21 labels and of borders.
    in_voc = np.isin(_packed(colours), _packed(voc_palette()[[*range(21), 255]])).all()
    return bool(in_voc and (colours != originals).any())


def grey_levels(values: Iterable[int]) -> set[int]:
    """The grey levels that tools make of the VOC colours of ``values``: ITU-R 601, rounded."""
    colours = Image.fromarray(voc_palette()[sorted(values)][None])
    return set(np.asarray(colours.convert("L")).ravel().tolist())


def _packed(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    # One number a colour, so that a mask is compared with its table in one pass.
    wide = rgb.astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]

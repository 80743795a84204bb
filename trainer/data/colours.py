"""The pixels of a mask file as class indices, however a tool has saved them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.headers import Header
from trainer.data.palette import voc_palette
from trainer.errors import DataError, some

GREY_HINT = (
    "unpack the original masks again: aeroplane and pottedplant have the same grey, so this cannot"
    " be undone"
)
Colour = tuple[int, int, int]
VOC_COLOURS: dict[Colour, int] = {
    (r, g, b): k for k, (r, g, b) in enumerate(voc_palette().tolist())
}


def indices_of(
    image: Image.Image,
    where: Path | str,
    colours: Mapping[Colour, int] = VOC_COLOURS,
    origin: str = "the data set's class table",
) -> npt.NDArray[np.uint8]:
    """``uint8 [H,W]`` indices of a mask that holds ``colours``, the colours of ``origin``; grey
    masks hold indices already.

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
        source = "the VOC palette" if colours is VOC_COLOURS else origin
        raise DataError(
            f"mask {where} holds colours that {source} lacks, at {strange.mean():.1%} of its"
            f" pixels: first {colour}",
            "the exact colours of the palette: resizing and JPEG blur them",
        )
    return np.array(list(colours.values()), np.uint8)[places]


def plain_indices(header: Header, where: Path | str) -> npt.NDArray[np.uint8] | None:
    """``uint8 [H,W]`` indices of a mask that holds the numbers themselves; None for colours.

    The numbers are those of a palette, or whole grey numbers of any depth. A grey mask may also be
    saved as three equal channels, with or without an opaque alpha channel.

    Args:
        header: of the mask.
        where: its name, for messages.

    Raises:
        DataError: grey numbers that are no class indices, such as those of instances.
    """
    image = header.image
    values = np.asarray(image)
    # Of 16-bit colours, Pillow returns the upper bytes only.
    if values.ndim == 3 and header.bits <= 8 and image.mode in ("RGB", "RGBA", "LA"):
        colours = values[..., : 1 if image.mode == "LA" else 3]
        is_opaque = image.mode == "RGB" or bool((values[..., -1] == 255).all())
        if is_opaque and (colours == colours[..., :1]).all():
            values = colours[..., 0]
    if values.ndim == 3:
        return None
    if image.mode == "L" and header.bits < 8:
        # Pillow spreads grey of 2 and 4 bits over 0 to 255.
        values = values // (255 // (2**header.bits - 1))
    if values.dtype.kind not in "bu" or values.dtype.itemsize > 1:
        low, high = values.min(), values.max()
        # A NaN fails this comparison, too.
        if not (0 <= low <= high <= 255 and (values == np.floor(values)).all()):
            raise DataError(
                f"mask {where} holds numbers from {low:g} to {high:g}",
                "class indices: whole numbers from 0 to 255",
                "where they number instances, write the class of each instance instead",
            )
    return values.astype(np.uint8)


def object_pixels(image: Image.Image, where: Path | str) -> npt.NDArray[np.uint8]:
    """``uint8 [H,W]``: 1 where a black and white mask shows an object, else 0.

    Args:
        image: the mask, of 0 and 255, or of 0 and 1.
        where: its name, for messages.

    Raises:
        DataError: other values.
    """
    grey = np.array(image if image.mode == "P" else image.convert("L"), np.uint8)
    values = set(np.unique(grey).tolist())
    # Pillow reads files of one bit a pixel as 0 and 255.
    if not values <= {0, 255} and not values <= {0, 1}:
        raise DataError(
            f"mask {where} holds the values {some(sorted(values), 8)}",
            "0 and 255, or 0 and 1, for data.masks=binary",
            "where resizing or JPEG has softened the edges: magick IN.png -threshold 50% OUT.png",
        )
    return (grey > 0).astype(np.uint8)


def reindexed(image: Image.Image, classes: int = 20) -> bool:
    """Whether a palette image has the VOC colours of ``classes`` labels at other indices, as some
    tools write them.
    """
    if image.mode != "P":
        return False
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    indices = [i for i in np.unique(np.asarray(image)).tolist() if i < len(palette)]
    colours, originals = palette[indices], voc_palette()[indices]
    # Masks hold the colours of background, labels and borders.
    in_voc = np.isin(_packed(colours), _packed(voc_palette()[[*range(classes + 1), 255]])).all()
    return bool(in_voc and (colours != originals).any())


def grey_levels(values: Iterable[int]) -> set[int]:
    """The grey levels that tools make of the VOC colours of ``values``: ITU-R 601, rounded."""
    colours = Image.fromarray(voc_palette()[sorted(values)][None])
    return set(np.asarray(colours.convert("L")).ravel().tolist())


def _packed(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    # One number a colour, so that a mask is compared with its table in one pass.
    wide = rgb.astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]

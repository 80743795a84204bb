"""From an opened image to 8-bit RGB pixels.

Colour profiles and gamma are ignored. Depth is scaled by the type of the samples, never by their
values. See ``headers.py`` for the files that trainer and serving have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .headers import SAMPLE_FORMAT, SAMPLE_FORMATS, Header, first, orientation
from .kinds import Unreadable

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]

# Pixels per band: only the result has the size of the image.
BAND = 1 << 20
ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
PHOTOMETRIC, MAX_SAMPLE, PLANES, MAX_SAMPLE_OF_TYPE, WHITE_IS_ZERO = 262, 281, 284, 341, 0
# Floats are rounded down, too; this part of a level makes up for k/255 in float32.
FLOAT_SLACK = 1e-3
# Values that white may have.
DEPTHS = frozenset(2**bits - 1 for bits in range(1, 32))
# Raw modes for the upper bytes of 16-bit colour, and for the lower ones. libtiff returns the byte
# order of the machine.
LOWER = {
    "RGB;16B": "RGB;16L",
    "RGBA;16B": "RGBA;16L",
    "RGB;16N": "RGB;16B",
    "RGBX;16N": "RGBX;16B",
    "RGBA;16N": "RGBA;16B",
}
# 16-bit grey and alpha are four bytes, read as four channels.
GREY_ALPHA16 = "LA;16B"
# libtiff returns the byte order of the machine, Pillow expects that of the file.
NATIVE = {"I;16B": "I;16N", "I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
OUTSIDE = "scale the values to 0 to 65535 and save them as 16-bit unsigned"


def to_rgb(header: Header) -> Pixels:
    """Pixels uint8 [H,W,3] RGB, upright, contiguous, with alpha on white.

    Raises:
        Unreadable: samples of unknown range (32-bit or signed integers, floats outside 0 to 1), or
            colours that are not read.
    """
    convert = _converter(header)
    width, height = header.image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = convert((0, top, width, bottom))
    # Pillow has already turned the pixels of a TIFF.
    return upright(pixels, orientation(header.kind, header.image))


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation."""
    # 5 to 8 exchange rows and columns; the rest are flips.
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _converter(header: Header) -> Callable[[Box], Any]:
    """Load the pixels, and return a function from a box to its uint8 RGB."""
    image = header.image
    if isinstance(image, TiffImageFile):
        _set_native(image)
        if header.bits == 8 and first(image.tag_v2.get(SAMPLE_FORMAT, 1)) == 2:
            _top(header)
    if image.mode in ("RGB", "RGBA") and _raw_mode(image) in (*LOWER, GREY_ALPHA16):
        if not _in_planes(image):
            return _colour16(header)
        if _stated_top(image):
            raise Unreadable(
                "a TIFF of 16-bit planes that states a range of its own",
                "the colours of a pixel side by side",
                OUTSIDE,
            )
    key = _key(header)
    image.load()
    if image.mode.startswith(("I", "F")):
        return _deep_grey(header, key)
    if image.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr", *ALPHA):
        raise Unreadable(
            f"colours of the kind {image.mode}, which are not read", hint="save as RGB"
        )
    # What is left is the transparency of a palette: a colour, not a number.
    transparent = image.mode in ALPHA or "transparency" in image.info

    def convert(box: Box) -> Any:
        part = image.crop(box)
        if key is not None:
            values = np.asarray(part.convert("RGB"))
            return np.where((values == key).all(axis=2, keepdims=True), np.uint8(255), values)
        return _on_white(part.convert("RGBA")) if transparent else part.convert("RGB")

    return convert


def _on_white(part: Image.Image) -> Image.Image:
    ground = Image.new("RGB", part.size, (255, 255, 255))
    ground.paste(part, mask=part.getchannel("A"))
    return ground


def _key(header: Header) -> Any:
    """The transparent grey or colour of a PNG, at the depth of its loaded pixels; removed from the
    image. None without one.
    """
    key = header.image.info.get("transparency")
    if header.kind != "PNG" or key is None or isinstance(key, bytes) or header.image.mode == "P":
        return None
    del header.image.info["transparency"]
    top = 2**header.bits - 1
    return (np.atleast_1d(key) & top) * (255 // top if header.bits < 8 else 1)


def _deep_grey(header: Header, key: Any) -> Callable[[Box], Any]:
    image = header.image
    top = _top(header)
    negative = (
        isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC, 1) == WHITE_IS_ZERO
    )

    def convert(box: Box) -> Any:
        values = np.asarray(image.crop(box))
        grey = _scale(values, top)
        if negative:
            grey = 255 - grey
        if key is not None:
            grey = np.where(values == key[0], np.uint8(255), grey)
        return grey[..., None]

    return convert


def _top(header: Header) -> int:
    """The value of white.

    Raises:
        Unreadable: it is unknown.
    """
    if not isinstance(header.image, TiffImageFile):
        return 65535
    if top := _stated_top(header.image):
        return top
    form = first(header.image.tag_v2.get(SAMPLE_FORMAT, 1))
    if form == 3:
        return 1
    if form == 1 and header.bits <= 16:
        return int(2**header.bits) - 1
    raise Unreadable(
        f"a TIFF of {SAMPLE_FORMATS.get(form, 'unknown')} integers of {header.bits} bits, which"
        " says nothing of their range",
        "8 or 16 bits, unsigned; or the tag SMaxSampleValue with the value of white, 2**n - 1",
        OUTSIDE,
    )


def _in_planes(image: ImageFile.ImageFile) -> bool:
    """Whether each colour of a TIFF is stored apart. Pillow then returns upper bytes in any case,
    which is one level off at most.
    """
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PLANES, 1) == 2


def _stated_top(image: ImageFile.ImageFile) -> int:
    """The value of white by its tags, 0 without them. Only 2**n - 1 is a depth; other numbers are
    statistics of the content.
    """
    for tag in (MAX_SAMPLE_OF_TYPE, MAX_SAMPLE):
        value = first(image.tag_v2.get(tag, 0)) if isinstance(image, TiffImageFile) else 0
        if value in DEPTHS:
            return int(value)
    return 0


def _scale(values: Any, top: int) -> Pixels:
    """Samples of 0 to ``top`` as 0 to 255, rounded down.

    Raises:
        Unreadable: a sample is outside.
    """
    low, high = values.min(), values.max()
    # A NaN fails this comparison, too.
    if not (low >= 0 and high <= top):
        raise Unreadable(
            f"samples of {low:g} to {high:g} where 0 is black and {top} is white",
            f"0 to {top}; TIFF's tag SMaxSampleValue may state another value of white, 2**n - 1",
            OUTSIDE,
        )
    if values.dtype.kind == "f":
        levels = values.astype(np.float64) * (255 / top) + FLOAT_SLACK
    else:
        levels = values.astype(np.uint64) * 255 // top
    return np.asarray(levels, np.uint8)


def _colour16(header: Header) -> Callable[[Box], Any]:
    """16-bit colours. Pillow keeps only upper bytes, so the lower ones are read separately."""
    upper = header.image
    raw = _raw_mode(upper)
    key = upper.info.pop("transparency", None)
    top = _stated_top(upper) or 65535
    lower = _lower_bytes(header, raw)
    upper.load()

    def convert(box: Box) -> Any:
        values = np.asarray(upper.crop(box)).astype(np.uint16) << 8
        values |= np.asarray(lower.crop(box))
        colours = values[..., :3]
        grey8 = _scale(colours, top)
        if values.shape[2] == 4:
            alpha = (values[..., 3:] // 257).astype(np.uint8)
            return _on_white(Image.fromarray(np.concatenate((grey8, alpha), axis=2), "RGBA"))
        if key is not None:
            return np.where((colours == key).all(axis=2, keepdims=True), np.uint8(255), grey8)
        return grey8

    return convert


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the bytes of the file are unpacked."""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _set_raw_mode(image: ImageFile.ImageFile, raw: str) -> None:
    args = image.tile[0].args
    image.tile = [image.tile[0]._replace(args=(raw, *args[1:]) if isinstance(args, tuple) else raw)]


def _set_native(image: TiffImageFile) -> None:
    if raw := NATIVE.get(_raw_mode(image)):
        _set_raw_mode(image, raw)
        if image.mode == "I;16B":
            image._mode = "I;16"


def _lower_bytes(header: Header, raw: str) -> Image.Image:
    """The lower bytes of 16-bit colours, in the mode of the image."""
    header.file.seek(0)
    again = type(header.image)(header.file)
    if raw != GREY_ALPHA16:
        _set_raw_mode(again, LOWER[raw])
        again.load()
        return again
    _set_raw_mode(again, "RGBA")
    grey, alpha = again.getchannel(1), again.getchannel(3)
    return Image.merge("RGBA", (grey, grey, grey, alpha))

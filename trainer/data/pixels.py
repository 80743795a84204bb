"""How an image file becomes pixels."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from trainer.errors import DataError

MAX_PIXELS = 100_000_000
SIZE_LIMIT = f"at most {MAX_PIXELS:,} pixels"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")
ORIENTATION_TAG = 0x0112
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
# What Pillow raises on damaged files, by format and kind of damage.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """``uint8 [H,W,3]`` RGB, EXIF orientation applied; grey, palette, alpha, CMYK and 16-bit are
    converted.

    Raises:
        DataError: not an image, truncated, or above 100 megapixels (checked before anything is
        decoded).
    """
    with open_image(path) as image:
        return to_rgb(image)


@contextmanager
def open_image(path: Path, formats: tuple[str, ...] = IMAGE_FORMATS) -> Iterator[Image.Image]:
    """An image whose pixels are not decoded yet; what goes wrong while it is open becomes a
    ``DataError``.

    Raises:
        DataError: unreadable; or ``expected`` is ``SIZE_LIMIT``, where the header says that it has
        too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
                yield image
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is too large: {error}", SIZE_LIMIT, "scale it down or leave it out"
        ) from error
    except UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            "a whole image, " + " or ".join(formats),
            "wsss-trainer check DATA lists all such files",
        ) from error


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as ``read_image`` will return them, read from the header only.

    Raises:
        DataError: not an image.
    """
    with open_image(path) as image:
        turned = image.getexif().get(ORIENTATION_TAG, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Pixels of an opened image as ``uint8 [H,W,3]`` RGB; alpha is laid on white, 16 bit is scaled
    to 8.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        deep = np.asarray(image, dtype=np.float64)
        top = deep.max(initial=0)
        scale = 255.0 / 65535.0 if top > 255 else 255.0 if image.mode == "F" and top <= 1 else 1.0
        return np.repeat(np.clip(deep * scale, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, rgba)
    return np.array(image.convert("RGB"), dtype=np.uint8)

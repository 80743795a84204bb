"""Image files of a data set as pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.bounds import Bounds, TooLarge
from trainer.data.headers import Header, opened, orientation
from trainer.data.kinds import Unreadable
from trainer.data.rgb import to_rgb, upright
from trainer.errors import DataError

MAX_PIXELS = 100_000_000
SIZE_LIMIT = f"at most {MAX_PIXELS:,} pixels"
BOUNDS = Bounds(pixels=MAX_PIXELS, passes=20 * MAX_PIXELS)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")
KINDS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
CHECK = "wsss-trainer check DATA lists all such files"


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """``uint8 [H,W,3]`` RGB, upright, alpha laid on white; every mode and depth is converted by the
    type of its samples.

    Raises:
        DataError: no image, damaged, of samples that no one knows the range of, or too costly to
            decode, which is found out before anything is decoded.
    """
    with open_header(path) as header:
        return to_rgb(header)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as ``read_image`` will return them, read from the header only.

    Raises:
        DataError: not an image.
    """
    with open_header(path, body=False) as header:
        return header.size


@contextmanager
def open_image(path: Path, kinds: tuple[str, ...] = KINDS) -> Iterator[Image.Image]:
    """An image whose pixels are not decoded yet, for those that are no photographs; what goes wrong
    while it is open becomes a ``DataError``.

    Raises:
        DataError: as ``read_image``.
    """
    with open_header(path) as header:
        if header.kind not in kinds:
            raise Unreadable(f"it is a {header.kind}", " or ".join(kinds))
        yield header.image


@contextmanager
def open_header(path: Path, body: bool = True) -> Iterator[Header]:
    """The header of an image file; what goes wrong while it is open becomes a ``DataError``.

    Args:
        path: of a regular file.
        body: False if no pixels are wanted.

    Raises:
        DataError: unreadable; ``expected`` is ``SIZE_LIMIT`` where it has too many pixels.
    """
    try:
        # Opening a pipe would wait for ever.
        if path.exists() and not path.is_file():
            raise Unreadable("no regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file, opened(file, BOUNDS, body) as header:
                yield header
    except TooLarge as error:
        correct = SIZE_LIMIT if error.bound == "pixels" else error.expected
        raise DataError(f"{path} is too large: {error.found}", correct, error.hint) from error
    except (Unreadable, OSError) as error:
        correct, hint = getattr(error, "expected", "a file"), getattr(error, "hint", "")
        hint = f"{hint}; {CHECK}" if hint else CHECK
        raise DataError(f"{path} cannot be read: {error}", correct, hint) from error


def as_shown(pixels: npt.NDArray[np.uint8], header: Header) -> npt.NDArray[np.uint8]:
    """``pixels`` of a mask, turned as its EXIF data say, like those of images."""
    # Pillow has already turned the pixels of a TIFF, and then calls it upright.
    return upright(pixels, orientation(header.kind, header.image))

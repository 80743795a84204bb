"""What decoding an image may cost, and the refusal of files that would cost more.

See ``headers.py`` for the files that trainer and serving have in common.
"""

from __future__ import annotations

import io
import math
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

from PIL import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .kinds import Unreadable

# The next marker of a JPEG: within the data of a scan, 0xff is followed by 0 or is a restart.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
SCAN, END = 0xDA, 0xD9
# Costs other than pixels, in pixels that could be decoded in the same time.
SCAN_PIXELS, TILE_PIXELS, RUN_PIXELS = 10_000, 2_000, 500
COMPRESSION, ROWS, TILE_WIDTH, TILE_HEIGHT = 259, 278, 322, 323


class TooLarge(Unreadable):
    """An image above one of the bounds; nothing was decoded.

    Attributes:
        bound: name of the field of :class:`Bounds`.
    """

    def __init__(self, found: str, expected: str, hint: str, bound: str) -> None:
        super().__init__(found, expected, hint)
        self.bound = bound


@dataclass(frozen=True)
class Bounds:
    """What decoding one image may cost.

    Attributes:
        pixels: of the image, and of a tile of a TIFF.
        passes: pixels that decoding visits; each scan of a progressive JPEG visits all of them.
        aspect: ratio of the longer to the shorter side.
    """

    pixels: int
    passes: int
    aspect: float = math.inf


def check_size(height: int, width: int, bounds: Bounds) -> None:
    """Refuse a size before it is allocated.

    Raises:
        TooLarge: more pixels, or a larger aspect ratio, than ``bounds`` allows.
        Unreadable: a side is 0.
    """
    if height < 1 or width < 1:
        raise Unreadable(f"the image is {height}x{width}", "at least one pixel")
    if height * width > bounds.pixels:
        raise TooLarge(
            f"the image has {height}x{width} = {height * width:,} pixels",
            f"at most {bounds.pixels:,} pixels",
            "scale it down",
            "pixels",
        )
    if max(height, width) > bounds.aspect * min(height, width):
        raise TooLarge(
            f"the image is {height}x{width}, too elongated",
            f"a longer side of at most {bounds.aspect:g} times the shorter one",
            "cut it into pieces",
            "aspect",
        )


def check_passes(kind: str, file: BinaryIO, image: ImageFile.ImageFile, bounds: Bounds) -> None:
    """Refuse a file that takes too long to decode, whatever its size.

    Raises:
        TooLarge: it does.
    """
    pixels = image.width * image.height
    passes, what = pixels, "pixels"
    if kind == "JPEG":
        scans = _scans(file, bounds.passes // (pixels + SCAN_PIXELS))
        passes, what = (
            scans * (pixels + SCAN_PIXELS),
            f"{scans:,} scans or more of {pixels:,} pixels",
        )
    elif isinstance(image, TiffImageFile):
        passes, what = _tiff_passes(file, image, bounds)
    elif kind == "BMP" and image.tile and image.tile[0].codec_name == "bmp_rle":
        # Pillow decodes run lengths in Python.
        passes = RUN_PIXELS * (pixels + file.seek(0, io.SEEK_END))
        what = "a BMP of run lengths"
    if passes > bounds.passes:
        raise TooLarge(
            f"{what} take as long to decode as {passes:,} pixels",
            f"at most {bounds.passes:,}",
            "save it as PNG, or as a JPEG that is not progressive",
            "passes",
        )


def _scans(file: BinaryIO, enough: int) -> int:
    """Scans of a JPEG; a lower limit if there are more than ``enough``."""
    file.seek(0)
    data = file.read()
    # An upper limit, because a preview has scans, too. The exact count is rarely needed.
    most = data.count(bytes((0xFF, SCAN)))
    if most <= enough:
        return most
    scans, at = 0, 2
    while scans <= enough and (marker := MARKER.search(data, at)):
        code, at = data[marker.start() + 1], marker.end()
        if code == END:
            break
        scans += code == SCAN
        if len(data) < at + 2:
            break
        at += struct.unpack_from(">H", data, at)[0]
    return scans


def _tiff_passes(file: BinaryIO, image: TiffImageFile, bounds: Bounds) -> tuple[int, str]:
    """Pixels that decoding visits, and that in words. A tile may be larger than the image."""
    tags = image.tag_v2
    width, height = image.size
    if TILE_WIDTH in tags:
        wide, high = int(tags[TILE_WIDTH]), int(tags.get(TILE_HEIGHT, 0))
        check_size(high, wide, Bounds(bounds.pixels, bounds.passes))
    else:
        high = min(int(tags.get(ROWS, height)), max(width, height)) or 1
        wide = max(width, height)
    tiles = math.ceil(max(width, height) / high) * math.ceil(max(width, height) / wide)
    if tags.get(COMPRESSION, 1) in (6, 7):
        file.seek(0)
        scans = file.read().count(bytes((0xFF, SCAN)))
        if scans > tiles:
            return scans * (wide * high + SCAN_PIXELS), f"{scans:,} scans of {wide * high:,} pixels"
    return width * height + tiles * TILE_PIXELS, f"{tiles:,} tiles or strips"

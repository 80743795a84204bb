"""What an image file is and what decoding it would cost, told before any pixel is decoded.

This file, ``kinds.py`` and ``rgb.py`` stand word for word in the trainer and in serving, which
share no code; a test compares them. So both read a file to the same pixels.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image, ImageFile, TiffImagePlugin
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .kinds import HEAD_BYTES, READ, Unreadable, kind_of

# Pillow's own reader of uncompressed TIFF mistakes 16-bit planes that lie apart for 8-bit ones.
# libtiff reads every layout.
TiffImagePlugin.READ_LIBTIFF = True
ORIENTATION = 0x0112
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")
MAX_CHUNKS = 100_000
# A marker of a JPEG behind data of a scan, whose own 0xff bytes are followed by 0 or a restart.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
SCAN, END = 0xDA, 0xD9
# What a step takes that is no pixel, in pixels that could be passed over in the same time.
SCAN_PIXELS, TILE_PIXELS, RUN_PIXELS = 10_000, 2_000, 500
BITS, COMPRESSION, ROWS, TILE_WIDTH, TILE_HEIGHT = 258, 259, 278, 322, 323
SAMPLE_FORMAT = 339
SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "undefined"}
# What Pillow raises on damaged files, by format and kind of damage.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    Warning,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class TooLarge(Unreadable):
    """Above one of the bounds; nothing was decoded.

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
        passes: pixels that decoding goes over: a progressive JPEG is gone over once a scan.
        aspect: ratio of the longer to the shorter side.
    """

    pixels: int
    passes: int
    aspect: float = math.inf


@dataclass(frozen=True)
class Header:
    """An image whose pixels are not decoded yet.

    Attributes:
        kind: JPEG, PNG, WEBP, BMP or TIFF.
        file: where ``image`` reads from; of a PNG, without its metadata.
        image: as Pillow opened it.
        bits: of a sample in the file.
        several_frames: only the first of its frames or pages is read.
        orientation: of EXIF, 1 to 8.
    """

    kind: str
    file: BinaryIO
    image: ImageFile.ImageFile
    bits: int
    several_frames: bool
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        # Of a TIFF, Pillow tells the upright size itself.
        turned = self.kind != "TIFF" and self.orientation >= 5
        width, height = self.image.size
        return (width, height) if turned else (height, width)


@contextmanager
def opened(file: BinaryIO, bounds: Bounds, body: bool = True) -> Iterator[Header]:
    """The header of an image file, checked against ``bounds``.

    Args:
        file: read from its beginning.
        bounds: checked before anything of the image's size is allocated.
        body: False if no pixels are wanted: the file is not read as a whole, and what takes reading
            it (``Bounds.passes``) is not checked.

    Raises:
        TooLarge: above ``bounds``.
        Unreadable: of another kind or damaged; also where the block that uses the header fails.
    """
    kind = kind_of(file.read(HEAD_BYTES))
    try:
        several = False
        if kind == "PNG":
            file, several = _plain_png(file, body)
        elif kind == "JPEG":
            _check_segments(file)
        elif kind == "WEBP":
            # Its decoder allocates the canvas as soon as it is opened.
            check_size(*_webp_size(file), bounds)
        file.seek(0)
        with _open(kind, file) as image:
            check_size(image.height, image.width, bounds)
            if body:
                _check_passes(kind, file, image, bounds)
            several = several or (kind != "JPEG" and bool(getattr(image, "is_animated", False)))
            bits = _bits(kind, file, image)
            yield Header(kind, file, image, bits, several, orientation(kind, image))
    except DECODER_ERRORS as error:
        raise Unreadable(
            f"the {kind} cannot be decoded: {_short(error)}", READ, "open the file in a viewer"
        ) from error


def check_size(height: int, width: int, bounds: Bounds) -> None:
    """Refuse a size before it is allocated.

    Raises:
        TooLarge: more pixels, or more elongated, than ``bounds`` allows.
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


def orientation(kind: str, image: Image.Image) -> int:
    """How EXIF says that the image is turned, 1 to 8; damaged metadata says nothing."""
    # Of a PNG without EXIF, Pillow would decode the image to look behind its pixels.
    if kind == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1
    return value if 1 <= value <= 8 else 1


def _open(kind: str, file: BinaryIO) -> ImageFile.ImageFile:
    """The header, by the one class for this kind: ``Image.open`` would try all and only warn of
    large images.
    """
    classes: dict[str, type[ImageFile.ImageFile]] = {
        "JPEG": JpegImageFile,
        "PNG": PngImageFile,
        "WEBP": WebPImageFile,
        "TIFF": TiffImageFile,
        "BMP": BmpImageFile,
    }
    try:
        return classes[kind](file)
    except SyntaxError as error:
        if kind != "TIFF" or "unknown pixel mode" not in str(error):
            raise
        tags = _tags(file)
        bits, form = first(tags.get(BITS, 1)), first(tags.get(SAMPLE_FORMAT, 1))
        raise Unreadable(
            f"a TIFF of {tags.get(277, 1)} {SAMPLE_FORMATS.get(form, 'unknown')} samples of"
            f" {bits} bits a pixel, which is not read",
            "8 or 16 bits a sample, unsigned, in grey, RGB or CMYK, or grey floats of 0 to 1",
            "convert it to PNG",
        ) from error


def _tags(file: BinaryIO) -> Any:
    """The tags of the first page of a TIFF."""
    file.seek(0)
    start = file.read(8)
    tags = ImageFileDirectory_v2(start + (file.read(8) if 43 in start[2:4] else b""))
    file.seek(tags.next)
    tags.load(file)
    return tags


def first(value: Any) -> Any:
    """The value of a tag that may have one for each sample."""
    return value[0] if isinstance(value, tuple) and value else value


def _plain_png(file: BinaryIO, body: bool) -> tuple[BinaryIO, bool]:
    """A PNG without text, profiles and other metadata, its pixels in one chunk; and whether it has
    more frames.

    What is left out may be damaged, or larger than Pillow takes it; many small chunks take Pillow
    minutes.
    """
    file.seek(len(PNG_START))
    kept: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    several = False
    for _ in range(MAX_CHUNKS):
        start = file.read(8)
        if len(start) < 8 or start[4:] == b"IEND":
            break
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IDAT" and body:
            pixels.append(file.read(length))
            file.seek(4, io.SEEK_CUR)
        elif kind in PNG_CHUNKS and kind not in kept:
            data, check = file.read(length), file.read(4)
            if kind[0] & 32 == 0 or check == struct.pack(">I", zlib.crc32(kind + data)):
                kept[kind] = start + data + check
        else:
            if kind[0] & 32 == 0 and kind not in (*PNG_CHUNKS, b"IDAT"):
                raise Unreadable(f"a PNG with the chunk {kind!r}, which is not read", READ)
            several = several or kind == b"acTL"
            file.seek(length + 4, io.SEEK_CUR)
    else:
        raise TooLarge(
            f"a PNG of more than {MAX_CHUNKS:,} chunks", "fewer", "save it anew", "passes"
        )
    whole = b"".join(pixels)
    parts = [PNG_START, *(kept[kind] for kind in PNG_CHUNKS if kind in kept)]
    for kind, data in ((b"IDAT", whole), (b"IEND", b"")):
        parts += [struct.pack(">I", len(data)), kind, data]
        parts.append(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))
    return io.BytesIO(b"".join(parts)), several


def _check_segments(file: BinaryIO) -> None:
    """Refuse a JPEG of so many segments that Pillow, which reads them in Python, takes minutes.

    Raises:
        TooLarge: as said.
    """
    file.seek(2)
    for _ in range(MAX_CHUNKS):
        start = file.read(4)
        if len(start) < 4 or start[0] != 0xFF or start[1] == SCAN:
            return
        # A marker may be filled up with 0xff.
        step = -3 if start[1] == 0xFF else struct.unpack(">H", start[2:])[0] - 2
        file.seek(step, io.SEEK_CUR)
    raise TooLarge(
        f"a JPEG of more than {MAX_CHUNKS:,} segments", "fewer", "save it anew", "passes"
    )


def _webp_size(file: BinaryIO) -> tuple[int, int]:
    """Height and width of the canvas from the first 30 bytes."""
    file.seek(0)
    data = file.read(30)
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return height, width


def _check_passes(kind: str, file: BinaryIO, image: ImageFile.ImageFile, bounds: Bounds) -> None:
    """Refuse what takes long to decode, whatever its size.

    Raises:
        TooLarge: as said.
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
        # Pillow's decoder of run lengths is written in Python.
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
    """Scans of a JPEG, at least where there are more than ``enough``."""
    file.seek(0)
    data = file.read()
    # More than the scans, since a preview has some too; so seldom is the exact count needed.
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
    """What decoding goes over, and that in words. A tile may be larger than the image."""
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


def _bits(kind: str, file: BinaryIO, image: ImageFile.ImageFile) -> int:
    """Of a sample in the file."""
    if kind == "PNG":
        file.seek(24)
        return file.read(1)[0]
    if isinstance(image, TiffImageFile):
        return int(first(image.tag_v2.get(BITS, 1)))
    return 8


def _short(error: Exception) -> str:
    """The decoder's own words, without line breaks or memory addresses such as ``<_io.BytesIO
    object at 0x7f...>``.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return "the data is damaged" if "0x" in text else text[:200]

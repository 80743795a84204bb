"""What an image file is and what decoding it would cost, found before any pixel is decoded.

This file, ``bounds.py``, ``kinds.py`` and ``rgb.py`` exist in the trainer and in serving, which
share no code; a test keeps them equal. So both read a file to the same pixels.
"""

from __future__ import annotations

import io
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

from .bounds import SCAN, Bounds, TooLarge, check_passes, check_size
from .kinds import HEAD_BYTES, READ, Unreadable, kind_of

# Pillow's own reader of uncompressed TIFF takes 16-bit planes for 8-bit ones. libtiff reads every
# layout.
TiffImagePlugin.READ_LIBTIFF = True
ORIENTATION = 0x0112
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")
MAX_CHUNKS = 100_000
BITS, SAMPLES, SAMPLE_FORMAT = 258, 277, 339
SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "undefined"}
# What Pillow raises for damaged files, depending on format and damage.
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


@dataclass(frozen=True)
class Header:
    """An image whose pixels are not decoded yet.

    Attributes:
        kind: JPEG, PNG, WEBP, BMP or TIFF.
        file: where ``image`` reads from; a PNG without its metadata.
        image: as Pillow opened it.
        bits: per sample in the file.
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
        # Pillow returns the upright size of a TIFF by itself.
        is_turned = self.kind != "TIFF" and self.orientation >= 5
        width, height = self.image.size
        return (width, height) if is_turned else (height, width)


@contextmanager
def opened(file: BinaryIO, bounds: Bounds, body: bool = True) -> Iterator[Header]:
    """The header of an image file, checked against ``bounds`` before memory of its size is
    allocated.

    Args:
        file: read from its beginning.
        body: False if no pixels are needed: the file is not read as a whole, and ``Bounds.passes``,
            which would require that, is not checked.

    Raises:
        TooLarge: above ``bounds``.
        Unreadable: of another kind or damaged; also if the block that uses the header fails.
    """
    kind = kind_of(file.read(HEAD_BYTES))
    try:
        several = False
        if kind == "PNG":
            file, several = _plain_png(file, body)
        elif kind == "JPEG":
            _check_segments(file)
        elif kind == "WEBP":
            # Its decoder allocates the canvas when it is opened.
            check_size(*_webp_size(file), bounds)
        file.seek(0)
        with _open(kind, file) as image:
            check_size(image.height, image.width, bounds)
            if body:
                check_passes(kind, file, image, bounds)
            several = several or (kind != "JPEG" and bool(getattr(image, "is_animated", False)))
            bits = _bits(kind, file, image)
            yield Header(kind, file, image, bits, several, orientation(kind, image))
    except DECODER_ERRORS as error:
        raise Unreadable(
            f"the {kind} cannot be decoded: {_short(error)}", READ, "open the file in a viewer"
        ) from error


def orientation(kind: str, image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; damaged metadata counts as 1."""
    # Without EXIF, Pillow would decode the PNG to look for it behind the pixels.
    if kind == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1
    return value if 1 <= value <= 8 else 1


def _open(kind: str, file: BinaryIO) -> ImageFile.ImageFile:
    """The header. ``Image.open`` would try every format, and only warn of large images."""
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
            f"a TIFF of {tags.get(SAMPLES, 1)} {SAMPLE_FORMATS.get(form, 'unknown')} samples of"
            f" {bits} bits a pixel, which is not read",
            "8 or 16 bits a sample, unsigned, in grey, RGB or CMYK, or grey floats of 0 to 1",
            "convert it to PNG",
        ) from error


def _tags(file: BinaryIO) -> Any:
    """Tags of a TIFF's first page."""
    file.seek(0)
    start = file.read(8)
    tags = ImageFileDirectory_v2(start + (file.read(8) if 43 in start[2:4] else b""))
    file.seek(tags.next)
    tags.load(file)
    return tags


def first(value: Any) -> Any:
    """The value of a tag that may have one per sample."""
    return value[0] if isinstance(value, tuple) and value else value


def _plain_png(file: BinaryIO, body: bool) -> tuple[BinaryIO, bool]:
    """A PNG without metadata and with its pixels in one chunk, and whether it has more frames."""
    file.seek(len(PNG_START))
    chunks: dict[bytes, bytes] = {}
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
        elif kind in PNG_CHUNKS and kind not in chunks:
            data, check = file.read(length), file.read(4)
            if kind[0] & 32 == 0 or check == struct.pack(">I", zlib.crc32(kind + data)):
                chunks[kind] = start + data + check
        else:
            if kind[0] & 32 == 0 and kind not in (*PNG_CHUNKS, b"IDAT"):
                raise Unreadable(f"a PNG with the chunk {kind!r}, which is not read", READ)
            # Skip text, profiles and other metadata: it may be damaged, or larger than Pillow
            # accepts.
            several = several or kind == b"acTL"
            file.seek(length + 4, io.SEEK_CUR)
    else:
        raise TooLarge(
            f"a PNG of more than {MAX_CHUNKS:,} chunks", "fewer", "save it anew", "passes"
        )
    # One chunk, because Pillow takes minutes for many small ones.
    whole = b"".join(pixels)
    parts = [PNG_START, *(chunks[kind] for kind in PNG_CHUNKS if kind in chunks)]
    for kind, data in ((b"IDAT", whole), (b"IEND", b"")):
        parts += [struct.pack(">I", len(data)), kind, data]
        parts.append(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))
    return io.BytesIO(b"".join(parts)), several


def _check_segments(file: BinaryIO) -> None:
    """Refuse a JPEG with so many segments that Pillow, which reads them in Python, takes minutes.

    Raises:
        TooLarge: it has.
    """
    file.seek(2)
    for _ in range(MAX_CHUNKS):
        start = file.read(4)
        if len(start) < 4 or start[0] != 0xFF or start[1] == SCAN:
            return
        # Padding of 0xff may precede a marker.
        step = -3 if start[1] == 0xFF else struct.unpack(">H", start[2:])[0] - 2
        file.seek(step, io.SEEK_CUR)
    raise TooLarge(
        f"a JPEG of more than {MAX_CHUNKS:,} segments", "fewer", "save it anew", "passes"
    )


def _webp_size(file: BinaryIO) -> tuple[int, int]:
    """Height and width of the canvas, from the first 30 bytes."""
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


def _bits(kind: str, file: BinaryIO, image: ImageFile.ImageFile) -> int:
    if kind == "PNG":
        file.seek(24)
        return file.read(1)[0]
    if isinstance(image, TiffImageFile):
        return int(first(image.tag_v2.get(BITS, 1)))
    return 8


def _short(error: Exception) -> str:
    """The decoder's own words, without line breaks and memory addresses."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "the data is damaged" if "0x" in text else text[:200]

"""From untrusted bytes to RGB pixels.

Every limit is checked before anything of the image's size is allocated: length of the bytes, kind,
pixel count, aspect, the time and the memory that decoding will take. Pixels equal those that the
trainer reads, by the modules that both have: :mod:`serving.images.headers`, ``kinds``, ``rgb``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from serving.config import Limits
from serving.errors import FieldError, ImageError, ImageTooLarge
from serving.images.headers import DECODER_ERRORS, Bounds, Header, TooLarge, check_size, opened
from serving.images.kinds import Unreadable
from serving.images.rgb import Pixels, to_rgb, upright

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
# What decoding allocates at most, in bytes a pixel: the result's three, and what Pillow and the
# decoder of the format hold beside it (a JPEG of several scans its coefficients, a WebP two
# canvases, a TIFF maybe one strip as large as the image).
PIXEL_BYTES = {"JPEG": 3, "PNG": 11, "BMP": 7, "TIFF": 19, "WEBP": 20}
SLOW_JPEG_BYTES = 15
RGB_BYTES = 3
# How the limits are called in ``ErrorInfo.metadata``.
METADATA = {
    "pixels": ("max_image_pixels", "max_pixels"),
    "passes": ("max_decoded_passes", "max_passes"),
    "aspect": ("max_aspect", "max_aspect"),
}
# Takes bytes of memory from a budget for as long as it is entered.
Reserve = Callable[[int], AbstractContextManager[None]]


@dataclass(frozen=True)
class Picture:
    """An upright image.

    Attributes:
        pixels: uint8 [H,W,3] RGB, contiguous.
        format: JPEG, PNG, WEBP, BMP, TIFF or RAW.
        mode: Pillow's name of the file's own colour mode.
        several_frames: the file has more frames or pages, and only the first was read.
        orientation: the EXIF orientation that was undone, 1 if none.
    """

    pixels: Pixels
    format: str
    mode: str = "RGB"
    several_frames: bool = False
    orientation: int = 1


def decode(data: bytes, limits: Limits, reserve: Reserve = lambda _: nullcontext()) -> Picture:
    """The first frame of an encoded image.

    Args:
        data: the file.
        limits: of what is decoded.
        reserve: asked for the memory that decoding needs, and told when it is over; what it raises
            is passed on.

    Raises:
        ImageTooLarge: too many bytes or pixels, too elongated, or too long to decode; nothing was
            decoded.
        ImageError: empty, of another kind, damaged or truncated, or of samples whose range nobody
            states.
    """
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes",
            f"at most {limits.max_bytes:,} bytes",
            "send a smaller or more compressed image",
            field="image.encoded",
            metadata={"max_image_bytes": str(limits.max_bytes)},
        )
    try:
        with opened(io.BytesIO(data), _bounds(limits)) as header:
            mode = header.image.mode
            with reserve(_needed_bytes(header)):
                pixels = _pixels(data, header)
    except Unreadable as error:
        raise _refusal(error, limits, "image.encoded") from error
    return Picture(pixels, header.kind, mode, header.several_frames, header.orientation)


def from_raw(pixels: bytes, height: int, width: int, limits: Limits) -> Picture:
    """RGB pixels that the caller decoded.

    Raises:
        ImageTooLarge: above ``limits``.
        FieldError: ``pixels`` is not ``height * width * 3`` bytes.
    """
    try:
        check_size(height, width, _bounds(limits))
    except Unreadable as error:
        raise _refusal(error, limits, "image.raw") from error
    if len(pixels) != height * width * RGB_BYTES:
        raise FieldError(
            f"{len(pixels):,} bytes of pixels for an image of {height}x{width}",
            f"{height * width * RGB_BYTES:,} bytes: uint8 RGB, row by row",
            field="image.raw.pixels",
        )
    return Picture(np.frombuffer(pixels, np.uint8).reshape(height, width, 3), "RAW")


def _bounds(limits: Limits) -> Bounds:
    return Bounds(limits.max_pixels, limits.max_passes, limits.max_aspect)


def _refusal(error: Unreadable, limits: Limits, field: str) -> ImageError:
    """The error for the caller; its metadata name the limit."""
    if not isinstance(error, TooLarge):
        return ImageError(error.found, error.expected, error.hint, field=field)
    name, setting = METADATA[error.bound]
    return ImageTooLarge(
        error.found,
        error.expected,
        error.hint,
        field=field,
        metadata={name: f"{getattr(limits, setting):.15g}"},
    )


def _is_fast(header: Header) -> bool:
    return header.kind == "JPEG" and header.image.mode in ("RGB", "L")


def _needed_bytes(header: Header) -> int:
    """Memory that decoding takes at most."""
    each = PIXEL_BYTES[header.kind]
    if not _is_fast(header) or header.image.info.get("progressive"):
        each = max(each, SLOW_JPEG_BYTES if header.kind == "JPEG" else 0)
    return header.image.width * header.image.height * each


def _pixels(data: bytes, header: Header) -> Pixels:
    if _is_fast(header):
        pixels = _fast_jpeg(data, header.image.size)
        if pixels is not None:
            return upright(pixels, header.orientation)
    return to_rgb(header)


def _fast_jpeg(data: bytes, size: tuple[int, int]) -> Pixels | None:
    """Pixels as Pillow would give them, in half of the time; None for what only Pillow decodes,
    such as odd subsampling.

    Raises:
        Unreadable: two headers disagree about the size; only the one that was checked is decoded.
    """
    import simplejpeg

    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if (width, height) != size:
            raise Unreadable("a JPEG whose headers disagree about the size")
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    except DECODER_ERRORS:
        return None
    return pixels

"""From untrusted bytes to RGB pixels.

Every limit is checked before memory of the image's size is allocated: bytes, kind, pixels, aspect,
decoding time and memory. The pixels equal those that the trainer reads, because both have the
modules ``bounds``, ``headers``, ``kinds`` and ``rgb``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from serving.config import Limits
from serving.errors import FieldError, ImageError, ImageTooLarge
from serving.images.bounds import Bounds, TooLarge, check_size
from serving.images.headers import DECODER_ERRORS, Header, opened
from serving.images.kinds import Unreadable
from serving.images.rgb import Pixels, to_rgb, upright

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Peak memory of decoding in bytes per pixel: three for the result, and what Pillow and the decoder
# hold beside it. A WebP has two canvases, a TIFF perhaps one strip as large as the image, and a
# progressive JPEG all of its coefficients.
PIXEL_BYTES = {"JPEG": 3, "PNG": 11, "BMP": 7, "TIFF": 19, "WEBP": 20}
SLOW_JPEG_BYTES = 15
RGB_BYTES = 3
# Names of the limits in ``ErrorInfo.metadata``.
METADATA = {
    "pixels": ("max_image_pixels", "max_pixels"),
    "passes": ("max_decoded_passes", "max_passes"),
    "aspect": ("max_aspect", "max_aspect"),
}
# Takes bytes from a memory budget while it is entered.
Reserve = Callable[[int], AbstractContextManager[None]]


@dataclass(frozen=True)
class Picture:
    """An upright image.

    Attributes:
        pixels: uint8 [H,W,3] RGB, contiguous.
        format: JPEG, PNG, WEBP, BMP, TIFF or RAW.
        mode: Pillow's name of the file's colour mode.
        several_frames: only the first of several frames or pages was read.
        orientation: EXIF orientation that was undone, 1 if none.
    """

    pixels: Pixels
    format: str
    mode: str = "RGB"
    several_frames: bool = False
    orientation: int = 1


def decode(data: bytes, limits: Limits, reserve: Reserve = lambda _: nullcontext()) -> Picture:
    """The first frame of an encoded image.

    Args:
        reserve: enters the memory that decoding needs into a budget; its errors are passed on.

    Raises:
        ImageTooLarge: too many bytes or pixels, too elongated, or too slow to decode; nothing was
            decoded.
        ImageError: empty, of an unsupported kind, damaged, or with samples of unknown range.
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
    """RGB pixels that the caller has decoded.

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
            f"{height * width * RGB_BYTES:,} bytes of uint8 RGB, row by row",
            field="image.raw.pixels",
        )
    return Picture(np.frombuffer(pixels, np.uint8).reshape(height, width, 3), "RAW")


def _bounds(limits: Limits) -> Bounds:
    return Bounds(limits.max_pixels, limits.max_passes, limits.max_aspect)


def _refusal(error: Unreadable, limits: Limits, field: str) -> ImageError:
    """The error for the caller, with the limit in its metadata."""
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
    each = PIXEL_BYTES[header.kind]
    if header.kind == "JPEG" and (not _is_fast(header) or header.image.info.get("progressive")):
        each = SLOW_JPEG_BYTES
    return header.image.width * header.image.height * each


def _pixels(data: bytes, header: Header) -> Pixels:
    if _is_fast(header):
        pixels = _fast_jpeg(data, header.image.size)
        if pixels is not None:
            return upright(pixels, header.orientation)
    return to_rgb(header)


def _fast_jpeg(data: bytes, size: tuple[int, int]) -> Pixels | None:
    """The pixels that Pillow would give, in half of the time; None if only Pillow can decode them.

    Raises:
        Unreadable: two headers disagree about the size, of which only one was checked.
    """
    import simplejpeg

    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if (width, height) != size:
            raise Unreadable("a JPEG whose headers disagree about the size")
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    # Odd subsampling, for example. Pillow decodes it, or reports the damage in its own words.
    except DECODER_ERRORS:
        return None
    return pixels

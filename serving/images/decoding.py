"""From bytes that nobody vouches for to RGB pixels.

Every limit is checked on the header, before anything of the image's size is allocated: length of
the bytes, magic, pixel count, aspect. Pixels equal those that the trainer reads: EXIF orientation
undone, alpha laid on white, 16 bit scaled to 8, grey, palette and CMYK turned into RGB. Colour
profiles are ignored.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from serving.config import Limits
from serving.errors import FieldError, ImageError, ImageTooLarge

Pixels = npt.NDArray[np.uint8]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = "a whole JPEG, PNG, WebP, BMP or TIFF"
EXIF_ORIENTATION = 0x0112
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH = 322, 323


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


def decode(data: bytes, limits: Limits) -> Picture:
    """The first frame of an encoded image.

    Raises:
        ImageTooLarge: too many bytes or pixels, or too elongated; nothing was decoded.
        ImageError: empty, of another format, damaged or truncated.
    """
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes",
            f"at most {limits.max_bytes:,} bytes",
            "send a smaller or more compressed image",
            field="image.encoded",
            metadata={"max_image_bytes": str(limits.max_bytes)},
        )
    name = _format(data)
    try:
        # WebP's decoder allocates the canvas as soon as it is opened.
        if name == "WEBP":
            check_size(*_webp_size(data), limits)
        with _open(name, data) as image:
            width, height = image.size
            check_size(height, width, limits)
            orientation = _orientation(image)
            # Of a TIFF, Pillow turns the pixels upright as it loads them; so what is left to do is
            # asked afterwards.
            pixels = _upright(_pixels(name, data, image, limits), _orientation(image))
            mode, several = image.mode, bool(getattr(image, "is_animated", False))
    except ImageError:
        raise
    # Pillow answers hostile bytes with a dozen exception types; each of them means the same to the
    # caller.
    except Exception as error:
        raise ImageError(
            f"the {name} cannot be decoded: {_short(error)}",
            FORMATS,
            "open the file in a viewer",
            field="image.encoded",
        ) from error
    return Picture(np.ascontiguousarray(pixels), name, mode, several, orientation)


def from_raw(pixels: bytes, height: int, width: int, limits: Limits) -> Picture:
    """RGB pixels that the caller decoded.

    Raises:
        ImageTooLarge: above ``limits``.
        FieldError: ``pixels`` is not ``height * width * 3`` bytes.
    """
    check_size(height, width, limits, field="image.raw")
    if len(pixels) != height * width * 3:
        raise FieldError(
            f"{len(pixels):,} bytes of pixels for an image of {height}x{width}",
            f"{height * width * 3:,} bytes: uint8 RGB, row by row",
            field="image.raw.pixels",
        )
    return Picture(np.frombuffer(pixels, np.uint8).reshape(height, width, 3), "RAW")


def check_size(height: int, width: int, limits: Limits, field: str = "image.encoded") -> None:
    """Refuse a size before it is allocated.

    Raises:
        ImageTooLarge: more pixels, or more elongated, than ``limits`` allows.
        ImageError: a side is 0.
    """
    if height < 1 or width < 1:
        raise ImageError(f"the image is {height}x{width}", "at least one pixel", field=field)
    if height * width > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {height}x{width} = {height * width:,} pixels",
            f"at most {limits.max_pixels:,} pixels",
            "scale the image down",
            field=field,
            metadata={"max_image_pixels": str(limits.max_pixels)},
        )
    if max(height, width) > limits.max_aspect * min(height, width):
        raise ImageTooLarge(
            f"the image is {height}x{width}, too elongated",
            f"a longer side of at most {limits.max_aspect:g} times the shorter one",
            "cut it into pieces",
            field=field,
            metadata={"max_aspect": f"{limits.max_aspect:g}"},
        )


def _format(data: bytes) -> str:
    if not data:
        raise ImageError("the image is empty", FORMATS, field="image.encoded")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    raise ImageError(
        f"no image: it starts with {data[:12]!r}",
        FORMATS,
        "look at the file's contents",
        field="image.encoded",
    )


def _open(name: str, data: bytes) -> ImageFile.ImageFile:
    """The header, by the one class for this format: ``Image.open`` would try all and only warn of
    large images.
    """
    classes: dict[str, type[ImageFile.ImageFile]] = {
        "JPEG": JpegImageFile,
        "PNG": PngImageFile,
        "WEBP": WebPImageFile,
        "TIFF": TiffImageFile,
        "BMP": BmpImageFile,
    }
    return classes[name](io.BytesIO(data))


def _webp_size(data: bytes) -> tuple[int, int]:
    """Height and width of the canvas from the first 30 bytes."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return height, width


def _pixels(name: str, data: bytes, image: ImageFile.ImageFile, limits: Limits) -> Pixels:
    if name == "JPEG" and image.mode in ("RGB", "L"):
        return _fast_jpeg(data, image.size)
    if name == "TIFF" and isinstance(image, TiffImageFile):
        # A tile may be larger than the image, and is decoded whole.
        tile = (
            int(image.tag_v2.get(TIFF_TILE_LENGTH, 1)),
            int(image.tag_v2.get(TIFF_TILE_WIDTH, 1)),
        )
        check_size(
            max(tile), max(1, min(tile)), Limits(limits.max_bytes, limits.max_pixels, float("inf"))
        )
    image.load()
    return to_rgb(image)


def _fast_jpeg(data: bytes, size: tuple[int, int]) -> Pixels:
    import simplejpeg

    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    # Two frame headers may tell two sizes; only the one that was checked is decoded.
    if (width, height) != size:
        raise ValueError("its headers disagree about the size")
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    return pixels


def to_rgb(image: Image.Image) -> Pixels:
    """Pixels of an opened image as uint8 [H,W,3] RGB, not yet turned upright."""
    if image.mode.startswith("I") or image.mode == "F":
        deep = np.asarray(image, dtype=np.float64)
        scale = 255.0 / 65535.0 if deep.max(initial=0) > 255 else 1.0
        return np.repeat(np.clip(deep * scale, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, rgba)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        value = int(image.getexif().get(EXIF_ORIENTATION, 1))
    # Damaged metadata is no reason to refuse a good picture.
    except Exception:
        return 1
    return value if 1 <= value <= 8 else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation: 5 to 8 have rows and columns exchanged; the rest are flips of the
    two axes.
    """
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _short(error: Exception) -> str:
    """The decoder's own words, without line breaks or memory addresses such as ``<_io.BytesIO
    object at 0x7f...>``.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return "the data is damaged" if "0x" in text else text[:200]

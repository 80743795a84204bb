"""Label and confidence maps as PNG, and pictures of masks."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

Pixels = npt.NDArray[np.uint8]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3
NO_FILTER, UP_FILTER = 0, 2
# Label of undecided pixels, in the cream of the VOC masks.
UNDECIDED = 255
CREAM = (224, 224, 192)
# Rows of an overlay that are made at once; a multiple of the six rows of its hatching.
BAND = 60


def encode_labels(labels: Pixels, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """Palette PNG of a uint8 [H,W] label map; equal maps give equal bytes."""
    if labels.max(initial=0) == UNDECIDED:
        palette = [*palette, *[(0, 0, 0)] * (UNDECIDED - len(palette)), CREAM]
    plte = bytes(channel for colour in palette for channel in colour)
    return _png(labels, PALETTE, NO_FILTER, zlib.Z_RLE, plte)


def encode_grey(values: Pixels) -> bytes:
    """Grey PNG of a uint8 [H,W] map."""
    return _png(values, GREY, UP_FILTER, zlib.Z_DEFAULT_STRATEGY)


def encode_rgb(pixels: Pixels) -> bytes:
    """PNG of uint8 [H,W,3]."""
    return _png(pixels, RGB, UP_FILTER, zlib.Z_DEFAULT_STRATEGY)


def read_png(data: bytes) -> Pixels:
    """Values of a grey or palette PNG as uint8 [H,W]. No limits: for masks of our own.

    Raises:
        ValueError: another kind of PNG, or a damaged one.
    """
    return _read(data, "L", "P")


def read_rgb(data: bytes) -> Pixels:
    """Pixels of a colour PNG as uint8 [H,W,3]; otherwise like :func:`read_png`."""
    return _read(data, "RGB")


def _read(data: bytes, *modes: str) -> Pixels:
    try:
        with PngImageFile(io.BytesIO(data)) as image:
            if image.mode not in modes:
                raise ValueError(f"a {image.mode} picture, and not {' or '.join(modes)}")
            return np.asarray(image, dtype=np.uint8)
    except (OSError, SyntaxError, EOFError, struct.error) as error:
        raise ValueError(f"no readable PNG: {error}") from error


def keep_labels(labels: Pixels, numbers: Sequence[int]) -> Pixels:
    """A copy of uint8 [H,W] ``labels`` with every value not in ``numbers`` set to 0."""
    table = np.zeros(256, np.uint8)
    table[list(numbers)] = list(numbers)
    return np.take(table, labels)


def resize_nearest(values: Pixels, height: int, width: int) -> Pixels:
    """uint8 [h,w] scaled to [height,width] by the nearest value."""
    if values.shape == (height, width):
        return values
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))


def overlay(pixels: Pixels, labels: Pixels, palette: Sequence[tuple[int, int, int]]) -> Pixels:
    """A label map over its image, uint8 [H,W,3]: regions in colour with bright borders, over grey.

    Undecided pixels are hatched, which no class is.
    """
    colours = np.zeros((256, 3), np.float32)
    colours[: len(palette)] = palette
    colours[UNDECIDED] = CREAM
    edge = np.zeros(labels.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = labels[one] != labels[other]
        edge[one] |= differs
        edge[other] |= differs
    edge &= (labels > 0) & (labels != UNDECIDED)
    picture = np.empty_like(pixels)
    # In bands: the numbers between take sixty bytes a pixel.
    for first in range(0, len(labels), BAND):
        rows = slice(first, first + BAND)
        picture[rows] = _band(pixels[rows], labels[rows], edge[rows], colours)
    return picture


def _band(
    pixels: Pixels,
    labels: Pixels,
    edge: npt.NDArray[np.bool_],
    colours: npt.NDArray[np.float32],
) -> Pixels:
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    opacity = (
        np.float32(0.6)
        * np.where(labels == UNDECIDED, (rows + columns) % 6 < 2, labels > 0)[..., None]
    )
    grey = 0.5 * pixels + 0.5 * pixels.mean(axis=2, keepdims=True, dtype=np.float32)
    picture = grey + opacity * (colours[labels] - grey)
    picture[edge] = 0.5 * colours[labels[edge]] + 127.5
    return np.asarray(np.rint(picture), np.uint8)


def quantise(maps: npt.NDArray[np.floating]) -> Pixels:
    """Activations 0..1 as uint8 0..255, rounded to nearest."""
    return np.asarray(np.rint(np.clip(maps, 0.0, 1.0) * 255.0), dtype=np.uint8)


def _png(values: Pixels, colour: int, row_filter: int, strategy: int, plte: bytes = b"") -> bytes:
    height, width = values.shape[:2]
    flat = values.reshape(height, -1)
    rows = np.empty((height, flat.shape[1] + 1), np.uint8)
    rows[:, 0] = row_filter
    rows[:, 1:] = flat
    if row_filter == UP_FILTER:
        rows[1:, 1:] -= flat[:-1]
    # Label maps are long runs of one value. Run-length matching without row filters takes a third
    # less time and gives half the bytes of Pillow at level 1.
    compressor = zlib.compressobj(1, zlib.DEFLATED, 15, 9, strategy)
    body = compressor.compress(rows.data) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    palette = _chunk(b"PLTE", plte) if plte else b""
    return (
        PNG_MAGIC + _chunk(b"IHDR", header) + palette + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

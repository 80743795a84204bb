"""Masks as tools save class indices: grey of any depth, or three equal channels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from trainer.data.dataset import read_index_png
from trainer.errors import DataError

LABELS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
OPAQUE = np.full(LABELS.shape, 255, np.uint8)


def png(rows: npt.NDArray[np.uint8], width: int, bits: int, kind: int) -> bytes:
    """A PNG of kinds that Pillow does not write.

    Args:
        rows: the bytes of each row, [H,N].
        width: pixels.
        bits: of a sample.
        kind: 0 grey, 2 RGB.
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits(tmp_path: Path, bits: int) -> None:
    places = (LABELS[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(places.reshape(2, -1), axis=1)
    (tmp_path / "a.png").write_bytes(png(rows, 4, bits, 0))
    np.testing.assert_array_equal(read_index_png(tmp_path / "a.png"), LABELS)


@pytest.mark.parametrize(
    ("pixels", "suffix"),
    [
        (LABELS, ".png"),
        (LABELS.astype(np.uint16), ".png"),
        (LABELS.astype(np.uint16), ".tif"),
        (LABELS.astype(np.int32), ".tif"),
        (LABELS.astype(np.float32), ".tif"),
        (np.dstack([LABELS] * 3), ".png"),
        (np.dstack([LABELS] * 3), ".bmp"),
        (np.dstack([LABELS] * 3 + [OPAQUE]), ".png"),
        (np.dstack([LABELS, OPAQUE]), ".png"),
    ],
)
def test_whole_numbers_are_indices(
    tmp_path: Path, pixels: npt.NDArray[np.uint8], suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(read_index_png(path), LABELS)


@pytest.mark.parametrize(
    ("pixels", "suffix", "message"),
    [
        (LABELS.astype(np.uint16) * 1000, ".png", "holds numbers from 0 to 3000"),
        (LABELS.astype(np.int32) - 1, ".tif", "holds numbers from -1 to 2"),
        (LABELS / np.float32(2), ".tif", "holds numbers from 0 to 1.5"),
        (np.full((2, 4), np.nan, np.float32), ".tif", "holds numbers from nan"),
        (np.dstack([LABELS, LABELS, LABELS * 0]), ".png", "is a RGB picture"),
        (np.dstack([LABELS] * 3 + [OPAQUE // 2]), ".png", "is a RGBA picture"),
    ],
)
def test_other_numbers_and_colours_are_refused(
    tmp_path: Path, pixels: npt.NDArray[np.generic], suffix: str, message: str
) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match=message):
        read_index_png(path)


def test_colours_of_16_bits_are_refused(tmp_path: Path) -> None:
    # Pillow returns their upper bytes: index 1 would become background.
    wide = np.repeat(LABELS.astype(">u2")[..., None], 3, axis=2)
    (tmp_path / "a.png").write_bytes(png(wide.reshape(2, -1).view(np.uint8), 4, 16, 2))
    with pytest.raises(DataError, match="is a RGB picture"):
        read_index_png(tmp_path / "a.png")

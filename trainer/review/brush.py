"""Label Studio's run lengths of brush strokes, which are not COCO's.

The bytes are a stream of bits, most significant bit first. A header holds the number of values in
32 bits, the bits of a value less one in 5, and four sizes of a length, each less one, in 4. Then
come blocks: one bit that says whether a value repeats, two bits that choose the size of the length,
the length less one, and one value, or as many as the length says. The values are the pixels of the
image row by row, each as red, green, blue and opacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError

SIZES = (3, 4, 8, 16)
"""Bits of a length; Label Studio itself writes these."""
VALUE_BITS = 8
HALF = 128
"""From this opacity on a pixel is painted: the rim of a stroke is drawn smooth."""
Pixels = npt.NDArray[np.uint8]


def encode(mask_HW: npt.NDArray[np.bool_]) -> list[int]:
    """The bytes of a mask ``[H,W]``, opaque white where it is true."""
    flat = mask_HW.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    lengths = np.diff(ends, prepend=0) * 4
    header = f"{flat.size * 4:032b}{VALUE_BITS - 1:05b}"
    bits = [header, *(f"{size - 1:04b}" for size in SIZES)]
    for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
        bits.append(_repeats("1" * 8 if flat[end - 1] else "0" * 8, length))
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode(rle: Any, size: tuple[int, int], where: str) -> npt.NDArray[np.bool_]:
    """The mask ``[H,W]`` of the bytes that Label Studio writes.

    Args:
        rle: what the file has.
        size: (H, W) of the image.
        where: the file and image, for messages.

    Raises:
        DataError: COCO's run lengths, another length than the image has, or damaged.
    """
    data, count = _bytes(rle, where), size[0] * size[1] * 4
    stream = _Bits(data, where)
    total = stream.number(32)
    # Before memory is allocated: the header of a damaged file may state any number.
    if total != count:
        raise DataError(
            f"{where} has run lengths of {total:,} values",
            f"{count:,}, which are 4 for each of {size[0]}x{size[1]} pixels",
            "take the image of this review, at its own size",
        )
    value_bits = stream.number(5) + 1
    sizes = [stream.number(4) + 1 for _ in SIZES]
    values = np.zeros(count, np.uint8)
    start = 0
    while start < count:
        is_run = stream.number(1)
        length = stream.number(sizes[stream.number(2)]) + 1
        part = values[start : start + length]
        if is_run:
            part[:] = min(stream.number(value_bits), 255)
        else:
            part[:] = stream.numbers(value_bits, len(part))
        start += length
    return values[3::4].reshape(size) >= HALF


def _repeats(value: str, length: int) -> str:
    """The blocks of a value that repeats."""
    blocks = []
    while length:
        part = min(length, 1 << SIZES[-1])
        place = next(n for n, size in enumerate(SIZES) if part <= 1 << size)
        blocks.append(f"1{place:02b}{part - 1:0{SIZES[place]}b}{value}")
        length -= part
    return "".join(blocks)


def _bytes(rle: Any, where: str) -> bytes:
    try:
        # A string would be COCO's compressed form, a mapping its counts with a size.
        if isinstance(rle, Sequence) and not isinstance(rle, str):
            return bytes(rle)
    except (ValueError, TypeError):
        pass
    raise DataError(
        f"{where} has run lengths of another kind, such as COCO's",
        "Label Studio's own, a list of bytes",
        "export as JSON or JSON-MIN, not as COCO",
    )


class _Bits:
    """Reads numbers from a stream of bits."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.place = data, where, 0

    def number(self, bits: int) -> int:
        end = self.place + bits
        self._check(end)
        last = -(-end // 8)
        window = int.from_bytes(self.data[self.place // 8 : last], "big")
        self.place = end
        return window >> (8 * last - end) & ((1 << bits) - 1)

    def numbers(self, bits: int, count: int) -> list[int]:
        self._check(self.place + bits * count)
        return [min(self.number(bits), 255) for _ in range(count)]

    def _check(self, end: int) -> None:
        if end > 8 * len(self.data):
            raise DataError(
                f"{self.where} has run lengths that end too early",
                "all bytes that Label Studio wrote",
                "export again",
            )

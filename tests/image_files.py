"""Image files made byte by byte, of forms that Pillow reads and does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

PNG_START = b"\x89PNG\r\n\x1a\n"
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
ADAM7 = (*ADAM7, (1, 0, 2, 1))
FORMATS = {"u": 1, "i": 2, "f": 3}


def chunk(kind: bytes, data: bytes, check: int | None = None) -> bytes:
    """One of a PNG, with another checksum if one is given."""
    found = zlib.crc32(kind + data) if check is None else check
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", found)


def png(
    samples: Any, bits: int, colour: int, *extra: bytes, interlace: bool = False, parts: int = 1
) -> bytes:
    """A PNG of ``samples`` [H,W,C]; ``extra`` chunks stand before the pixels, which are cut into
    ``parts``.
    """
    samples = np.asarray(samples)
    samples = samples[..., None] if samples.ndim == 2 else samples
    height, width = samples.shape[:2]
    rows = b""
    for top, left, down, right in ADAM7 if interlace else ((0, 0, 1, 1),):
        for row in samples[top::down, left::right]:
            rows += b"\0" + _packed(row, bits) if len(row) else b""
    body = zlib.compress(rows)
    size = -(-len(body) // parts)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    cut = [chunk(b"IDAT", body[at : at + size]) for at in range(0, len(body), size)]
    return b"".join([PNG_START, chunk(b"IHDR", header), *extra, *cut, chunk(b"IEND", b"")])


def _packed(row: Any, bits: int) -> bytes:
    if bits == 16:
        return row.astype(">u2").tobytes()
    if bits == 8:
        return row.astype(np.uint8).tobytes()
    each = (row.astype(np.uint8).reshape(-1, 1) >> np.arange(bits)[::-1]) & 1
    return np.packbits(each.ravel()).tobytes()


def tiff(
    samples: Any,
    *,
    bits: int = 0,
    order: str = "<",
    big: bool = False,
    planar: bool = False,
    tile: int = 0,
    deflate: bool = False,
    white_is_zero: bool = False,
    photometric: int | None = None,
    body: bytes | None = None,
    tags: Sequence[tuple[int, str, Sequence[Any]]] = (),
) -> bytes:
    """A TIFF of ``samples`` [H,W] or [H,W,C] in their own type; ``body`` are other bytes for them,
    ``tags`` are number, letter of :mod:`struct` and values.
    """
    samples = np.asarray(samples)
    samples = samples[..., None] if samples.ndim == 2 else samples
    height, width, count = samples.shape
    bits = bits or 8 * samples.dtype.itemsize
    if photometric is None:
        photometric = 2 if count >= 3 else int(not white_is_zero)
    values = samples.astype(samples.dtype.newbyteorder(order))
    planes = [values[..., n : n + 1] for n in range(count)] if planar else [values]
    strips = [strip for plane in planes for strip in _strips(plane, tile)]
    data = [body] if body is not None else [strip.tobytes() for strip in strips]
    data = [zlib.compress(strip) for strip in data] if deflate else data
    start = 16 if big else 8
    offsets = [start + sum(map(len, data[:n])) for n in range(len(data))]
    entries: list[tuple[int, str, Sequence[Any]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [bits] * count),
        (259, "H", [8 if deflate else 1]),
        (262, "H", [photometric]),
        (277, "H", [count]),
        (284, "H", [2 if planar else 1]),
        (324 if tile else 273, "I", offsets),
        (325 if tile else 279, "I", [len(strip) for strip in data]),
        (339, "H", [FORMATS[samples.dtype.kind]] * count),
        *([(322, "I", [tile]), (323, "I", [tile])] if tile else [(278, "I", [height])]),
        *([(338, "H", [2])] if count in (2, 4) else []),
        *tags,
    ]
    return _tiff_file(sorted(entries), b"".join(data), order, big)


def _strips(plane: Any, tile: int) -> list[Any]:
    if not tile:
        return [plane]
    height, width = plane.shape[:2]
    padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
    return [
        padded[top : top + tile, left : left + tile]
        for top in range(0, height, tile)
        for left in range(0, width, tile)
    ]


def _tiff_file(entries: Any, data: bytes, order: str, big: bool) -> bytes:
    types = {"B": 1, "H": 3, "I": 4, "f": 11, "d": 12, "h": 8}
    word, size = ("Q", 8) if big else ("I", 4)
    mark = b"II" if order == "<" else b"MM"
    start = 16 if big else 8
    place = start + len(data)
    directory = struct.pack(order + ("Q" if big else "H"), len(entries))
    behind = place + len(directory) + len(entries) * (20 if big else 12) + size
    outside = b""
    for tag, letter, values in entries:
        value = struct.pack(f"{order}{len(values)}{letter}", *values)
        directory += struct.pack(f"{order}HH{word}", tag, types[letter], len(values))
        if len(value) <= size:
            directory += value.ljust(size, b"\0")
        else:
            directory += struct.pack(order + word, behind + len(outside))
            outside += value + bytes(len(value) % 2)
    head = (
        struct.pack(order + "HHHQ", 43, 8, 0, place)
        if big
        else struct.pack(order + "HI", 42, place)
    )
    return mark + head + data + directory + bytes(size) + outside


def flat_jpeg(
    colour: Sequence[int], sampling: Sequence[tuple[int, int]], height: int, width: int
) -> bytes:
    """A baseline JPEG of one colour, a number for each component, of any sampling."""
    tall, wide = (8 * max(factors) for factors in zip(*[(v, h) for h, v in sampling]))
    units = -(-height // tall) * -(-width // wide)
    text = ""
    before = [0] * len(colour)
    for _ in range(units):
        for n, (h, v) in enumerate(sampling):
            for _ in range(h * v):
                difference = 8 * (colour[n] - 128) - before[n]
                before[n] += difference
                length = abs(difference).bit_length()
                value = difference if difference > 0 else difference + 2**length - 1
                # Any length in four bits, then the value, then the end of the block.
                text += f"{length:04b}" + (f"{value:0{length}b}" if length else "") + "0"
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = b"".join(bytes([n + 1, 16 * h + v, 0]) for n, (h, v) in enumerate(sampling))
    parts = b"".join(bytes([n + 1, 0]) for n in range(len(colour)))
    return b"".join(
        [
            b"\xff\xd8",
            _segment(0xDB, b"\0" + b"\1" * 64),
            _segment(0xC0, struct.pack(">BHHB", 8, height, width, len(colour)) + frame),
            _segment(0xC4, b"\0" + bytes([0, 0, 0, 12] + [0] * 12) + bytes(range(12))),
            _segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0"),
            _segment(0xDA, bytes([len(colour)]) + parts + bytes([0, 63, 0])),
            scan,
            b"\xff\xd9",
        ]
    )


def scans_jpeg(height: int, width: int, scans: int) -> bytes:
    """A progressive grey JPEG of as many scans, all but the first of them empty."""
    blocks = -(-height // 8) * -(-width // 8)
    bits = -(-blocks // 8)
    empty = _segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + _blank(bits)
    return b"".join(
        [
            b"\xff\xd8",
            _segment(0xDB, b"\0" + b"\1" * 64),
            _segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0])),
            _segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0"),
            _segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0"),
            _segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + _blank(bits),
            empty * (scans - 1),
            b"\xff\xd9",
        ]
    )


def jpeg_with_segments(count: int) -> bytes:
    """A small JPEG with as many empty comments."""
    data = scans_jpeg(8, 8, 1)
    return data[:2] + _segment(0xFE, b"") * count + data[2:]


def _blank(size: int) -> bytes:
    return bytes(size)


def _segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data

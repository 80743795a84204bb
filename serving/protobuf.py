"""The fields of an encoded protocol buffer, found in place without copying a value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
SIZES = {FIXED64: 8, FIXED32: 4}
# A 64-bit number takes at most ten bytes of seven bits each. More would be an attack on the loop
# below.
BITS = 70


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        tag: encoded number and wire type, see :func:`tag`.
        start: where the field starts.
        begin, end: where its value starts and ends.
    """

    tag: int
    start: int
    begin: int
    end: int


def tag(number: int, wire_type: int) -> int:
    """The tag of a field."""
    return number << 3 | wire_type


def fields(data: memoryview) -> Iterator[Field]:
    """Every field of a message, in order.

    Raises:
        ValueError: the bytes are not a message.
    """
    position = 0
    while position < len(data):
        start = position
        key, begin = _varint(data, position)
        wire_type = key & 7
        if wire_type == VARINT:
            position = _varint(data, begin)[1]
        elif wire_type == BYTES:
            size, begin = _varint(data, begin)
            position = begin + size
        elif wire_type in SIZES:
            position = begin + SIZES[wire_type]
        else:
            raise ValueError(f"a field of the unknown type {wire_type}")
        if position > len(data):
            raise ValueError("a field goes beyond the end")
        yield Field(key, start, begin, position)


def encode_varint(value: int) -> bytes:
    """A number of 0 or more, seven bits per byte, lowest first."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """The number at ``position``, and where it ends."""
    value = 0
    for shift in range(0, BITS, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number without end")

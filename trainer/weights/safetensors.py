"""Read ``.safetensors`` files: a length, a JSON header, and the values of all tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.errors import WeightsError

MOST_HEADER = 100_000_000
"""Bytes of the header, as in the format's own library."""
DAMAGES = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What numbers and names that do not fit raise; RecursionError is a RuntimeError."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def is_safetensors(path: Path) -> bool:
    """Whether the file starts as the format does: the length of the header, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and _length(start) <= path.stat().st_size - 8


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor by its name.

    Raises:
        WeightsError: truncated or damaged, or a number type that is not known.
    """
    try:
        data = path.read_bytes()
        size = _length(data)
        if size > min(len(data) - 8, MOST_HEADER):
            raise ValueError(f"a header of {size} bytes in a file of {len(data)}")
        header = json.loads(data[8 : 8 + size])
        # torch wants memory that it may write into.
        body = memoryview(bytearray(data[8 + size :]))
        entries = {name: about for name, about in header.items() if name != "__metadata__"}
        return {str(name): _tensor(body, about) for name, about in entries.items()}
    except DAMAGES as error:
        raise WeightsError(
            f"{path} is a damaged or truncated safetensors file: {error}",
            "a complete .safetensors file",
            "download or copy the file again",
        ) from error


def _length(data: bytes) -> int:
    if len(data) < 8:
        raise ValueError(f"{len(data)} bytes")
    return int(struct.unpack("<Q", data[:8])[0])


def _tensor(body: memoryview, about: Any) -> Tensor:
    dtype = DTYPES[about["dtype"]]
    shape = [int(side) for side in about["shape"]]
    start, end = (int(offset) for offset in about["data_offsets"])
    if min([0, *shape]) < 0 or len(shape) > 16:
        raise ValueError(f"a tensor of shape {shape}")
    count = 1
    for side in shape:
        count *= side
    if not 0 <= start <= end <= len(body) or end - start != count * dtype.itemsize:
        raise ValueError(f"bytes {start} to {end} for a tensor of shape {shape} {about['dtype']}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    # A copy, because values may start at any byte and torch wants them aligned.
    return torch.frombuffer(body[start:end], dtype=torch.uint8).clone().view(dtype).reshape(shape)

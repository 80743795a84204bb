"""Read MXNet ``.params`` files without MXNet, and their ResNet-38 names."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import WeightsError

# Marks of MXNet's serialisation: a list of arrays, an array with a storage type, one with a 64-bit
# shape. Any other number is the count of dimensions, with which the first layout begins.
LIST_MAGIC = 0x112
DENSE_MAGIC = 0xF993FAC9
SHAPE64_MAGIC = 0xF993FAC8
MAX_DIMENSIONS = 8
DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 6: "<i8"}

_BLOCK_NAME = re.compile(
    r"(res|bn)(\d)(?:a|b(\d+))_(branch\w+?)_(weight|gamma|beta|moving_mean|moving_var)"
)
_STATISTIC = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
    "weight": "weight",
}


class _Cursor:
    """Little-endian numbers from a buffer, front to back."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self.data = data.data
        self.at = 0

    def numbers(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def number(self, layout: str) -> int:
        return self.numbers(layout)[0]

    def raw(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise ValueError(f"{size} bytes wanted at byte {self.at} of {len(self.data)}")
        self.at += size
        return self.data[self.at - size : self.at]


def is_mxnet(path: Path) -> bool:
    """Whether the file starts as MXNet's array lists do."""
    with path.open("rb") as file:
        return file.read(8) == struct.pack("<Q", LIST_MAGIC)


def read_params(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of a ``.params`` file by its name in the file (``arg:...``, ``aux:...``).

    Reads the three array layouts that MXNet has used: with storage type, with 64-bit shape, and the
    first one.

    Raises:
        WeightsError: truncated or damaged, or with sparse arrays or an unknown number type.
    """
    try:
        cursor = _Cursor(np.memmap(path, dtype=np.uint8, mode="r"))
        magic, _, count = cursor.numbers("QQQ")
        if magic != LIST_MAGIC:
            raise ValueError(f"the file starts with {magic:#x}, not {LIST_MAGIC:#x}")
        arrays = [_array(cursor) for _ in range(count)]
        names = [bytes(cursor.raw(cursor.number("Q"))).decode() for _ in range(cursor.number("Q"))]
        return dict(zip(names, arrays, strict=True))
    except (ValueError, struct.error) as error:
        raise WeightsError(
            f"{path} is a damaged or truncated MXNet file: {error}",
            "a complete .params file",
            "copy the file again",
        ) from error


def _array(cursor: _Cursor) -> npt.NDArray[Any]:
    """The next array, copied out of the buffer."""
    magic = cursor.number("I")
    if magic == DENSE_MAGIC and (storage := cursor.number("i")) != 0:
        raise ValueError(
            f"storage type {storage} at byte {cursor.at}; only dense arrays (0) are known"
        )
    wide = magic in (DENSE_MAGIC, SHAPE64_MAGIC)
    ndim = cursor.number("i") if wide else magic
    if not 0 <= ndim <= MAX_DIMENSIONS:
        raise ValueError(f"an array of {ndim} dimensions at byte {cursor.at}")
    shape = cursor.numbers(f"{ndim}{'q' if wide else 'I'}")
    if ndim == 0:
        # MXNet writes nothing more for an array that was never given a value.
        return np.empty(0, dtype=np.float32)
    # Device type, device and number type. The device does not matter here.
    _, _, flag = cursor.numbers("iii")
    if flag not in DTYPES or min(shape) < 0:
        raise ValueError(f"number type {flag} with shape {shape} at byte {cursor.at}")
    dtype = np.dtype(DTYPES[flag])
    data = cursor.raw(dtype.itemsize * math.prod(shape))
    return np.frombuffer(data, dtype=dtype).reshape(shape).copy()


def resnet38_name(name: str) -> str:
    """The state-dict name of an array of the ImageNet ResNet-38 file.

    Names that belong to no layer of the backbone come back without their ``arg:`` or ``aux:``.
    """
    name = name.removeprefix("arg:").removeprefix("aux:")
    if name == "conv1a_weight":
        return "conv1a.weight"
    if name.startswith("bn7_") and name[4:] in _STATISTIC:
        return f"bn7.{_STATISTIC[name[4:]]}"
    match = _BLOCK_NAME.fullmatch(name)
    if match is None:
        return name
    layer, stage, index, branch, part = match.groups()
    block = f"b{stage}_{index}" if index else f"b{stage}"
    return f"{block}.{'conv' if layer == 'res' else 'bn'}_{branch}.{_STATISTIC[part]}"

"""Tensors of the Open Inference Protocol to NumPy arrays and back. Every claim of a message is
checked first.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.engines import TensorSpec
from serving.errors import FieldError, nearest
from serving.rpc.wire import Buffer, InferRequest

Array = npt.NDArray[Any]

# Data types of the protocol, and the fields of typed contents that hold them. FP16 has none.
DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
TYPED = {
    "bool_contents": ("BOOL",),
    "int_contents": ("INT8", "INT16", "INT32"),
    "int64_contents": ("INT64",),
    "uint_contents": ("UINT8", "UINT16", "UINT32"),
    "uint64_contents": ("UINT64",),
    "fp32_contents": ("FP32",),
    "fp64_contents": ("FP64",),
    "bytes_contents": ("BYTES",),
}
# Fields with a fixed number of bytes per value: the encoded field is the array itself.
FIXED = {"bool_contents", "fp32_contents", "fp64_contents"}
MAX_RANK = 32


def read_inputs(request: InferRequest, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The inputs of a request by name, one for each of ``specs``, with the same first axis.

    Arrays of raw contents are read-only views of the received bytes where alignment allows.

    Raises:
        FieldError: a name, data type, shape or number of bytes differs from ``specs`` or the
            message.
    """
    tensors = request.message.inputs
    by_name = {spec.name: spec for spec in specs}
    if len(tensors) != len(by_name):
        raise FieldError(
            f"{len(tensors)} inputs", f"{len(by_name)}: {', '.join(by_name)}", field="inputs"
        )
    if request.raw and len(request.raw) != len(tensors):
        raise FieldError(
            f"{len(request.raw)} raw contents for {len(tensors)} inputs",
            "one for each input, or none",
            field="raw_input_contents",
        )
    arrays: dict[str, Array] = {}
    for index, tensor in enumerate(tensors):
        if tensor.name not in by_name or tensor.name in arrays:
            problem = "given twice" if tensor.name in arrays else "not known"
            raise FieldError(
                f"input {tensor.name!r} is {problem}", nearest(tensor.name, by_name), field="inputs"
            )
        shape = _shape(tensor, by_name[tensor.name])
        raw = request.raw[index] if request.raw else None
        arrays[tensor.name] = _values(tensor, raw).reshape(shape)
    batches = {array.shape[0] for array in arrays.values()}
    if len(batches) > 1:
        raise FieldError(
            f"inputs of {sorted(batches)} elements", "one size of the first axis", field="inputs"
        )
    return arrays


def read_encoded(request: InferRequest, name: str) -> bytes:
    """The image file in the only BYTES element of the only input ``name``.

    Raises:
        FieldError: another name, or not exactly one element.
    """
    (tensor,) = request.message.inputs
    if tensor.name != name:
        raise FieldError(
            f"input {tensor.name!r} is not known", nearest(tensor.name, [name]), field="inputs"
        )
    if len(tensor.shape) > MAX_RANK or set(tensor.shape) != {1} or len(request.raw) > 1:
        raise FieldError(
            f"input {name!r} is not one element of BYTES",
            "the shape [1]",
            field=f"inputs[{name}].shape",
        )
    (data,) = _values(tensor, request.raw[0] if request.raw else None)
    return bytes(data)


def write_output(array: Array) -> Buffer:
    """Little-endian bytes of an array, row by row; no copy of an array with that layout."""
    if array.dtype == object:
        data = [value if isinstance(value, bytes) else str(value).encode() for value in array.flat]
        return b"".join(part for value in data for part in (struct.pack("<I", len(value)), value))
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data


def classification(scores: Array, count: int, labels: Sequence[str]) -> Array:
    """The ``count`` best of each batch element as BYTES [N,count] ``value:index[:label]``."""
    flat = scores.reshape(len(scores), -1)
    best = np.argsort(-flat, axis=1, kind="stable")[:, :count]
    names = (
        [f":{label}" for label in labels] if len(labels) == flat.shape[1] else [""] * flat.shape[1]
    )
    rows = [
        [f"{float(row[k]):f}:{k}{names[k]}".encode() for k in order]
        for row, order in zip(flat, best)
    ]
    return np.array(rows, dtype=object).reshape(best.shape)


def _shape(tensor: Any, spec: TensorSpec) -> tuple[int, ...]:
    """The shape that a tensor claims, if ``spec`` allows it."""
    field, datatype = f"inputs[{spec.name}]", DATATYPES[spec.dtype]
    if tensor.datatype != datatype:
        raise FieldError(
            f"input {spec.name!r} is of {tensor.datatype!r}", datatype, field=f"{field}.datatype"
        )
    # Check the rank before the numbers: a hostile message may hold millions.
    rank = len(tensor.shape)
    shape = tuple(tensor.shape) if rank <= MAX_RANK else ()
    fits = rank == len(spec.shape) and all(
        size >= 0 and expected in (-1, size) for size, expected in zip(shape, spec.shape)
    )
    if not fits or shape[0] < 1:
        claim = list(shape) if rank <= MAX_RANK else f"{rank} axes"
        expected = f"{list(spec.shape)}, -1 any size, the first at least 1"
        raise FieldError(
            f"input {spec.name!r} has the shape {claim}", expected, field=f"{field}.shape"
        )
    return shape


def _values(tensor: Any, raw: memoryview | None) -> Array:
    """The values of a tensor, flat, as many as its shape says."""
    count, field = math.prod(tensor.shape), f"inputs[{tensor.name}]"
    if tensor.HasField("contents") and raw is not None:
        raise FieldError(
            f"input {tensor.name!r} has raw and typed contents",
            "one of them",
            field=f"{field}.contents",
        )
    if raw is None:
        return _typed(tensor, count, field)
    if tensor.datatype == "BYTES":
        return _strings(raw, count, field)
    dtype = np.dtype(DTYPES[tensor.datatype]).newbyteorder("<")
    if len(raw) != count * dtype.itemsize:
        raise FieldError(
            f"input {tensor.name!r} has {len(raw)} bytes",
            f"{count * dtype.itemsize} for {tensor.datatype} of {list(tensor.shape)}",
            field="raw_input_contents",
        )
    if tensor.datatype == "BOOL":
        return np.not_equal(np.frombuffer(raw, np.uint8), 0)
    return _aligned(np.frombuffer(raw, dtype))


def _typed(tensor: Any, count: int, field: str) -> Array:
    names = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    right = next(
        name
        for name, datatypes in TYPED.items()
        if tensor.datatype in datatypes or name == "bytes_contents"
    )
    if tensor.datatype == "FP16":
        raise FieldError(
            f"input {tensor.name!r} is FP16 without raw contents", "raw_input_contents", field=field
        )
    if names not in ([right], []):
        raise FieldError(
            f"input {tensor.name!r} has {', '.join(names)}", right, field=f"{field}.contents"
        )
    values = getattr(tensor.contents, right)
    if len(values) != count:
        correct = f"{count} for the shape {list(tensor.shape)}"
        raise FieldError(
            f"input {tensor.name!r} has {len(values)} values", correct, field=f"{field}.contents"
        )
    dtype = np.dtype(DTYPES[tensor.datatype])
    if right in FIXED:
        data = tensor.contents.SerializeToString()
        return _aligned(np.frombuffer(data, dtype, count, len(data) - count * dtype.itemsize))
    if right == "bytes_contents":
        return _objects(values)
    # Through the widest type, so that a value out of range is refused and does not wrap around.
    wide = np.fromiter(values, np.int64 if dtype.kind == "i" else np.uint64, count)
    narrow = wide.astype(dtype)
    if not np.array_equal(wide, narrow):
        raise FieldError(
            f"input {tensor.name!r} has values out of {tensor.datatype}", field=f"{field}.contents"
        )
    return narrow


def _strings(raw: memoryview, count: int, field: str) -> Array:
    """Elements of BYTES, each preceded by its length in four bytes."""
    values: list[bytes] = []
    position = 0
    while position < len(raw) and len(values) <= count:
        length = int.from_bytes(raw[position : position + 4], "little")
        begin, position = position + 4, position + 4 + length
        if position > len(raw):
            raise FieldError(
                f"element {len(values)} of {field} claims {length} bytes",
                f"at most the {max(0, len(raw) - begin)} that follow",
                field="raw_input_contents",
            )
        values.append(bytes(raw[begin:position]))
    if len(values) != count:
        raise FieldError(
            f"{len(values)} elements in {field}", f"{count}", field="raw_input_contents"
        )
    return _objects(values)


def _aligned(values: Array) -> Array:
    """A copy if needed: engines read several numbers at once, which some processors cannot do from
    an unaligned address.
    """
    return values if values.flags.aligned else values.copy()


def _objects(values: Sequence[bytes]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array

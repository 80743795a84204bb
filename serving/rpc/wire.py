"""Messages of the Open Inference Protocol, with their tensors left where they are.

Protobuf copies a bytes field when it parses a message, again when the field is read, and twice more
on the way out; with tens of megabytes that stops the event loop for tenths of a second
(docs/decisions/tensors-on-the-wire.md). Here the fields ``raw_input_contents`` and
``raw_output_contents`` are cut out of, and laid into, the encoded message directly; protobuf sees
the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from serving.errors import FieldError
from wsss.inference import open_inference_pb2 as pb

Buffer = bytes | memoryview

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
RAW_INPUT = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | BYTES
RAW_OUTPUT = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | BYTES
STREAMED = pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER << 3 | BYTES
# Names, parameters, inputs and outputs of one request, each counted. A hostile message could hold
# millions.
MAX_FIELDS = 10_000


@dataclass(frozen=True)
class InferRequest:
    """A ``ModelInferRequest`` as it came.

    Attributes:
        message: all but the raw contents.
        raw: the raw contents, views of the bytes received.
    """

    message: Any
    raw: list[memoryview]


@dataclass(frozen=True)
class InferReply:
    """A ``ModelInferResponse`` to be sent: ``message`` all but the raw contents, ``raw`` those."""

    message: Any
    raw: list[Buffer] = field(default_factory=list)


def read_request(data: bytes) -> InferRequest | FieldError:
    """Parse without copying tensors. Returns what is wrong: what a deserializer raises, gRPC
    answers with UNKNOWN.
    """
    try:
        rest, raw = _split(memoryview(data))
        return InferRequest(pb.ModelInferRequest.FromString(rest), raw)
    except FieldError as error:
        return error
    except (DecodeError, ValueError, IndexError):
        name = pb.ModelInferRequest.DESCRIPTOR.full_name
        return FieldError(f"the message is no {name}", f"an encoded {name}")


def write_reply(reply: InferReply) -> bytes:
    """The encoded ``ModelInferResponse``; each tensor is copied once."""
    return b"".join(_parts(reply))


def write_streamed(reply: Any) -> bytes:
    """The encoded ``ModelStreamInferResponse`` around an :class:`InferReply`, or one that is whole
    already.
    """
    if not isinstance(reply, InferReply):
        encoded: bytes = reply.SerializeToString()
        return encoded
    parts = list(_parts(reply))
    return b"".join((_varint(STREAMED), _varint(sum(map(len, parts))), *parts))


def _parts(reply: InferReply) -> Iterator[Buffer]:
    yield reply.message.SerializeToString()
    for values in reply.raw:
        yield _varint(RAW_OUTPUT) + _varint(len(values))
        yield values


def _split(data: memoryview) -> tuple[bytes, list[memoryview]]:
    """The message without its raw contents, and these."""
    rest: list[Buffer] = []
    raw: list[memoryview] = []
    kept = position = fields = 0
    while position < len(data):
        began = position
        tag, position = _read_varint(data, position)
        begin, end = _value(data, position, tag & 7)
        if tag == RAW_INPUT:
            raw.append(data[begin:end])
            rest.append(data[kept:began])
            kept = end
        position, fields = end, fields + 1
        if fields > MAX_FIELDS:
            raise FieldError(
                f"more than {MAX_FIELDS:,} fields in one request", f"at most {MAX_FIELDS:,}"
            )
    return b"".join((*rest, data[kept:])), raw


def _value(data: memoryview, position: int, kind: int) -> tuple[int, int]:
    """Where the value of a field of wire type ``kind`` begins and ends."""
    length = {FIXED64: 8, FIXED32: 4}.get(kind)
    if kind == VARINT:
        return position, _read_varint(data, position)[1]
    if kind == BYTES:
        length, position = _read_varint(data, position)
    if length is None or position + length > len(data):
        raise ValueError("no field")
    return position, position + length


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than ten bytes")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

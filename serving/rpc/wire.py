"""Messages of the Open Inference Protocol whose tensors stay in place.

Protobuf copies a bytes field when it parses a message, again when the field is read, and twice on
the way out. With tens of megabytes that stops the event loop for tenths of a second
(docs/decisions/tensors-on-the-wire.md). So ``raw_input_contents`` and ``raw_output_contents`` are
cut out of, and laid into, the encoded message; protobuf handles the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from serving.errors import FieldError
from serving.protobuf import BYTES, encode_varint, fields, tag
from wsss.inference import open_inference_pb2 as pb

Buffer = bytes | memoryview

RAW_INPUT = tag(pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER, BYTES)
RAW_OUTPUT = tag(pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER, BYTES)
STREAMED = tag(pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER, BYTES)
# Names, parameters, inputs and outputs of one request. A hostile message could hold millions.
MAX_FIELDS = 10_000


@dataclass(frozen=True)
class InferRequest:
    """A ``ModelInferRequest`` as it arrived.

    Attributes:
        message: everything but the raw contents.
        raw: the raw contents, as views of the received bytes.
    """

    message: Any
    raw: list[memoryview]


@dataclass(frozen=True)
class InferReply:
    """A ``ModelInferResponse`` to send: everything but the raw contents, and those."""

    message: Any
    raw: list[Buffer] = dataclasses.field(default_factory=list)


def read_request(data: bytes) -> InferRequest | FieldError:
    """Parse without copying tensors. Returns errors: gRPC answers UNKNOWN to what it raises."""
    try:
        rest, raw = _split(memoryview(data))
        return InferRequest(pb.ModelInferRequest.FromString(rest), raw)
    except FieldError as error:
        return error
    except (DecodeError, ValueError):
        name = pb.ModelInferRequest.DESCRIPTOR.full_name
        return FieldError(f"the message is not a {name}", f"an encoded {name}")


def write_reply(reply: InferReply) -> bytes:
    """The encoded ``ModelInferResponse``; each tensor is copied once."""
    return b"".join(_parts(reply))


def write_streamed(reply: Any) -> bytes:
    """The encoded ``ModelStreamInferResponse`` with an :class:`InferReply`, or one that is
    complete.
    """
    if not isinstance(reply, InferReply):
        data: bytes = reply.SerializeToString()
        return data
    parts = list(_parts(reply))
    return b"".join((encode_varint(STREAMED), encode_varint(sum(map(len, parts))), *parts))


def _parts(reply: InferReply) -> Iterator[Buffer]:
    yield reply.message.SerializeToString()
    for values in reply.raw:
        yield encode_varint(RAW_OUTPUT) + encode_varint(len(values))
        yield values


def _split(data: memoryview) -> tuple[bytes, list[memoryview]]:
    """The message without its raw contents, and these."""
    rest: list[Buffer] = []
    raw: list[memoryview] = []
    position = 0
    for count, field in enumerate(fields(data), 1):
        if count > MAX_FIELDS:
            raise FieldError(
                f"more than {MAX_FIELDS:,} fields in one request", f"at most {MAX_FIELDS:,}"
            )
        if field.tag == RAW_INPUT:
            raw.append(data[field.begin : field.end])
            rest.append(data[position : field.start])
            position = field.end
    return b"".join((*rest, data[position:])), raw

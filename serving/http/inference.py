"""The Open Inference Protocol by REST: ``/v2`` with tensors as JSON numbers, or as bytes behind the
JSON (Triton's extension ``binary_tensor_data``).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import json_format
from starlette.requests import Request
from starlette.responses import Response

from serving.errors import FieldError, ServerUnavailable
from serving.http.door import Door, Work, json_reply, while_there, whole
from serving.http.shapes import plain
from serving.rpc.open_inference import OpenInferenceService
from serving.rpc.tensors import DTYPES, write_output
from serving.rpc.wire import Buffer, InferReply, InferRequest
from serving.scheduling.codecs import Codecs
from serving.telemetry.call import Call
from wsss.inference import open_inference_pb2 as pb

MODEL = "/v2/models/{name}"
VERSION = f"{MODEL}/versions/{{version}}"
# Length of the JSON before the bytes of tensors.
LENGTH = "inference-header-content-length"
JSON = ("application/json", "application/octet-stream")
SIZE, BINARY = "binary_data_size", "binary_data"
BINARY_OUTPUT = "binary_data_output"
KINDS = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}


@dataclass(frozen=True)
class Wish:
    """A request, and which of its outputs are to be bytes; ``others`` for those that it does not
    name.
    """

    request: InferRequest
    binary: Mapping[str, bool]
    others: bool


class Inference:
    """Answers the requests.

    Args:
        codecs: threads that read and write JSON.
        limit: bytes of a request.
    """

    def __init__(
        self, door: Door, service: OpenInferenceService, codecs: Codecs, limit: int
    ) -> None:
        self._door = door
        self._service = service
        self._codecs = codecs
        self._limit = limit

    def works(self) -> list[tuple[str, str, Work]]:
        """Method, path and work of each route."""
        models: list[tuple[str, str, Work]] = []
        for path in (MODEL, VERSION):
            models += [
                ("GET", path, self._metadata),
                ("GET", f"{path}/ready", self._model_ready),
                ("GET", f"{path}/config", self._config),
                ("GET", f"{path}/stats", self._statistics),
                ("POST", f"{path}/infer", self._infer),
            ]
        return [
            ("GET", "/v2", self._server_metadata),
            ("GET", "/v2/health/live", self._live),
            ("GET", "/v2/health/ready", self._ready),
            ("POST", "/v2/repository/index", self._index),
            # Before the model of this name.
            ("GET", "/v2/models/stats", self._statistics),
            *models,
        ]

    async def _server_metadata(self, request: Request, call: Call) -> Response:
        return json_reply(await self._service.server_metadata(pb.ServerMetadataRequest(), call))

    async def _live(self, request: Request, call: Call) -> Response:
        return json_reply(await self._service.server_live(pb.ServerLiveRequest(), call))

    async def _ready(self, request: Request, call: Call) -> Response:
        reply = await self._service.server_ready(pb.ServerReadyRequest(), call)
        if not reply.ready:
            raise ServerUnavailable("the server is shutting down", hint="another server")
        return json_reply(reply)

    async def _metadata(self, request: Request, call: Call) -> Response:
        message = pb.ModelMetadataRequest(**request.path_params)
        return json_reply(await self._service.model_metadata(message, call))

    async def _model_ready(self, request: Request, call: Call) -> Response:
        reply = await self._service.model_ready(pb.ModelReadyRequest(**request.path_params), call)
        if not reply.ready:
            raise ServerUnavailable(f"model {request.path_params['name']!r} is not served")
        return json_reply(reply)

    async def _config(self, request: Request, call: Call) -> Response:
        reply = await self._service.model_config(pb.ModelConfigRequest(**request.path_params), call)
        # By REST the configuration is the whole reply.
        return json_reply(reply.config)

    async def _statistics(self, request: Request, call: Call) -> Response:
        message = pb.ModelStatisticsRequest(**request.path_params)
        return json_reply(await self._service.model_statistics(message, call))

    async def _index(self, request: Request, call: Call) -> Response:
        """Every version; with ``{"ready": true}`` in the body, those that are served."""
        body = await self._door.read(request, call, self._limit, JSON, whole, empty=True)
        try:
            message = json_format.Parse(body or "{}", pb.RepositoryIndexRequest())
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise FieldError(
                f"the body is no request: {error}", '{"ready": true}, or nothing'
            ) from error
        reply = await self._service.repository_index(message, call)
        return Response(json.dumps(plain(reply)["models"]), media_type=JSON[0])

    async def _infer(self, request: Request, call: Call) -> Response:
        body = await self._door.read(request, call, self._limit, JSON, whole)
        wish: Wish = await self._codecs.run(
            read_request, body, request.path_params, request.headers.get(LENGTH, "")
        )
        reply = await while_there(request, self._service.infer(wish.request, call))
        response: Response = await self._codecs.run(write_reply, reply, wish)
        return response


def read_request(body: bytes, path: Mapping[str, str], length: str) -> Wish:
    """The request in a body.

    Args:
        length: of the JSON, from its header; empty if the body is nothing else.

    Raises:
        FieldError: the body is not as the protocol says.
    """
    if length and not (length.isascii() and length.isdecimal() and int(length[:20]) <= len(body)):
        raise FieldError(f"{LENGTH} is {length[:20]}", f"at most the {len(body)} bytes of the body")
    end = int(length) if length else len(body)
    try:
        document = json.loads(body[:end])
        return _wish(document, memoryview(body)[end:], path)
    except (
        ValueError,
        RecursionError,
        TypeError,
        AttributeError,
        KeyError,
        OverflowError,
    ) as error:
        raise FieldError(
            f"the body is no inference request: {type(error).__name__}: {error}",
            'JSON: {"inputs": [{"name": ..., "datatype": ..., "shape": [...], "data": [...]}]}',
            field="inputs",
        ) from error


def _wish(document: Any, rest: memoryview, path: Mapping[str, str]) -> Wish:
    if not isinstance(document, dict):
        raise FieldError("the body is no JSON object", '{"inputs": [...]}', field="inputs")
    message = pb.ModelInferRequest(
        model_name=path["name"],
        model_version=path.get("version", ""),
        id=document.get("id", ""),
    )
    own = _parameters(message, document)
    raw: list[memoryview] = []
    for one in document["inputs"]:
        tensor = message.inputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
        size = _parameters(tensor, one).get(SIZE)
        if size is None:
            raw.append(memoryview(_packed(one["name"], one["datatype"], one["data"])))
            continue
        if not 0 <= size <= len(rest):
            raise FieldError(
                f"{SIZE} of {one['name']!r} is {size}", f"at most the {len(rest)} that follow"
            )
        raw.append(rest[:size])
        rest = rest[size:]
    if len(rest):
        raise FieldError(f"{len(rest)} bytes after the last input", f"none, or a {SIZE}")
    binary = {}
    for one in document.get("outputs", ()):
        output = message.outputs.add(name=one["name"])
        binary[one["name"]] = bool(_parameters(output, one).get(BINARY))
    return Wish(InferRequest(message, raw), binary, bool(own.get(BINARY_OUTPUT)))


def _parameters(message: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    """Set the parameters of a message; returns those that only REST has."""
    own = {}
    for name, value in document.get("parameters", {}).items():
        if name in (SIZE, BINARY, BINARY_OUTPUT):
            own[name] = value
        else:
            setattr(message.parameters[name], KINDS[type(value)], value)
    return own


def _packed(name: str, datatype: str, data: Any) -> Buffer:
    """Values in JSON, nested or flat, as the bytes of the protocol."""
    if datatype not in DTYPES:
        raise FieldError(f"input {name!r} is of {datatype!r}", f"one of {', '.join(DTYPES)}")
    if datatype == "BYTES":
        texts = [str(text).encode() for text in np.asarray(data, dtype=object).reshape(-1)]
        return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
    dtype = np.dtype(DTYPES[datatype])
    values = np.asarray(data)
    if values.dtype.kind not in "biuf":
        raise FieldError(f"input {name!r} has no numbers", "numbers", field=f"inputs[{name}]")
    packed = values.astype(dtype)
    # A value out of range, or a fraction among whole numbers, must not become another one.
    if dtype.kind in "biu" and not np.array_equal(packed, values):
        raise FieldError(f"input {name!r} has values out of {datatype}", field=f"inputs[{name}]")
    return write_output(packed)


def write_reply(reply: InferReply, wish: Wish) -> Response:
    """The reply as JSON, with the outputs that are to be bytes behind it."""
    message = reply.message
    document: dict[str, Any] = {
        "model_name": message.model_name,
        "model_version": message.model_version,
        "id": message.id,
        "outputs": [],
    }
    tail: list[Buffer] = []
    for output, raw in zip(message.outputs, reply.raw, strict=True):
        one: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if wish.binary.get(output.name, wish.others):
            one["parameters"] = {SIZE: len(raw)}
            tail.append(raw)
        else:
            one["data"] = _unpacked(output.datatype, raw)
        document["outputs"].append(one)
    text = json.dumps(document).encode()
    if not tail:
        return Response(text, media_type=JSON[0])
    return Response(b"".join([text, *tail]), headers={LENGTH: str(len(text))}, media_type=JSON[1])


def _unpacked(datatype: str, raw: Buffer) -> list[Any]:
    if datatype != "BYTES":
        dtype = np.dtype(DTYPES[datatype]).newbyteorder("<")
        values: list[Any] = np.frombuffer(raw, dtype).tolist()
        return values
    texts, at, data = [], 0, bytes(raw)
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        texts.append(data[at + 4 : at + 4 + size].decode(errors="replace"))
        at += 4 + size
    return texts

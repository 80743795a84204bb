"""The Open Inference Protocol, ``inference.GRPCInferenceService``: tensors in, tensors out, on our models and queues.

Extensions and status codes are those of NVIDIA Triton, so that its clients and perf_analyzer work unchanged. A model
of kind ``segmenter`` or ``cam`` also takes one encoded image, as a BYTES element, in place of its pixels.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import grpc

from serving import descriptions, image, pipeline, tensors, wire
from serving.calls import Call, Calls, started
from serving.config import ServerConfig
from serving.engines import Inputs, Outputs
from serving.errors import (
    FieldError,
    ImageTooLarge,
    ModelNotFound,
    ModelRefused,
    RepositoryError,
    RequestError,
    ServerUnavailable,
    nearest,
)
from serving.models import Models, Served, State
from serving.options import options_for
from serving.streams import side_by_side
from serving.wire import InferReply, InferRequest
from wsss.inference import open_inference_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
NAME: str = SERVICE.full_name
# Requests of one stream at work at once; their replies leave in the order of the requests.
STREAM_DEPTH = 16
# A request that names a priority, 1 the most urgent, goes before those that name none.
PRIORITIES = 1000
SEGMENTED = {"mask": "labels", "scores": "scores", "confidence": "confidence"}


class OpenInferenceService:
    """Answers the calls of the protocol.

    Args:
        models: to answer with.
        config: of the server.
        calls: what every call goes through.
        codecs: threads for images and for tensors that are not raw.
    """

    def __init__(self, models: Models, config: ServerConfig, calls: Calls, codecs: ThreadPoolExecutor) -> None:
        self._models = models
        self._config = config
        self._calls = calls
        self._codecs = codecs
        self._extensions = descriptions.extensions(config)
        self._seconds: WeakKeyDictionary[Served, list[float]] = WeakKeyDictionary()

    def handler(self) -> Any:
        """For ``add_generic_rpc_handlers`` of a server."""
        infer = self._calls.unary(f"{NAME}/ModelInfer", self._infer, wire.read_request, wire.write_reply)
        stream = self._calls.streaming(f"{NAME}/ModelStreamInfer", self._stream, wire.read_request, wire.write_streamed)
        works = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        return self._calls.service(SERVICE, works, {"ModelInfer": infer, "ModelStreamInfer": stream})

    async def _server_live(self, request: Any, call: Call) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any, call: Call) -> Any:
        return pb.ServerReadyResponse(ready=not self._calls.draining)

    async def _model_ready(self, request: Any, call: Call) -> Any:
        try:
            self._find(request.name, request.version)
        except RequestError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _server_metadata(self, request: Any, call: Call) -> Any:
        version = importlib.metadata.version("wsss")
        return pb.ServerMetadataResponse(name="wsss-serving", version=version, extensions=self._extensions)

    async def _model_metadata(self, request: Any, call: Call) -> Any:
        served = self._find(request.name, request.version, call)
        versions = [other.card.version for other in self._models.served() if other.card.name == served.card.name]
        return descriptions.metadata(served, versions, self._config)

    async def _model_config(self, request: Any, call: Call) -> Any:
        served = self._find(request.name, request.version, call)
        return pb.ModelConfigResponse(config=descriptions.configuration(served, self._config))

    async def _model_statistics(self, request: Any, call: Call) -> Any:
        if request.name:
            found = self._find(request.name, request.version, call)
            wanted = [
                s for s in self._models.served() if s is found or (s.card.name, "") == (request.name, request.version)
            ]
        else:
            wanted = self._models.served()
        counted = [descriptions.statistics(served, *self._seconds.get(served, (0.0, 0.0))) for served in wanted]
        return pb.ModelStatisticsResponse(model_stats=counted)

    async def _repository_index(self, request: Any, call: Call) -> Any:
        self._check_repository(request)
        index = [
            pb.RepositoryIndexResponse.ModelIndex(
                name=state.name, version=str(state.version), state=str(state.state), reason=state.reason
            )
            for state in self._models.index()
            if state.state == State.READY or not request.ready
        ]
        return pb.RepositoryIndexResponse(models=index)

    async def _load(self, request: Any, call: Call) -> Any:
        self._check_control(request)
        if request.parameters:
            raise FieldError("load parameters are not taken: models come from the repository alone", field="parameters")
        try:
            await self._models.load(request.model_name)
        except RepositoryError:
            raise ModelRefused(
                f"model {request.model_name!r} is not sound; what was served is served still",
                "the reason is in RepositoryIndex and in the server's log",
                field="model_name",
            ) from None
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, call: Call) -> Any:
        self._check_control(request)
        await self._models.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _infer(self, request: InferRequest, call: Call) -> InferReply:
        message = request.message
        served = self._find(message.model_name, message.model_version, call)
        deadline, priority = _deadline(message, call.deadline), _priority(message)
        _check_batch(message, self._config.limits.max_batch)
        wanted = _wanted_outputs(message, served)
        with self._models.lease(served), served.batcher.admission(deadline, priority):
            began = time.monotonic()
            inputs, prepared = await self._inputs(request, served)
            decoded = time.monotonic()
            call.stage("decode", began, decoded)
            ran = await served.batcher.run(inputs, deadline, priority)
            call.ran(ran)
            returned = time.monotonic()
            outputs = (
                ran.outputs if prepared is None else await self._in_thread(_full_size, ran.outputs, prepared, served)
            )
            reply = _reply(message, served, wanted, outputs)
            call.stage("encode", returned)
        spent = self._seconds.setdefault(served, [0.0, 0.0])
        spent[0] += decoded - began
        spent[1] += time.monotonic() - returned
        return reply

    async def _inputs(self, request: InferRequest, served: Served) -> tuple[Inputs, pipeline.Prepared | None]:
        """Arrays for the engine, and the picture if the request has one in place of them."""
        if served.card.kind == "tensor":
            return await self._tensors(request, served), None
        if [tensor.datatype for tensor in request.message.inputs] == ["BYTES"]:
            prepared = await self._in_thread(self._picture, request, served)
            return {"image": prepared.batch}, prepared
        inputs = await self._tensors(request, served)
        _check_sides(inputs["image"], served)
        return inputs, None

    async def _tensors(self, request: InferRequest, served: Served) -> Inputs:
        # Views of raw contents cost nothing; typed ones are read value by value, which must not stop the loop.
        if request.raw:
            return tensors.read_inputs(request, served.engine.inputs)
        found: Inputs = await self._in_thread(tensors.read_inputs, request, served.engine.inputs)
        return found

    def _picture(self, request: InferRequest, served: Served) -> pipeline.Prepared:
        encoded = tensors.read_encoded(request, served.engine.inputs[0].name)
        return pipeline.prepare(image.decode(encoded, self._config.limits), served.card, served.bucket)

    async def _stream(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        async def answer(request: Any) -> Any:
            call = started(f"{NAME}/ModelStreamInfer", context)
            try:
                with self._calls.watch(call, streamed=True):
                    if isinstance(request, RequestError):
                        raise request
                    reply = await self._infer(request, call)
            except RequestError as error:
                failed = "" if isinstance(request, RequestError) else request.message.id
                told = pb.ModelInferResponse(id=failed)
                return pb.ModelStreamInferResponse(error_message=str(error), infer_response=told)
            if _parameter(request.message, "triton_enable_empty_final_response", "bool"):
                reply.message.parameters["triton_final_response"].bool_param = True
            return reply

        async for reply in side_by_side(lambda: anext(requests, None), answer, STREAM_DEPTH, in_order=True):
            yield reply

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._codecs, work, *arguments)

    def _find(self, name: str, version: str, call: Call | None = None) -> Served:
        if not name:
            known = sorted({served.card.name for served in self._models.served()})
            raise ModelNotFound("no model named", nearest("", known), field="model_name")
        if version and not (version.isascii() and version.isdecimal() and 0 < int(version[:12]) < 2**31):
            raise FieldError(f"version {version[:40]!r}", "a whole number, or nothing", field="model_version")
        served = self._models.find(name, int(version or 0), None)
        if call:
            call.model, call.version = served.card.name, served.card.version
        return served

    def _check_control(self, request: Any) -> None:
        self._check_repository(request)
        if self._config.models.control != "explicit":
            raise ServerUnavailable("model control is off on this server", hint="serve --set models.control=explicit")

    @staticmethod
    def _check_repository(request: Any) -> None:
        if request.repository_name:
            raise FieldError("repositories have no names here", "an empty name", field="repository_name")


def _deadline(message: Any, deadline: float | None) -> float | None:
    """The earlier of the call's deadline and the request's ``timeout``, in microseconds."""
    timeout = _parameter(message, "timeout", "int64", "uint64")
    if not timeout:
        return deadline
    own: float = time.monotonic() + timeout / 1e6
    return own if deadline is None else min(own, deadline)


def _priority(message: Any) -> int:
    """The batcher's priority, of which the larger goes first, from the protocol's, of which 1 goes first."""
    level = _parameter(message, "priority", "int64", "uint64")
    return max(0, PRIORITIES - level) if level else 0


def _parameter(tensor: Any, name: str, *kinds: str) -> Any:
    """The value of a parameter that a message may carry; nothing if it has none of it.

    Raises:
        FieldError: it is of another kind, or negative.
    """
    if name not in tensor.parameters:
        return None
    value = tensor.parameters[name]
    kind = value.WhichOneof("parameter_choice")
    found: Any = getattr(value, kind) if kind else None
    if kind not in {f"{wanted}_param" for wanted in kinds} or found < 0:
        raise FieldError(f"parameter {name} is {found!r}", f"{' or '.join(kinds)}, not negative", field="parameters")
    return found


def _wanted_outputs(message: Any, served: Served) -> dict[str, int]:
    """Names of the outputs asked for, each with the number of its best classes to tell, 0 for the tensor itself."""
    known = [spec.name for spec in served.engine.outputs]
    wanted: dict[str, int] = {}
    for output in message.outputs:
        if output.name not in known or output.name in wanted:
            problem = "asked for twice" if output.name in wanted else "not known"
            raise FieldError(f"output {output.name!r} is {problem}", nearest(output.name, known), field="outputs")
        _refuse_shared_memory(output)
        wanted[output.name] = _parameter(output, "classification", "int64", "uint64") or 0
    for tensor in message.inputs:
        _refuse_shared_memory(tensor)
    return wanted or dict.fromkeys(known, 0)


def _refuse_shared_memory(tensor: Any) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise FieldError(
            f"{tensor.name!r} is said to be in shared memory", "contents in the message", field="parameters"
        )


def _check_batch(message: Any, limit: int) -> None:
    for tensor in message.inputs:
        if tensor.shape and tensor.shape[0] > limit:
            raise FieldError(
                f"input {tensor.name!r} is a batch of {tensor.shape[0]}",
                f"at most {limit} in one request",
                field=f"inputs[{tensor.name}].shape",
            )


def _check_sides(pixels: Any, served: Served) -> None:
    """Refuse pixels of a size that the model does not take: nothing is scaled here, the reply is the graph's own."""
    card, (height, width) = served.card, pixels.shape[1:3]
    low, high = sorted((height, width))
    if low < card.min_side or high > card.max_side or height * width > card.max_pixels:
        raise ImageTooLarge(
            f"pixels of {height}x{width}",
            f"sides of {card.min_side} to {card.max_side} and at most {card.max_pixels:,} pixels",
            "one encoded image as BYTES, which is scaled",
            field="inputs[image].shape",
        )


def _full_size(outputs: Outputs, prepared: pipeline.Prepared, served: Served) -> Outputs:
    """What the graph says of a picture, at the picture's own size where it is a map of pixels."""
    # Every map is wanted, whatever its score.
    answer = pipeline.Answer(prepared, served.card, options_for(served.card, score_threshold=0.0, mask=False))
    answer.add([outputs])
    if served.card.kind == "cam":
        found = answer.activated()
        return {"cam": found.maps[None], "scores": found.scores[None]}
    result = answer.segmented()
    return {name: getattr(result, attribute)[None] for name, attribute in SEGMENTED.items()}


def _reply(message: Any, served: Served, wanted: dict[str, int], outputs: Outputs) -> InferReply:
    card = served.card
    reply = InferReply(pb.ModelInferResponse(model_name=card.name, model_version=str(card.version), id=message.id))
    for name, count in wanted.items():
        array: Any = outputs[name]
        if count:
            if array.dtype.kind not in "fiu":
                raise FieldError(f"output {name!r} is of {array.dtype}", "numbers to classify", field="outputs")
            array = tensors.classification(array, count, card.classes)
        reply.message.outputs.add(name=name, datatype=tensors.DATATYPES[str(array.dtype)], shape=array.shape)
        reply.raw.append(tensors.write_output(array))
    return reply

"""The Open Inference Protocol, ``inference.GRPCInferenceService``: tensors in and out.

Extensions and status codes follow NVIDIA Triton, so that its clients and perf_analyzer work
unchanged. Models of kind ``segmenter`` and ``cam`` also take one encoded image, as a BYTES element,
instead of its pixels.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakKeyDictionary

import grpc
import numpy as np

from serving.config import ServerConfig
from serving.engines import Inputs, Outputs, check_outputs
from serving.errors import (
    FieldError,
    ModelNotFound,
    ModelRefused,
    OutputError,
    RepositoryError,
    RequestError,
    ServerUnavailable,
    nearest,
)
from serving.images import decoding, pipeline
from serving.images.options import options_for
from serving.repository.models import Models
from serving.repository.served import Served, State
from serving.rpc import descriptions, tensors, wire, wishes
from serving.rpc.calls import Calls
from serving.rpc.metadata import started
from serving.rpc.streams import side_by_side
from serving.rpc.wire import InferReply, InferRequest
from serving.scheduling.codecs import Codecs
from serving.telemetry.call import Call
from wsss.inference import open_inference_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
NAME: str = SERVICE.full_name
SEGMENTED = {"mask": "labels", "scores": "scores", "confidence": "confidence"}


class OpenInferenceService:
    """Answers the calls of the protocol.

    Args:
        codecs: threads for images and for tensors that are not raw, and their memory.
    """

    def __init__(self, models: Models, config: ServerConfig, calls: Calls, codecs: Codecs) -> None:
        self._models = models
        self._config = config
        self._calls = calls
        self._codecs = codecs
        self._extensions = descriptions.extensions(config)
        self._seconds: WeakKeyDictionary[Served, list[float]] = WeakKeyDictionary()

    def handler(self) -> Any:
        """For ``add_generic_rpc_handlers`` of a server."""
        infer = self._calls.unary(
            f"{NAME}/ModelInfer", self.infer, wire.read_request, wire.write_reply
        )
        stream = self._calls.streaming(
            f"{NAME}/ModelStreamInfer", self._stream, wire.read_request, wire.write_streamed
        )
        works = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        return self._calls.service(
            SERVICE, works, {"ModelInfer": infer, "ModelStreamInfer": stream}
        )

    async def server_live(self, request: Any, call: Call) -> Any:
        """The ``ServerLiveResponse``."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any, call: Call) -> Any:
        """The ``ServerReadyResponse``."""
        return pb.ServerReadyResponse(ready=not self._calls.draining)

    async def model_ready(self, request: Any, call: Call) -> Any:
        """The ``ModelReadyResponse`` of a ``ModelReadyRequest``."""
        try:
            self._find(request.name, request.version)
        except RequestError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(self, request: Any, call: Call) -> Any:
        """The ``ServerMetadataResponse``."""
        version = importlib.metadata.version("wsss")
        return pb.ServerMetadataResponse(
            name="wsss-serving", version=version, extensions=self._extensions
        )

    async def model_metadata(self, request: Any, call: Call) -> Any:
        """The ``ModelMetadataResponse`` of a ``ModelMetadataRequest``."""
        model = self._find(request.name, request.version, call)
        versions = self._models.versions(model.card.name)
        return descriptions.metadata(model, versions, self._config)

    async def model_config(self, request: Any, call: Call) -> Any:
        """The ``ModelConfigResponse`` of a ``ModelConfigRequest``."""
        model = self._find(request.name, request.version, call)
        return pb.ModelConfigResponse(config=descriptions.configuration(model, self._config))

    async def model_statistics(self, request: Any, call: Call) -> Any:
        """The ``ModelStatisticsResponse`` of a ``ModelStatisticsRequest``."""
        models = self._models.served()
        if request.name:
            match = self._find(request.name, request.version, call)
            names = (request.name, "")
            models = [s for s in models if s is match or (s.card.name, request.version) == names]
        statistics = [
            descriptions.statistics(model, *self._seconds.get(model, (0.0, 0.0)))
            for model in models
        ]
        return pb.ModelStatisticsResponse(model_stats=statistics)

    async def repository_index(self, request: Any, call: Call) -> Any:
        """The ``RepositoryIndexResponse`` of a ``RepositoryIndexRequest``."""
        self._check_repository(request)
        index = [
            pb.RepositoryIndexResponse.ModelIndex(
                name=state.name,
                version=str(state.version),
                state=str(state.state),
                reason=state.reason,
            )
            for state in self._models.index()
            if state.state == State.READY or not request.ready
        ]
        return pb.RepositoryIndexResponse(models=index)

    async def _load(self, request: Any, call: Call) -> Any:
        self._check_control(request)
        if request.parameters:
            raise FieldError(
                "load parameters are not supported",
                "no parameters: models come only from the repository",
                field="parameters",
            )
        try:
            await self._models.load(request.model_name)
        except RepositoryError:
            raise ModelRefused(
                f"model {request.model_name!r} is not sound; the server keeps what it served",
                hint="RepositoryIndex and the server's log give the reason",
                field="model_name",
            ) from None
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, call: Call) -> Any:
        self._check_control(request)
        await self._models.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def infer(self, request: InferRequest, call: Call) -> InferReply:
        """The reply to a request."""
        message = request.message
        model = self._find(message.model_name, message.model_version, call)
        deadline, priority = wishes.deadline(message, call.deadline), wishes.priority(message)
        wishes.check_batch(message, self._config.limits.max_batch)
        choice = wishes.wanted_outputs(message, model)
        with (
            self._models.lease(model),
            model.batcher.admission(deadline, priority),
            self._codecs.memory.reserve(sum(map(len, request.raw))),
        ):
            began = time.monotonic()
            inputs, canvas = await self._inputs(request, model)
            start = time.monotonic()
            call.stage("decode", began, start)
            ran = await model.batcher.run(inputs, deadline, priority)
            call.ran(ran)
            end = time.monotonic()
            outputs = ran.outputs
            if canvas:
                with self._codecs.memory.count(pipeline.finish_bytes(canvas)):
                    outputs = await self._codecs.run(_full_size, outputs, canvas, model)
            else:
                _check_outputs(outputs, inputs, model)
            reply = _reply(message, model, choice, outputs)
            call.stage("encode", end)
        spent = self._seconds.setdefault(model, [0.0, 0.0])
        spent[0] += start - began
        spent[1] += time.monotonic() - end
        return reply

    async def _inputs(
        self, request: InferRequest, model: Served
    ) -> tuple[Inputs, pipeline.Canvas | None]:
        """Arrays for the engine, and the canvas if the request has an image instead of pixels."""
        if model.card.kind == "tensor":
            return await self._tensors(request, model), None
        if [tensor.datatype for tensor in request.message.inputs] == ["BYTES"]:
            canvas = await self._codecs.run(self._picture, request, model)
            return {"image": canvas.batch}, canvas
        inputs = await self._tensors(request, model)
        wishes.check_sides(inputs["image"], model)
        return inputs, None

    async def _tensors(self, request: InferRequest, model: Served) -> Inputs:
        # Views of raw contents cost nothing. Typed contents are read value by value, which would
        # block the event loop.
        if request.raw:
            return tensors.read_inputs(request, model.engine.inputs)
        arrays: Inputs = await self._codecs.run(tensors.read_inputs, request, model.engine.inputs)
        return arrays

    def _picture(self, request: InferRequest, model: Served) -> pipeline.Canvas:
        data = tensors.read_encoded(request, model.engine.inputs[0].name)
        return pipeline.prepare(
            decoding.decode(data, self._config.limits, self._codecs.memory.reserve),
            model.card,
            model.bucket,
        )

    async def _stream(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Any]:
        async def answer(request: Any) -> Any:
            call = started(f"{NAME}/ModelStreamInfer", context)
            try:
                with self._calls.watch(call):
                    if isinstance(request, RequestError):
                        raise request
                    final = wishes.parameter(
                        request.message, "triton_enable_empty_final_response", "bool"
                    )
                    reply = await self.infer(request, call)
            except RequestError as error:
                request_id = "" if isinstance(request, RequestError) else request.message.id
                empty = pb.ModelInferResponse(id=request_id)
                return pb.ModelStreamInferResponse(error_message=str(error), infer_response=empty)
            if final:
                reply.message.parameters["triton_final_response"].bool_param = True
            return reply

        depth = self._config.limits.stream_in_flight
        async for reply in side_by_side(
            lambda: anext(requests, None), answer, depth, in_order=True
        ):
            yield reply

    def _find(self, name: str, version: str, call: Call | None = None) -> Served:
        if not name:
            names = sorted({model.card.name for model in self._models.served()})
            raise ModelNotFound("no model named", nearest("", names), field="model_name")
        if version and not (
            # A hostile version of a million digits would keep int() busy.
            version.isascii() and version.isdecimal() and 0 < int(version[:12]) < 2**31
        ):
            raise FieldError(
                f"version {version[:40]!r}", "a whole number, or nothing", field="model_version"
            )
        model = self._models.find(name, int(version or 0), None)
        if call:
            call.model, call.version = model.card.name, model.card.version
        return model

    def _check_control(self, request: Any) -> None:
        self._check_repository(request)
        if self._config.models.control != "explicit":
            raise ServerUnavailable(
                "model control is off on this server", hint="start it with --control explicit"
            )

    @staticmethod
    def _check_repository(request: Any) -> None:
        if request.repository_name:
            raise FieldError(
                "the repository has no name", "an empty repository_name", field="repository_name"
            )


def _check_outputs(outputs: Outputs, inputs: Inputs, model: Served) -> None:
    """Check the outputs of a run against the card or, for a tensor model, the graph.

    Raises:
        OutputError: they differ from its promise.
    """
    batch, *sides = next(iter(inputs.values())).shape
    if model.card.kind != "tensor":
        check_outputs(model.card, outputs, batch, sides[0], sides[1])
        return
    for spec in model.engine.outputs:
        array = outputs[spec.name]
        if (
            str(array.dtype) != spec.dtype
            or len(array.shape) != len(spec.shape)
            or len(array) != batch
        ):
            raise OutputError(
                f"output {spec.name!r} of {model.card.name} is {array.dtype} {list(array.shape)}",
                f"{spec.dtype} {[batch, *spec.shape[1:]]}",
            )


def _full_size(outputs: Outputs, canvas: pipeline.Canvas, model: Served) -> Outputs:
    """The graph's answer to an image, with pixel maps at the image's size."""
    # A threshold of 0 keeps every map.
    answer = pipeline.Answer(
        canvas, model.card, options_for(model.card, score_threshold=0.0, mask=False)
    )
    answer.add([outputs])
    if model.card.kind == "cam":
        maps = answer.activated()
        return {"cam": maps.maps[None], "scores": maps.scores[None]}
    result = answer.segmented()
    answers: Outputs = {
        name: getattr(result, attribute)[None] for name, attribute in SEGMENTED.items()
    }
    if result.doubt is not None:
        answers["doubt"] = np.array([[result.doubt]], np.float32)
    return answers


def _reply(message: Any, model: Served, choice: dict[str, int], outputs: Outputs) -> InferReply:
    card = model.card
    reply = InferReply(
        pb.ModelInferResponse(model_name=card.name, model_version=str(card.version), id=message.id)
    )
    for name, count in choice.items():
        array: Any = outputs[name]
        if count:
            if array.ndim != 2 or array.dtype.kind not in "fiu":
                problem = f"output {name!r} is {array.dtype} {list(array.shape)}"
                raise FieldError(problem, "a score for each class, to classify", field="outputs")
            array = tensors.classification(array, count, card.classes)
        reply.message.outputs.add(
            name=name, datatype=tensors.DATATYPES[str(array.dtype)], shape=array.shape
        )
        reply.raw.append(tensors.write_output(array))
    return reply

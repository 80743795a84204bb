"""The ``wsss.v1.Segmentation`` service: requests to the pipeline, and its results to replies."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.capture import Candidate, Capture
from serving.card import Kind
from serving.config import OversizeRule, ServerConfig, TilingConfig
from serving.engines import Outputs
from serving.errors import FieldError
from serving.images import decoding, pipeline
from serving.images.decoding import Picture
from serving.images.options import Options, options_for
from serving.images.pipeline import Answer, Canvas
from serving.images.rgb import Pixels
from serving.repository.models import Models
from serving.repository.served import Served
from serving.rpc import replies
from serving.rpc.calls import Calls
from serving.rpc.stream import SegmentStream
from serving.scheduling.codecs import Codecs
from serving.telemetry.call import Call
from wsss.v1 import segmentation_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Segmentation"]
NAME: str = SERVICE.full_name
# Tiles of one image in the queue at once: enough for a batch, but not the whole queue.
TILES_AT_ONCE = 4
NO_PIXELS = np.empty((0, 0, 3), np.uint8)
OVERSIZE: dict[Any, OversizeRule] = {
    pb.OVERSIZE_SCALE: "scale",
    pb.OVERSIZE_TILE: "tile",
    pb.OVERSIZE_AUTO: "auto",
}


@dataclass(frozen=True)
class Job:
    """An image on its way through a model.

    Attributes:
        tiles: treatment of an image above the model's limits.
        priority: a larger one goes first in the queue.
        with_pixels: the reply shows the image, whose pixels must be kept until then.
    """

    call: Call
    model: Served
    options: Options
    tiles: TilingConfig
    priority: int = 0
    with_pixels: bool = False


class SegmentationService:
    """Answers the calls of the protocol.

    Args:
        codecs: threads that decode and encode, and their memory.
        capture: keeps doubtful images; None keeps none.
    """

    def __init__(
        self,
        models: Models,
        config: ServerConfig,
        codecs: Codecs,
        calls: Calls,
        capture: Capture | None = None,
    ) -> None:
        self._capture = capture
        self._models = models
        self._config = config
        self._codecs = codecs
        self._calls = calls

    def handler(self) -> Any:
        """For ``add_generic_rpc_handlers`` of a server."""
        works = {
            "Segment": self.segment,
            "ComputeCam": self.compute_cam,
            "ListModels": self.list_models,
            "GetModel": self.get_model,
        }
        stream = SegmentStream(
            self._calls, self.segment, self._codecs.memory, self._config.limits.stream_in_flight
        )
        return self._calls.service(SERVICE, works, {"SegmentStream": stream.handler()})

    async def segment(
        self, request: Any, call: Call, priority: int = 0, overlay: bool = False
    ) -> Any:
        """The ``SegmentResponse`` of a ``SegmentRequest``.

        Args:
            overlay: the PNG of the mask is a picture for people: the mask over the image.
        """
        model = self._find(request, call, ("cam",) if request.cam else ("segmenter", "cam"))
        options = options_for(
            model.card,
            classes=request.classes,
            tags=request.tags,
            score_threshold=_optional(request, "score_threshold"),
            background_threshold=_optional(request, "background_threshold"),
            confidence_threshold=_optional(request, "confidence_threshold"),
        )
        encoding = _one_of(request.encoding, pb.MaskEncoding, "encoding")
        form = _one_of(request.cam_format, pb.CamFormat, "cam_format")
        with_pixels = overlay or (request.cam and form == pb.CAM_FORMAT_OVERLAY)
        job = Job(call, model, options, self._tiles(request), priority, with_pixels)

        def reply(answer: Answer, picture: Picture) -> Any:
            result = answer.segmented()
            if self._capture:
                self._capture.offer(
                    result.doubt,
                    lambda: Candidate(
                        _bytes(request.image),
                        picture.format,
                        result.labels,
                        result.scores,
                        result.doubt or 0.0,
                        model.card,
                        options,
                    ),
                )
            return pb.SegmentResponse(
                mask=replies.overlay(result, model.card, picture)
                if overlay
                else replies.mask(result, encoding, model.card),
                classes=replies.classes(model.card, result.scores, options, result),
                confidence=replies.confidence(result.confidence, encoding)
                if request.confidence
                else None,
                cam=replies.cam(result.activated, form, model.card, picture)
                if request.cam and result.activated
                else None,
                doubt=result.doubt,
            )

        return await self._answer(request, job, reply)

    async def compute_cam(self, request: Any, call: Call) -> Any:
        """The ``ComputeCamResponse`` of a ``ComputeCamRequest``."""
        model = self._find(request, call, "cam")
        options = options_for(
            model.card,
            tags=request.tags,
            score_threshold=_optional(request, "score_threshold"),
            mask=False,
        )
        form = _one_of(request.format, pb.CamFormat, "format")

        def reply(answer: Answer, picture: Picture) -> Any:
            result = answer.activated()
            return pb.ComputeCamResponse(
                cam=replies.cam(result, form, model.card, picture),
                classes=replies.classes(model.card, result.scores, options),
            )

        overlay = form == pb.CAM_FORMAT_OVERLAY
        job = Job(call, model, options, self._tiles(request), with_pixels=overlay)
        return await self._answer(request, job, reply)

    async def list_models(self, request: Any, call: Call) -> Any:
        """The ``ListModelsResponse``."""
        newest = {model.card.name: model for model in self._models.served()}
        models = [self._describe(model) for model in newest.values()]
        limits, tiling = self._config.limits, self._config.tiling
        return pb.ListModelsResponse(
            models=models,
            limits=pb.Limits(
                max_image_bytes=limits.max_bytes,
                max_image_pixels=limits.max_pixels,
                max_aspect=limits.max_aspect,
                max_message_bytes=limits.message_bytes,
                max_tiles=tiling.max_tiles,
                max_stream_in_flight=limits.stream_in_flight,
                max_queue=self._config.schedule.queue,
                oversize=next(
                    number for number, rule in OVERSIZE.items() if rule == tiling.oversize
                ),
                tile_overlap=tiling.overlap,
                max_streams=limits.max_streams,
                max_per_caller=limits.calls_per_caller,
            ),
        )

    async def get_model(self, request: Any, call: Call) -> Any:
        """The ``Model`` of a ``GetModelRequest``."""
        return self._describe(self._find(request, call, None))

    def _describe(self, model: Served) -> Any:
        versions = self._models.versions(model.card.name)
        return replies.model(model.card, versions, model.engine.description)

    def _find(self, request: Any, call: Call, kind: Kind | tuple[Kind, ...] | None) -> Served:
        model = self._models.find(request.model, request.version, kind)
        call.model, call.version = model.card.name, model.card.version
        return model

    def _tiles(self, request: Any) -> TilingConfig:
        """The request's treatment of images above the model's limits, or the server's."""
        rule = OVERSIZE.get(
            _one_of(request.oversize, pb.Oversize, "oversize"), self._config.tiling.oversize
        )
        overlap = _optional(request, "tile_overlap")
        if overlap is None:
            overlap = self._config.tiling.overlap
        if not math.isfinite(overlap) or not 0 <= overlap <= 0.5:
            raise FieldError(f"tile_overlap is {overlap}", "0 to 0.5", field="tile_overlap")
        return dataclasses.replace(self._config.tiling, oversize=rule, overlap=overlap)

    async def _answer(self, request: Any, job: Job, reply: Callable[[Answer, Picture], Any]) -> Any:
        """Run the image of a request, and complete the reply with what every reply carries."""
        # The order matters: the lease keeps the engine loaded, the place in the queue bounds how
        # many images are in memory, and both must outlive the decoding.
        call, model, memory = job.call, job.model, self._codecs.memory
        with self._models.lease(model), model.batcher.admission(call.deadline, job.priority):
            data = _bytes(request.image)
            # Twice: protobuf holds one copy in the message and returned another.
            with memory.reserve(2 * len(data)):
                picture, canvas = await self._codecs.run(self._decode, data, request.image, job)
                del data
                with memory.count(canvas.batch.nbytes + picture.pixels.nbytes):
                    answer = Answer(canvas, model.card, job.options)
                    last = await self._run(canvas, answer, job)

                def finish() -> Any:
                    began = time.monotonic()
                    answer.add(last)
                    with memory.count(pipeline.finish_bytes(canvas)):
                        message = reply(answer, picture)
                    message.image.CopyFrom(replies.image_info(picture, canvas))
                    message.provenance.CopyFrom(
                        replies.provenance(model, canvas, job.options, job.tiles.overlap)
                    )
                    call.stage("encode", began)
                    message.timings.CopyFrom(_timings(call))
                    return message

                return await self._codecs.run(finish)

    def _decode(self, data: bytes, source: Any, job: Job) -> tuple[Picture, Canvas]:
        began = time.monotonic()
        limits = self._config.limits
        if source.HasField("raw"):
            picture = decoding.from_raw(data, source.raw.height, source.raw.width, limits)
        else:
            picture = decoding.decode(data, limits, self._codecs.memory.reserve)
        canvas = pipeline.prepare(picture, job.model.card, job.model.bucket, job.tiles)
        if not job.with_pixels:
            # Drop the pixels early. Only overlays need them later, and many requests wait at this
            # point.
            picture = dataclasses.replace(picture, pixels=NO_PIXELS)
        job.call.stage("decode", began)
        return picture, canvas

    async def _run(self, canvas: Canvas, answer: Answer, job: Job) -> list[Outputs]:
        """Give ``answer`` every row of tiles but the last, which is left to the caller."""
        row: list[Outputs] = []
        for batches in canvas.rows():
            if row:
                await self._codecs.run(answer.add, row)
            row = []
            for first in range(0, len(batches), TILES_AT_ONCE):
                row += await self._run_together(batches[first : first + TILES_AT_ONCE], job)
        return row

    async def _run_together(self, batches: list[Pixels], job: Job) -> list[Outputs]:
        """Outputs of a few tiles; the first failure ends the others."""
        call, batcher = job.call, job.model.batcher
        tasks = [
            asyncio.ensure_future(batcher.run({"image": batch}, call.deadline, job.priority))
            for batch in batches
        ]
        try:
            shares = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        for share in shares:
            call.ran(share)
        return [share.outputs for share in shares]


def _bytes(source: Any) -> bytes:
    """The file or the pixels of an image; protobuf copies them."""
    kind = source.WhichOneof("source")
    if kind is None:
        raise FieldError("no image in the request", "image.encoded or image.raw", field="image")
    data: bytes = source.raw.pixels if kind == "raw" else source.encoded
    return data


def _timings(call: Call) -> Any:
    return pb.Timings(
        decode=call.seconds("decode"),
        queue=call.seconds("queue"),
        run=call.seconds("infer"),
        encode=call.seconds("encode"),
        total=time.monotonic() - call.began,
    )


def _optional(message: Any, field: str) -> float | None:
    return float(getattr(message, field)) if message.HasField(field) else None


def _one_of(value: int, kind: Any, field: str) -> int:
    if value not in kind.values():
        raise FieldError(
            f"{field} {value} is not known to this server", ", ".join(kind.keys()[1:]), field=field
        )
    return value

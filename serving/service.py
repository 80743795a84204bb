"""The ``wsss.v1.Segmentation`` service: requests to the pipeline, results to replies, errors to statuses."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from serving import image, masks, pipeline
from serving.batcher import Ran
from serving.calls import Call, Calls
from serving.config import Limits
from serving.errors import FieldError, nearest
from serving.image import Picture
from serving.models import Models, Served
from serving.pipeline import Prepared
from serving.repository import Card, Kind
from wsss.v1 import segmentation_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Segmentation"]
NAME: str = SERVICE.full_name
SOURCE = ("run", "method", "backbone", "commit", "data_fingerprint")
KINDS: dict[Kind, Any] = {
    "segmenter": pb.MODEL_KIND_SEGMENTER,
    "cam": pb.MODEL_KIND_CAM,
    "tensor": pb.MODEL_KIND_TENSOR,
}


class SegmentationService:
    """Answers the calls of the protocol.

    Args:
        models: to answer with.
        limits: for images.
        codecs: threads that decode and encode.
        calls: what every call goes through.
    """

    def __init__(self, models: Models, limits: Limits, codecs: ThreadPoolExecutor, calls: Calls) -> None:
        self._models = models
        self._limits = limits
        self._codecs = codecs
        self._calls = calls

    def handler(self) -> Any:
        """For ``add_generic_rpc_handlers`` of a server."""
        works = {
            "Segment": self._segment,
            "ComputeCam": self._compute_cam,
            "ListModels": self._list_models,
            "GetModel": self._get_model,
        }
        return self._calls.service(SERVICE, works)

    async def _segment(self, request: Any, call: Call) -> Any:
        served = self._find(request, call, "segmenter")
        card = served.card
        threshold = _score_threshold(request, card)
        kept = [index + 1 for index in _indices(request.classes, card, "classes")] if request.classes else None
        encoding = _one_of(request.encoding, pb.MaskEncoding, "encoding")
        with self._models.lease(served), served.batcher.admission(call.deadline):
            picture, prepared, ran = await self._run(request.image, served, call)

            def finish() -> Any:
                result = pipeline.segmented(ran.outputs, prepared, card, kept)
                reply = pb.SegmentResponse(
                    mask=_plane(pb.Mask, result.labels, encoding, lambda map_: masks.encode_labels(map_, card.palette)),
                    classes=_class_results(card, result.scores, threshold, result.areas[1:], kept),
                )
                if request.confidence:
                    confidence = _plane(pb.Confidence, result.confidence, encoding, masks.encode_grey)
                    reply.confidence.CopyFrom(confidence)
                return reply

            return await self._reply(finish, served, picture, prepared, ran, call, threshold)

    async def _compute_cam(self, request: Any, call: Call) -> Any:
        served = self._find(request, call, "cam")
        card = served.card
        threshold = _score_threshold(request, card)
        tags = _indices(request.tags, card, "tags")
        form = _one_of(request.format, pb.CamFormat, "format")
        with self._models.lease(served), served.batcher.admission(call.deadline):
            picture, prepared, ran = await self._run(request.image, served, call)

            def finish() -> Any:
                result = pipeline.activated(ran.outputs, prepared, card)
                wanted = tags or [k for k, score in enumerate(result.scores) if score >= threshold]
                maps = result.maps[wanted]
                cam = pb.Cam(height=maps.shape[1], width=maps.shape[2], classes=[card.classes[k] for k in wanted])
                if form == pb.CAM_FORMAT_FLOAT16:
                    cam.float16 = maps.astype("<f2").tobytes()
                else:
                    cam.uint8 = masks.quantise(maps).tobytes()
                return pb.ComputeCamResponse(cam=cam, classes=_class_results(card, result.scores, threshold))

            return await self._reply(finish, served, picture, prepared, ran, call, threshold)

    async def _list_models(self, request: Any, call: Call) -> Any:
        limits = pb.Limits(
            max_image_bytes=self._limits.max_bytes,
            max_image_pixels=self._limits.max_pixels,
            max_aspect=self._limits.max_aspect,
        )
        newest = {served.card.name: served for served in self._models.served()}
        models = [self._describe(served) for served in newest.values()]
        return pb.ListModelsResponse(models=models, limits=limits)

    async def _get_model(self, request: Any, call: Call) -> Any:
        return self._describe(self._find(request, call, None))

    def _describe(self, served: Served) -> Any:
        versions = [other.card.version for other in self._models.served() if other.card.name == served.card.name]
        return describe(served.card, versions, served.engine.description)

    def _find(self, request: Any, call: Call, kind: Kind | None) -> Served:
        served = self._models.find(request.model, request.version, kind)
        call.model, call.version = served.card.name, served.card.version
        return served

    async def _run(self, source: Any, served: Served, call: Call) -> tuple[Picture, Prepared, Ran]:
        """Decode in a codec thread, then queue for the engine."""

        def decode() -> tuple[Picture, Prepared]:
            began = time.monotonic()
            picture = _picture(source, self._limits)
            prepared = pipeline.prepare(picture, served.card, served.bucket)
            call.stage("decode", began)
            return picture, prepared

        picture, prepared = await asyncio.get_running_loop().run_in_executor(self._codecs, decode)
        ran = await served.batcher.run({"image": prepared.batch}, call.deadline)
        call.ran(ran)
        return picture, prepared, ran

    async def _reply(
        self,
        finish: Callable[[], Any],
        served: Served,
        picture: Picture,
        prepared: Prepared,
        ran: Ran,
        call: Call,
        threshold: float,
    ) -> Any:
        """Run ``finish`` in a codec thread and complete its reply with what both kinds of reply carry."""

        def work() -> Any:
            began = time.monotonic()
            reply = finish()
            reply.image.CopyFrom(_image_info(picture, prepared))
            reply.provenance.CopyFrom(_provenance(served, threshold))
            now = time.monotonic()
            call.stage("encode", began, now)
            reply.timings.decode, reply.timings.encode = call.seconds("decode"), call.seconds("encode")
            reply.timings.queue, reply.timings.run = ran.queued, ran.ran
            reply.timings.total = now - call.began
            return reply

        return await asyncio.get_running_loop().run_in_executor(self._codecs, work)


def describe(card: Card, versions: Sequence[int], engine: str) -> Any:
    """A card as the ``Model`` message."""
    model = pb.Model(
        name=card.name,
        version=card.version,
        versions=sorted(versions),
        kind=KINDS[card.kind],
        labels=[
            pb.Label(name=name, red=red, green=green, blue=blue)
            for name, (red, green, blue) in zip(card.labels, card.palette)
        ],
        input=pb.InputLimits(min_side=card.min_side, max_side=card.max_side, max_pixels=card.max_pixels),
        sha256=card.graph_sha256,
        engine=engine,
        score_threshold=card.score_threshold,
        background_threshold=card.background_threshold,
        scales=card.scales,
        flip=card.flip,
        protocol=card.protocol,
        supervision=card.supervision,
        source=pb.Source(
            **{key: str(card.source.get(key) or "") for key in SOURCE},
            seed=int(card.source.get("seed") or 0),
        ),
    )
    model.metrics.update(card.metrics)
    if card.created:
        model.created.FromDatetime(card.created)
    return model


def _picture(source: Any, limits: Limits) -> Picture:
    kind = source.WhichOneof("source")
    if kind == "encoded":
        return image.decode(source.encoded, limits)
    if kind == "raw":
        return image.from_raw(source.raw.pixels, source.raw.height, source.raw.width, limits)
    raise FieldError("no image in the request", "image.encoded or image.raw", field="image")


def _plane(kind: Callable[..., Any], values: image.Pixels, encoding: int, png: Callable[[image.Pixels], bytes]) -> Any:
    height, width = values.shape
    if encoding == pb.MASK_ENCODING_RAW:
        return kind(height=height, width=width, raw=values.tobytes())
    return kind(height=height, width=width, png=png(values))


def _class_results(
    card: Card,
    scores: Sequence[float] | Any,
    threshold: float,
    areas: Sequence[int] | Any = None,
    kept: Sequence[int] | None = None,
) -> list[Any]:
    return [
        pb.ClassResult(
            name=name,
            label=k + 1,
            score=float(scores[k]),
            present=bool(scores[k] >= threshold),
            area=0 if areas is None else int(areas[k]),
        )
        for k, name in enumerate(card.classes)
        if kept is None or k + 1 in kept
    ]


def _image_info(picture: Picture, prepared: Prepared) -> Any:
    tall, wide = prepared.model_size
    return pb.ImageInfo(
        height=prepared.height,
        width=prepared.width,
        model_height=tall,
        model_width=wide,
        format=picture.format,
        mode=picture.mode,
        several_frames=picture.several_frames,
        orientation=picture.orientation,
    )


def _provenance(served: Served, threshold: float) -> Any:
    card = served.card
    return pb.Provenance(
        model=card.name,
        version=card.version,
        sha256=card.graph_sha256,
        engine=served.engine.description,
        score_threshold=threshold,
        scales=card.scales,
        flip=card.flip,
        protocol=card.protocol,
        bucket=served.bucket,
    )


def _indices(names: Iterable[str], card: Card, field: str) -> list[int]:
    """Class indices of names, rising, each once."""
    chosen = set()
    for name in names:
        if name not in card.classes:
            raise FieldError(f"model {card.name!r} has no class {name!r}", nearest(name, card.classes), field=field)
        chosen.add(card.classes.index(name))
    return sorted(chosen)


def _score_threshold(request: Any, card: Card) -> float:
    if not request.HasField("score_threshold"):
        return card.score_threshold
    value = float(request.score_threshold)
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise FieldError(f"score_threshold is {value}", "0 to 1", field="score_threshold")
    return value


def _one_of(value: int, kind: Any, field: str) -> int:
    if value not in kind.values():
        raise FieldError(f"{field} {value} is not known to this server", ", ".join(kind.keys()[1:]), field=field)
    return value

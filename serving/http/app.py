"""The HTTP API: images in; masks, maps and descriptions out."""

from __future__ import annotations

import json
from collections.abc import Coroutine, Sequence
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.config import ServerConfig
from serving.errors import FieldError, MethodNotAllowed, ModelNotFound, PathNotFound, RequestError
from serving.http import static
from serving.http.door import Chunks, Door, Work, json_reply, while_there, whole
from serving.http.openapi import description
from serving.http.operations import CAM, SEGMENT, Operation
from serving.http.problems import problem
from serving.http.shapes import fill
from serving.repository.models import Models
from serving.rpc.service import SegmentationService
from serving.scheduling.codecs import Codecs
from serving.telemetry.call import Call
from serving.telemetry.heads import path_of
from serving.telemetry.port import PROBES
from wsss.v1 import segmentation_pb2 as pb

MULTIPART = "multipart/form-data"
IMAGES = ("application/octet-stream", "image/", MULTIPART)
MAX_FIELDS = 64
MODEL = "/v1/models/{name}"
TWO_LENGTHS = RequestError("content-length beside transfer-encoding", "one of them")


class Api:
    """Answers the requests.

    Args:
        codecs: threads that write replies.
        others: method, path and work of further routes.
    """

    def __init__(
        self,
        door: Door,
        segmentation: SegmentationService,
        models: Models,
        codecs: Codecs,
        config: ServerConfig,
        others: Sequence[tuple[str, str, Work]] = (),
    ) -> None:
        self._others = others
        self._door = door
        self._segmentation = segmentation
        self._models = models
        self._codecs = codecs
        self._config = config

    def application(self) -> Starlette:
        """The application for an ASGI server."""
        works: list[tuple[str, str, Work]] = [
            ("GET", "/v1/models", self._list_models),
            ("GET", MODEL, self._get_model),
            ("GET", f"{MODEL}/sample", self._sample),
            ("POST", f"{MODEL}/segment", self._segment),
            ("POST", f"{MODEL}/cam", self._cam),
            *self._others,
        ]
        routes: list[BaseRoute] = [
            Route(path, self._door.endpoint(f"{method} {path}", work), methods=[method])
            for method, path, work in works
        ]
        text = json.dumps(description()).encode()

        async def openapi(request: Request) -> Response:
            return Response(text, media_type="application/json")

        routes += [Route("/openapi.json", openapi), *static.routes()]
        routes += [Route(path, _elsewhere) for path in PROBES]
        origins = list(self._config.http.origins)
        cors = Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "server-timing", "retry-after", "x-wsss-model"],
        )
        return Starlette(
            routes=routes,
            middleware=[Middleware(_Sound), *([cors] if origins else [])],
            exception_handlers={HTTPException: _no_such_route},
        )

    async def _list_models(self, request: Request, call: Call) -> Response:
        return json_reply(await self._segmentation.list_models(pb.ListModelsRequest(), call))

    async def _get_model(self, request: Request, call: Call) -> Response:
        return json_reply(await self._segmentation.get_model(_named(request), call))

    async def _sample(self, request: Request, call: Call) -> Response:
        """The image that the model was tried with at export."""
        message = _named(request)
        card = self._models.find(message.model, message.version, None).card
        if not card.golden:
            raise ModelNotFound(
                f"model {card.name!r} has no sample image", "a model that was exported with one"
            )
        path = card.folder / card.golden.image
        try:
            content = await self._codecs.run(path.read_bytes)
        except OSError as error:
            raise ModelNotFound(
                f"the sample image of model {card.name!r} is not in the repository any more",
                "a version whose folder is still there",
            ) from error
        return Response(content, media_type="image/png")

    async def _segment(self, request: Request, call: Call) -> Response:
        message, form = await self._message(request, call, SEGMENT)
        if form == "json":
            return await self._as_json(request, self._segmentation.segment(message, call))
        if message.confidence or message.cam or message.encoding > pb.MASK_ENCODING_PNG:
            raise FieldError(
                f"format={form} holds neither confidence nor cam nor another encoding",
                "format=json",
                field="format",
            )
        work = self._segmentation.segment(message, call, overlay=form == "overlay")
        reply = await while_there(request, work)
        return _png(reply.mask.png, reply)

    async def _cam(self, request: Request, call: Call) -> Response:
        message, form = await self._message(request, call, CAM)
        if form == "json":
            return await self._as_json(request, self._segmentation.compute_cam(message, call))
        message.format = pb.CAM_FORMAT_OVERLAY
        reply = await while_there(request, self._segmentation.compute_cam(message, call))
        if len(reply.cam.classes) != 1:
            raise FieldError(
                f"{len(reply.cam.classes)} classes have a map, and format=overlay is one picture",
                "tags with one class",
                "format=json with cam_format=overlay",
                field="tags",
            )
        return _png(reply.cam.overlays.png[0], reply)

    async def _as_json(self, request: Request, work: Coroutine[Any, Any, Any]) -> Response:
        reply = await while_there(request, work)
        # In a thread: the outlines of a ragged mask are megabytes of text.
        response: Response = await self._codecs.run(json_reply, reply)
        return response

    async def _message(self, request: Request, call: Call, operation: Operation) -> tuple[Any, str]:
        """The message that a request stands for, and the format of its reply."""
        items = request.query_params.multi_items()
        # Before the body is read, so that a wrong option costs nothing.
        wish = operation.read(items)
        limits = self._config.limits
        if request.headers.get("content-type", "").lower().startswith(MULTIPART):

            async def read(chunks: Chunks) -> tuple[bytes, list[tuple[str, str]]]:
                return await _parts(request, chunks, limits.message_bytes)

            image, more = await self._door.read(request, call, limits.message_bytes, IMAGES, read)
            wish = operation.read([*items, *more])
        else:
            image = await self._door.read(request, call, limits.max_bytes, IMAGES, whole)
        if wish.seconds is not None:
            call.deadline = call.began + wish.seconds
        wish.message.model = request.path_params["name"]
        wish.message.image.encoded = image
        accepted = ",".join(request.headers.getlist("accept"))
        return wish.message, wish.format or operation.accepted(accepted)


class _Sound:
    """Refuses a request of two lengths, and gives every spelling of a path to its one route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["path"] = path_of(scope["path"])
        if not {"content-length", "transfer-encoding"} <= set(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        # A proxy may have taken the other one for the end, and passes the rest on as a request.
        response = problem(TWO_LENGTHS, scope["path"])
        response.headers["connection"] = "close"
        await response(scope, receive, send)


async def _parts(
    request: Request, chunks: Chunks, limit: int
) -> tuple[bytes, list[tuple[str, str]]]:
    """The only file of a multipart body, and its other fields, which are options."""
    parser = MultiPartParser(request.headers, chunks, max_files=1, max_fields=MAX_FIELDS)
    # Never to the disk: the memory is counted already.
    parser.spool_max_size = limit + 1
    try:
        form = await parser.parse()
    # Starlette passes errors of the parser below it on, except in its latest versions.
    except (MultiPartException, FormParserError) as error:
        raise FieldError(
            f"no valid form: {error}",
            "multipart/form-data with one file",
            "curl -F image=@photo.jpg",
        ) from None
    files = [value for value in form.values() if isinstance(value, UploadFile)]
    try:
        if not files:
            raise FieldError(
                "no file in the form", "one", "curl -F image=@photo.jpg", field="image"
            )
        items = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        return await files[0].read(), items
    finally:
        await form.close()


def _named(request: Request) -> Any:
    message = pb.GetModelRequest(model=request.path_params["name"])
    fill(message, request.query_params.multi_items(), {"version": "version"})
    return message


def _png(data: bytes, reply: Any) -> Response:
    source = reply.provenance
    headers = {"x-wsss-model": f"{source.model}/{source.version}"}
    return Response(data, headers=headers, media_type="image/png")


async def _elsewhere(request: Request) -> Response:
    """Send the caller to the process that answers probes: by another connection."""
    return RedirectResponse(request.url.path, headers={"connection": "close"})


async def _no_such_route(request: Request, error: Exception) -> Response:
    path = request.url.path
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        response = problem(MethodNotAllowed(f"{request.method} of {path}", allowed), path)
        response.headers["allow"] = allowed
    else:
        response = problem(PathNotFound(f"no path {path}", "see /openapi.json"), path)
    # There may be a body, and nobody reads it.
    response.headers["connection"] = "close"
    return response

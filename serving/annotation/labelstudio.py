"""The backend that Label Studio asks for predictions, by its protocol.

``GET /health``, ``POST /setup`` when a project connects, ``POST /predict`` for tasks, ``/versions``
and ``/webhook``. The masks come from a server of ours, local or not.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.annotation.brush import brush_runs
from serving.annotation.images import Images
from serving.annotation.outlines import editable
from serving.annotation.project import Control, control_of
from serving.client import AsyncClient, Segmentation
from serving.config import Limits
from serving.errors import (
    FieldError,
    MediaTypeRefused,
    MethodNotAllowed,
    PathNotFound,
    RequestError,
    RetryLater,
    TokenUnknown,
    nearest,
)
from serving.http.door import claim, gone, received, while_there, whole
from serving.http.problems import problem

log = logging.getLogger(__name__)

# Images that are under way at once, and requests whose bodies are in memory.
AT_ONCE = 4
# Of a request: tasks may hold their images.
BODY_BYTES = 512 * 1024 * 1024
Work = Callable[[Request], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Wish:
    """What the operator chose.

    Attributes:
        model: its name; empty is the only one.
        classes: to draw; empty for all of the model.
        tolerance: see :func:`serving.annotation.outlines.editable`.
        login: ``USER:PASSWORD`` that Label Studio must send; empty for none.
    """

    model: str = ""
    classes: tuple[str, ...] = ()
    tolerance: float = 1.0
    login: str = ""


class Backend:
    """Answers Label Studio.

    Args:
        client: of the server that has the model.
        images: reads what tasks name.
    """

    def __init__(self, client: AsyncClient, images: Images, wish: Wish) -> None:
        self._client, self._images, self._wish = client, images, wish
        self._places, self._bodies = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_ONCE)
        self._login = base64.b64encode(wish.login.encode()) if wish.login else b""

    def application(self) -> Starlette:
        """The application for an ASGI server."""
        routes: list[tuple[str, list[str], Work]] = [
            ("/", ["GET"], self._health),
            ("/health", ["GET"], self._health),
            ("/setup", ["POST"], self._setup),
            ("/validate", ["POST"], self._validate),
            ("/predict", ["POST"], self._predict),
            ("/versions", ["GET", "POST"], self._versions),
            ("/webhook", ["POST"], self._webhook),
            ("/train", ["POST"], self._train),
        ]
        return Starlette(
            routes=[Route(path, self._endpoint(work), methods=m) for path, m, work in routes],
            exception_handlers={HTTPException: _refused},
        )

    async def check(self) -> tuple[str, list[str]]:
        """Name and version of the model, and the classes that will be drawn.

        Raises:
            RequestError: the server cannot be reached, or it has no such model or class.
        """
        card = await self._client.get_model(self._wish.model)
        # The background comes first.
        classes = [label.name for label in card.labels][1:]
        for name in self._wish.classes:
            if name not in classes:
                raise FieldError(f"no class {name!r}", nearest(name, classes), field="classes")
        return f"{card.name}/{card.version}", list(self._wish.classes) or classes

    def _endpoint(self, work: Work) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            began = time.monotonic()
            # A health check does not wait for masks.
            is_small = request.method == "GET"
            turn: AbstractAsyncContextManager[None] = nullcontext() if is_small else self._bodies
            try:
                if self._login:
                    self._check_login(request)
                async with turn:
                    response: Response = JSONResponse(await work(request))
            except asyncio.CancelledError:
                response = gone()
            except RequestError as error:
                response = problem(error, request.url.path)
                response.headers["connection"] = "close"
                if isinstance(error, TokenUnknown):
                    response.headers["www-authenticate"] = "Basic"
                log.warning("%s: %s", request.url.path, _line(error))
            seconds = time.monotonic() - began
            log.info("%s: %d in %.2f s", request.url.path, response.status_code, seconds)
            return response

        return answer

    def _check_login(self, request: Request) -> None:
        kind, _, login = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(login.strip().encode(), self._login)
        if kind.lower() != "basic" or not same:
            raise TokenUnknown(
                "no login, or a wrong one", "user and password of --login", "Basic authentication"
            )

    async def _health(self, request: Request) -> dict[str, Any]:
        version, _ = await self.check()
        return {"status": "UP", "model_class": "wsss-serving", "model_version": version}

    async def _setup(self, request: Request) -> dict[str, Any]:
        body = await _json(request)
        version, classes = await self.check()
        control_of(body.get("schema"), classes)
        return {"model_version": version}

    async def _validate(self, request: Request) -> dict[str, Any]:
        _, classes = await self.check()
        control_of((await _json(request)).get("config"), classes)
        return {"status": "ok"}

    async def _versions(self, request: Request) -> dict[str, Any]:
        version, _ = await self.check()
        return {"versions": [version]}

    async def _webhook(self, request: Request) -> dict[str, Any]:
        # Label Studio reports every annotation. Nothing here learns from them.
        return {"status": "ignored"}

    async def _train(self, request: Request) -> dict[str, Any]:
        raise FieldError(
            "this backend does not train",
            "training by wsss-trainer",
            "export the project as JSON, then wsss-trainer answer RUN export.json",
        )

    async def _predict(self, request: Request) -> dict[str, Any]:
        body = await _json(request)
        tasks = body.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise FieldError("no list of tasks in the request", '{"tasks": [...]}', field="tasks")
        version, classes = await self.check()
        control = control_of(body.get("label_config"), classes)
        results = await while_there(request, self._drafts(tasks, control))
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in errors:
            of_task = isinstance(error, RequestError) and not isinstance(error, RetryLater)
            if len(errors) == len(tasks) or not of_task:
                raise error
        # One bad task does not cost the others their masks: Label Studio takes a list of
        # predictions for each task, and none for this one.
        for task, result in zip(tasks, results):
            if isinstance(result, RequestError):
                log.warning("task %s: %s", task.get("id"), _line(result))
        drafts = [[] if isinstance(result, RequestError) else [result] for result in results]
        return {"results": drafts, "model_version": version}

    async def _drafts(self, tasks: list[dict[str, Any]], control: Control) -> list[Any]:
        """For each task its prediction, or why there is none."""
        drafts = (self._draft(task, control) for task in tasks)
        results: list[Any] = await asyncio.gather(*drafts, return_exceptions=True)
        return results

    async def _draft(self, task: dict[str, Any], control: Control) -> dict[str, Any]:
        """The prediction for one task."""
        data = task.get("data")
        value = data.get(control.key) if isinstance(data, dict) else None
        async with self._places:
            content = await asyncio.to_thread(self._images.read, value)
            result = await self._client.segment(
                content, self._wish.model, classes=self._wish.classes
            )
        regions = await asyncio.to_thread(regions_of, result, control, self._wish.tolerance)
        return {
            "result": regions,
            "score": score_of(result),
            "model_version": f"{result.model}/{result.version}",
        }


def regions_of(result: Segmentation, control: Control, tolerance: float) -> list[dict[str, Any]]:
    """The mask as regions of Label Studio: one brush stroke a class, or one polygon an object.

    Raises:
        MaskTooComplex: outlines with too many corners.
    """
    height, width = result.mask.shape
    frame = {
        "type": control.type,
        "from_name": control.name,
        "to_name": control.image,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
    }
    lines = {} if control.type == "brushlabels" else editable(result.mask, tolerance)
    regions = []
    for name in result.present:
        label, number = control.labels[name], result.labels[name]
        values: Sequence[dict[str, Any]] = [
            {"points": [[100 * x / width, 100 * y / height] for x, y in ring], "closed": True}
            for ring in lines.get(number, [])
        ]
        if control.type == "brushlabels":
            values = [{"format": "rle", "rle": brush_runs(result.mask == number)}]
        score = round(result.scores[name], 4)
        regions += [
            {
                **frame,
                "id": f"{name}-{place}",
                "score": score,
                "value": {**value, control.type: [label]},
            }
            for place, value in enumerate(values)
        ]
    return regions


def score_of(result: Segmentation) -> float:
    """How sure the model is of a mask, 0 to 1: 1 less its doubt, or the mean score of the classes
    that the mask shows.
    """
    if result.doubt is not None:
        return round(1 - result.doubt, 4)
    scores = [result.scores[name] for name in result.present]
    return round(sum(scores) / len(scores), 4) if scores else 0.0


def _line(error: RequestError) -> str:
    return "; ".join(str(error).splitlines())


async def _json(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A page of another site can send anything else without asking the browser's user.
    if kind != "application/json":
        raise MediaTypeRefused(f"a body of type {kind or 'none'}", "application/json")
    claim(request, BODY_BYTES)
    content = await received(request, whole, BODY_BYTES, Limits.idle_seconds)
    try:
        body = await asyncio.to_thread(json.loads, content)
    except (ValueError, RecursionError):
        raise FieldError("the body is no JSON", "a JSON object") from None
    if not isinstance(body, dict):
        raise FieldError("the body is no JSON object", "a JSON object")
    return body


async def _refused(request: Request, error: Exception) -> Response:
    """The reply for a path or a method that does not exist."""
    path, paths = request.url.path, "/health, /setup, /predict, /versions or /webhook"
    if isinstance(error, HTTPException) and error.status_code == 405:
        return problem(MethodNotAllowed(f"{request.method} of {path}", paths), path)
    return problem(PathNotFound(f"no path {path}", paths), path)

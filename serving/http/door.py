"""What every request of the API passes: tokens, limits, metrics, logs and traces, as for gRPC."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.access.tokens import Tokens, allow
from serving.errors import (
    BodyLate,
    CertificateMissing,
    FieldError,
    ImageTooLarge,
    MediaTypeRefused,
    RequestError,
)
from serving.http.problems import problem
from serving.http.shapes import plain
from serving.rpc.calls import Calls
from serving.rpc.metadata import timings
from serving.telemetry import logs
from serving.telemetry.call import Call
from serving.telemetry.metrics import Telemetry

T = TypeVar("T")
Work = Callable[[Request, Call], Coroutine[Any, Any, Response]]
Endpoint = Callable[[Request], Awaitable[Response]]
Chunks = AsyncGenerator[bytes, None]
Read = Callable[[Chunks], Awaitable[T]]
# The caller left; nobody reads the reply.
GONE = 499


class Door:
    """Lets requests in.

    Args:
        needs_certificate: callers must show one, as over gRPC.
    """

    def __init__(
        self, calls: Calls, telemetry: Telemetry, tokens: Tokens | None, needs_certificate: bool
    ) -> None:
        self._calls = calls
        self._telemetry = telemetry
        self._tokens = tokens
        self._needs_certificate = needs_certificate

    def endpoint(self, route: str, work: Work) -> Endpoint:
        """The handler of a route. ``work`` makes its reply.

        Args:
            route: method and path with placeholders, as in metrics and logs.
        """

        async def answer(request: Request) -> Response:
            headers = tuple(request.headers.items())
            call = Call(route, headers, logs.request_id(headers), deadline=None)
            try:
                call.caller = self._caller(request)
            except RequestError as error:
                self._telemetry.refused(route, error.code, error.reason)
                return _finish(problem(error, request.url.path, call.request_id), request, call)
            try:
                with self._calls.watch(call):
                    response = await work(request, call)
            except RequestError as error:
                response = problem(error, request.url.path, call.request_id)
            except asyncio.CancelledError:
                response = gone()
            return _finish(response, request, call)

        return answer

    async def read(
        self,
        request: Request,
        call: Call,
        limit: int,
        kinds: tuple[str, ...],
        read: Read[T],
        empty: bool = False,
    ) -> T:
        """What ``read`` makes of the body, in chunks.

        Args:
            limit: bytes of the body.
            kinds: media types, or their beginnings, of the body. One without a type is taken.
            empty: whether there may be no body.

        Raises:
            RequestError: of another type, compressed, too long, too slow, or no room to read it.
        """
        kind = request.headers.get("content-type", "").lower()
        if kind and not kind.startswith(kinds):
            names = [f"{one}*" if one.endswith("/") else one for one in kinds]
            raise MediaTypeRefused(
                f"a body of type {kind}", " or ".join(names), f"--header 'content-type: {names[0]}'"
            )
        coding = request.headers.get("content-encoding", "").lower()
        if coding not in ("", "identity"):
            raise MediaTypeRefused(
                f"a body with content-encoding {coding}", "a body that is not compressed"
            )
        async with self._calls.reading(call, claim(request, limit, empty)):
            value = await received(request, read, limit, self._calls.idle_seconds)
        request.state.complete = True
        return value

    def _caller(self, request: Request) -> str:
        """The name on the token or certificate, otherwise the address as gRPC writes it, so that
        both count as one caller.
        """
        certificate: str = request.state.certificate
        if self._needs_certificate and not certificate:
            raise CertificateMissing(
                "no client certificate", "one that the server's authority signed", "curl --cert"
            )
        if self._tokens:
            caller = self._tokens.caller(request.headers.get("authorization", ""))
            allow(caller, "infer")
            return caller.name
        host = request.client.host if request.client else ""
        address = f"ipv6:%5B{host}%5D" if ":" in host else f"ipv4:{host}"
        return certificate or address


def gone() -> Response:
    """The reply to a caller who left, for the handler of a CancelledError.

    Raises:
        asyncio.CancelledError: the server itself ends the request.
    """
    if (task := asyncio.current_task()) and task.cancelling():
        raise asyncio.CancelledError
    return Response(status_code=GONE)


async def received(request: Request, read: Read[T], limit: int, seconds: float) -> T:
    """What ``read`` makes of a body of at most ``limit`` bytes.

    Raises:
        ImageTooLarge: there are more.
        BodyLate: they take more than ``seconds``.
        asyncio.CancelledError: the caller left.
    """
    try:
        async with asyncio.timeout(seconds):
            return await read(_chunks(request, limit))
    except TimeoutError:
        raise BodyLate(f"the body did not arrive within {seconds:g} s") from None
    except ClientDisconnect:
        raise asyncio.CancelledError from None


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the caller leaves. The body must be read.

    Raises:
        asyncio.CancelledError: the caller left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise asyncio.CancelledError
        return working.result()
    finally:
        leaving.cancel()
        if working.cancel():
            # The request holds its place until it has let go of everything.
            await asyncio.wait({working})


async def whole(chunks: Chunks) -> bytes:
    """A body in one piece."""
    return b"".join([chunk async for chunk in chunks])


def json_reply(message: Any) -> Response:
    """A message of the protocol as JSON."""
    return Response(json.dumps(plain(message)).encode(), media_type="application/json")


def claim(request: Request, limit: int, empty: bool = False) -> int:
    """The bytes that a body claims to have, or the limit if it does not tell.

    Args:
        empty: whether there may be no body.

    Raises:
        RequestError: more bytes than the limit, or none.
    """
    text = request.headers.get("content-length")
    if text is None:
        return limit
    # The parser of the protocol has refused everything but digits.
    if (size := int(text)) > limit:
        raise _too_large(f"a body of {size:,} bytes", limit)
    if not size and not empty:
        raise FieldError("no body", "a body", "curl --data-binary @FILE")
    return size


def _too_large(what: str, limit: int) -> ImageTooLarge:
    return ImageTooLarge(
        what,
        f"at most {limit:,} bytes",
        "send a smaller or more compressed image",
        field="image",
        metadata={"max_body_bytes": str(limit)},
    )


async def _chunks(request: Request, limit: int) -> Chunks:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(f"a body of more than {limit:,} bytes", limit)
        yield chunk


def _finish(response: Response, request: Request, call: Call) -> Response:
    response.headers[logs.REQUEST_ID_KEY] = call.request_id
    response.headers["server-timing"] = timings(call)
    if request.method == "POST" and not hasattr(request.state, "complete"):
        # The body was not read to its end, and must not be taken for the next request.
        response.headers["connection"] = "close"
    return response

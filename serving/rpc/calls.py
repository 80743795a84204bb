"""What every call of every service goes through: an id, a deadline, counters, times, a log line, a
trace, a status.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from serving.config import Limits
from serving.errors import (
    CallerBusy,
    FieldError,
    RequestError,
    ServerFault,
    ServerUnavailable,
    TooManyStreams,
)
from serving.rpc import status
from serving.scheduling.batcher import Ran
from serving.telemetry import logs
from serving.telemetry.metrics import Telemetry
from serving.telemetry.tracing import Trace

log = logging.getLogger(__name__)
requests_log = logging.getLogger("serving.requests")

# Request metadata that asks for the times of the stages, and the trailing metadata that tell them.
TIMINGS_KEY = "wsss-timings"
Metadata = tuple[tuple[str, str | bytes], ...]
# Asked every few seconds; counted, and worth neither line nor span.
PROBES = ("/ServerLive", "/ServerReady", "/ModelReady")
# Whose token the call carries: set by what checks it, before the call is handled.
TOKEN_NAME: ContextVar[str] = ContextVar("token_name", default="")
# From a request and its call to the reply.
Work = Callable[[Any, "Call"], Coroutine[Any, Any, Any]]
StreamWork = Callable[[AsyncIterator[Any], grpc.aio.ServicerContext], AsyncIterator[Any]]


@dataclass(eq=False)
class Call:
    """One request, from its arrival to its reply. Moments are of ``time.monotonic``, lengths in
    seconds.

    Attributes:
        rpc: ``package.Service/Method``.
        metadata: as the caller sent it.
        request_id: the caller's or a new one.
        deadline: when the caller stops waiting; None if never.
        caller: whose token or certificate it carries, else the address that it comes from.
        model, version: what answers, once it is found.
        stages: name, beginning and length of what was done.
        code, reason: of the reply.
    """

    rpc: str
    metadata: Metadata
    request_id: str
    deadline: float | None
    caller: str = ""
    model: str = ""
    version: int = 0
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    code: str = "OK"
    reason: str = ""
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    def stage(self, name: str, began: float, ended: float | None = None) -> None:
        """Say that a stage of :data:`serving.telemetry.metrics.STAGES` went from ``began`` to
        ``ended``, or until now.
        """
        self.stages.append((name, began, (time.monotonic() if ended is None else ended) - began))

    def seconds(self, name: str) -> float:
        """How long a stage took, all its parts together."""
        return sum(seconds for stage, _, seconds in self.stages if stage == name)

    def ran(self, ran: Ran) -> None:
        """Say that a run of the engine is over now."""
        now = time.monotonic()
        self.stage("queue", now - ran.ran - ran.queued, now - ran.ran)
        self.stage("infer", now - ran.ran, now)


class Calls:
    """Answers calls.

    Args:
        telemetry: counts them.
        trace: writes their spans; None writes none.
        level: of the line that each call leaves in the log.
        limits: of open streams, and of the requests that one caller may have under way.

    Attributes:
        in_flight: requests not answered yet.
        draining: the server ends soon and says so; requests are answered still.
        ending: set once further requests are refused.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        trace: Trace | None = None,
        level: int = logging.DEBUG,
        limits: Limits | None = None,
    ) -> None:
        self._telemetry = telemetry
        self._trace = trace
        self._level = level
        self._limits = limits or Limits()
        self._streams = 0
        self._under_way: Counter[str] = Counter()
        self.in_flight = 0
        self.draining = False
        self.ending = asyncio.Event()

    def service(
        self, descriptor: Any, works: Mapping[str, Work], special: Mapping[str, Any] | None = None
    ) -> Any:
        """The handler of a whole service, for ``add_generic_rpc_handlers``.

        Args:
            descriptor: of the service.
            works: what makes the reply of each plain method, from its request and the
                :class:`Call`.
            special: handlers of the other methods, streams for example.
        """
        handlers = dict(special or {})
        for name, work in works.items():
            message = GetMessageClass(descriptor.methods_by_name[name].input_type)
            handlers[name] = self.unary(
                f"{descriptor.full_name}/{name}", work, reader(message), write
            )
        return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)

    def unary(
        self, rpc: str, work: Work, read: Callable[[bytes], Any], write: Callable[[Any], bytes]
    ) -> Any:
        """The handler of one plain method. ``read`` must not raise but return a
        :class:`RequestError`.
        """

        async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            call = started(rpc, context)
            try:
                with self.watch(call):
                    if isinstance(request, RequestError):
                        raise request
                    reply = await work(request, call)
                    context.set_trailing_metadata(trailing(call))
                    return reply
            except RequestError as error:
                await abort(context, error, trailing(call))

        return grpc.unary_unary_rpc_method_handler(answer, read, write)

    def streaming(
        self,
        rpc: str,
        work: StreamWork,
        read: Callable[[bytes], Any],
        write: Callable[[Any], bytes],
    ) -> Any:
        """The handler of one method of many requests and replies. ``work`` watches over each
        request by itself.
        """

        async def answer(
            requests: AsyncIterator[Any], context: grpc.aio.ServicerContext
        ) -> AsyncIterator[Any]:
            most = self._limits.max_streams
            if self._streams >= most:
                error = TooManyStreams(
                    f"{self._streams} streams are open already", f"at most {most}"
                )
                self._telemetry.refused(rpc, error.code, error.reason)
                await abort(context, error)
            self._streams += 1
            self._telemetry.streams.inc()
            try:
                async for reply in work(requests, context):
                    yield reply
            finally:
                self._streams -= 1
                self._telemetry.streams.dec()

        return grpc.stream_stream_rpc_method_handler(answer, read, write)

    @contextmanager
    def watch(self, call: Call) -> Iterator[None]:
        """Watch over one request, on a call of its own or one of many on a stream.

        Raises:
            RequestError: whatever the block raised; what is no such error is logged with the
            request's id.
        """
        token = logs.REQUEST_ID.set(call.request_id)
        self.in_flight += 1
        try:
            if self.ending.is_set():
                raise ServerUnavailable("the server is ending", hint="another server")
            with self._share(call.caller):
                yield
        except RequestError as error:
            call.code, call.reason = error.code, error.reason
            raise
        except asyncio.CancelledError:
            late = call.deadline is not None and time.monotonic() >= call.deadline
            call.code = "DEADLINE_EXCEEDED" if late else "CANCELLED"
            raise
        except Exception:
            log.exception("request failed, id %s", call.request_id)
            call.code, call.reason = ServerFault.code, ServerFault.reason
            raise ServerFault(
                f"the server failed, id {call.request_id}", metadata={"id": call.request_id}
            ) from None
        finally:
            self.in_flight -= 1
            self._end(call)
            logs.REQUEST_ID.reset(token)

    def has_room(self, caller: str) -> bool:
        """Whether one more request of this caller would be taken."""
        most = self._limits.max_per_caller
        return not most or self._under_way[caller] < most

    @contextmanager
    def _share(self, caller: str) -> Iterator[None]:
        """Keep one caller from taking every place of a queue."""
        if not self.has_room(caller):
            most = self._limits.max_per_caller
            raise CallerBusy(
                f"{most} requests of this caller are under way already", f"at most {most}"
            )
        self._under_way[caller] += 1
        try:
            yield
        finally:
            self._under_way[caller] -= 1
            if not self._under_way[caller]:
                del self._under_way[caller]

    def _end(self, call: Call) -> None:
        call.ended = time.monotonic()
        self._telemetry.ended(call)
        if call.rpc.endswith(PROBES):
            return
        if requests_log.isEnabledFor(self._level):
            requests_log.log(self._level, "answered", extra={"fields": _told(call)})
        if self._trace:
            self._trace(call)


def started(rpc: str, context: grpc.aio.ServicerContext) -> Call:
    """A call that has just come in; on a stream, one request of it."""
    metadata = tuple(context.invocation_metadata() or ())
    remaining = context.time_remaining()
    deadline = None if remaining is None else time.monotonic() + remaining
    return Call(rpc, metadata, logs.request_id(metadata), deadline, _caller(context))


def _caller(context: grpc.aio.ServicerContext) -> str:
    if token := TOKEN_NAME.get():
        return token
    names = context.auth_context().get("x509_common_name") or ()
    # Without the port: another connection is no other caller.
    return names[0].decode(errors="replace") if names else str(context.peer()).rpartition(":")[0]


def trailing(call: Call) -> Metadata:
    """The trailing metadata of a reply: the id, and the times of the stages in milliseconds if the
    caller wants them.
    """
    found: list[tuple[str, str]] = [(logs.REQUEST_ID_KEY, call.request_id)]
    if any(key == TIMINGS_KEY and value not in ("0", "") for key, value in call.metadata):
        times = {name: call.seconds(name) for name, _, _ in call.stages} | {
            "total": time.monotonic() - call.began
        }
        found.append(
            (
                TIMINGS_KEY,
                ", ".join(f"{name};dur={1e3 * spent:.3f}" for name, spent in times.items()),
            )
        )
    return tuple(found)


async def abort(
    context: grpc.aio.ServicerContext, error: RequestError, more: Metadata = ()
) -> NoReturn:
    """End a call with the status of an error, and ``more`` trailing metadata."""
    told = status.to_status(error)
    await context.abort(told.code, told.details, (*(told.trailing_metadata or ()), *more))
    raise AssertionError("abort always raises")


def reader(message: Any) -> Callable[[bytes], Any]:
    """Parses a message of this class, or says what is wrong: what a deserializer raises, gRPC
    answers with UNKNOWN.
    """

    def read(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError:
            name = message.DESCRIPTOR.full_name
            return FieldError(f"the message is no {name}", f"an encoded {name}")

    return read


def write(message: Any) -> bytes:
    """The bytes of a message."""
    encoded: bytes = message.SerializeToString()
    return encoded


def _told(call: Call) -> dict[str, Any]:
    """What the log says of a call."""
    told: dict[str, Any] = {"rpc": call.rpc, "code": call.code, "caller": call.caller}
    if call.reason:
        told["reason"] = call.reason
    if call.model:
        told |= {"model": call.model, "version": call.version}
    return told | {
        name: round(seconds, 6)
        for name, _, seconds in (*call.stages, ("total", 0, call.ended - call.began))
    }

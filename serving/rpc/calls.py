"""What every call of every service goes through: id, deadline, counters, times, log line, trace and
status.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from serving.access.places import Places
from serving.config import Limits
from serving.errors import (
    DeadlineMissed,
    FieldError,
    MemoryFull,
    RequestError,
    ServerFault,
    ServerFull,
    ServerUnavailable,
    StreamIdle,
    TooManyStreams,
)
from serving.rpc import status
from serving.rpc.metadata import caller_of, started, trailing
from serving.rpc.streams import ROOM_SECONDS, Patient
from serving.scheduling.memory import Memory
from serving.telemetry import logs
from serving.telemetry.call import Call, Metadata, fields_of
from serving.telemetry.metrics import Telemetry
from serving.telemetry.tracing import Trace

log = logging.getLogger(__name__)
requests_log = logging.getLogger("serving.requests")

# Probes come every few seconds; they are counted but leave neither line nor span.
PROBES = ("/ServerLive", "/ServerReady", "/ModelReady")
# How long a call waits for room to read its message before it is refused.
READING_SECONDS = 1.0
# Makes the reply from a request and its call.
Work = Callable[[Any, Call], Coroutine[Any, Any, Any]]
StreamWork = Callable[[AsyncIterator[Any], grpc.aio.ServicerContext], AsyncIterator[Any]]


class Calls:
    """Answers calls.

    Args:
        memory: the budget that counts messages while they are read.
        trace: writes the spans of a call; None writes none.
        level: of the line that each call leaves in the log.

    Attributes:
        requests, messages, streams, watches: places for each; ``messages`` of plain calls being
            read.
        message_bytes: of the longest message.
        idle_seconds: that a message may take.
        draining: the server will end soon and says so, but still takes requests.
        ending: set once further requests are refused.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        memory: Memory,
        limits: Limits,
        trace: Trace | None = None,
        level: int = logging.DEBUG,
    ) -> None:
        self._telemetry = telemetry
        self._trace = trace
        self._level = level
        self._memory = memory
        # gRPC does not tell the length of a message before it is complete, so the longest counts.
        self.message_bytes = min(limits.message_bytes, memory.limit // 2)
        self.idle_seconds = limits.idle_seconds
        self.requests = Places("requests", limits.max_calls, limits.calls_per_caller, ServerFull)
        total = memory.limit // self.message_bytes
        each = max(1, total * min(limits.calls_per_caller, limits.max_calls) // limits.max_calls)
        self.messages = Places("unfinished messages", total, each, MemoryFull)
        each = limits.max_open_per_caller
        self.streams = Places("streams", limits.max_streams, each, TooManyStreams)
        self.watches = Places("watches", limits.max_watches, each, TooManyStreams)
        telemetry.streams.set_function(lambda: self.streams.taken)
        telemetry.watches.set_function(lambda: self.watches.taken)
        self._unread = 0
        self.draining = False
        self.ending = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that have arrived and are not answered yet."""
        return self.requests.taken - self._unread

    def service(
        self, descriptor: Any, works: Mapping[str, Work], special: Mapping[str, Any] | None = None
    ) -> Any:
        """The handler of a whole service, for ``add_generic_rpc_handlers``.

        Args:
            works: by name of a plain method, what makes its reply.
            special: handlers of the other methods, such as streams.
        """
        handlers = dict(special or {})
        for name, work in works.items():
            message = GetMessageClass(descriptor.methods_by_name[name].input_type)
            handlers[name] = self.unary(
                f"{descriptor.full_name}/{name}", work, reader(message), write
            )
        return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)

    def unary(
        self, rpc: str, work: Work, parse: Callable[[bytes], Any], write: Callable[[Any], bytes]
    ) -> Any:
        """The handler of a plain method. ``parse`` returns a :class:`RequestError` instead of
        raising it.
        """

        async def answer(messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
            call = started(rpc, context)
            try:
                with self.watch(call):
                    request = await self._request(messages, call)
                    reply = await work(request, call)
                    context.set_trailing_metadata(trailing(call))
                    return reply
            except RequestError as error:
                await abort(context, error, trailing(call))

        # Registered as a stream of one message: gRPC would otherwise read the message before it
        # calls us, and every refusal would come too late to save memory.
        return grpc.stream_unary_rpc_method_handler(answer, parse, write)

    def streaming(
        self,
        rpc: str,
        work: StreamWork,
        parse: Callable[[bytes], Any],
        write: Callable[[Any], bytes],
    ) -> Any:
        """The handler of a method with many requests and replies. ``work`` watches over each
        request.

        A stream whose caller sends nothing, or reads nothing, is ended.
        """
        seconds = self.idle_seconds

        async def answer(messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
            patient = Patient(messages, seconds, self._has_room)
            try:
                with self.streams.hold(caller_of(context)):
                    async for reply in work(patient, context):
                        async with asyncio.timeout(seconds):
                            await context.write(reply)
                    if patient.idle:
                        raise StreamIdle(f"no message for {seconds:g} s", hint="open a new stream")
            except TimeoutError:
                unread = f"replies were not read for {seconds:g} s"
                await self.refuse(context, rpc, StreamIdle(unread, hint="open a new stream"))
            except RequestError as error:
                await self.refuse(context, rpc, error)

        return grpc.stream_stream_rpc_method_handler(answer, parse, write)

    async def refuse(
        self, context: grpc.aio.ServicerContext, rpc: str, error: RequestError
    ) -> NoReturn:
        """Count a call that has no :class:`Call`, and end it with an error."""
        self._telemetry.refused(rpc, error.code, error.reason)
        await abort(context, error)

    @contextmanager
    def watch(self, call: Call) -> Iterator[None]:
        """Watch over one request, on a call of its own or on a stream.

        Raises:
            RequestError: as the block raised it. Any other exception is logged with the request's
                id and becomes a ServerFault.
        """
        token = logs.REQUEST_ID.set(call.request_id)
        try:
            self._check_ending()
            with self.requests.hold(call.caller):
                yield
        except RequestError as error:
            call.code, call.reason = error.code, error.reason
            raise
        except asyncio.CancelledError:
            # gRPC cancels the handler both when the caller leaves and when the deadline passes.
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
            self._end(call)
            logs.REQUEST_ID.reset(token)

    async def _request(self, messages: AsyncIterator[Any], call: Call) -> Any:
        """The one message of a plain call.

        Raises:
            RequestError: see :meth:`reading`; no message in time, or a malformed one.
        """
        patient = Patient(messages, self.idle_seconds)
        async with self.reading(call, self.message_bytes):
            request = await anext(patient, None)
        if patient.idle:
            raise DeadlineMissed(f"the message did not arrive within {self.idle_seconds:g} s")
        if request is None:
            raise FieldError("a call without a message", "one message")
        if isinstance(request, RequestError):
            raise request
        return request

    @asynccontextmanager
    async def reading(self, call: Call, size: int) -> AsyncIterator[None]:
        """A place and memory for a message of at most ``size`` bytes, while it is read.

        Raises:
            RequestError: there is no room, or the server ends.
        """
        patience = time.monotonic() + READING_SECONDS
        self._unread += 1
        try:
            # Most messages are read within a millisecond. A burst is no reason to refuse.
            while not (self.messages.has_room(call.caller) and self._memory.has_room(size)):
                if time.monotonic() >= patience:
                    break
                await asyncio.sleep(ROOM_SECONDS)
            with self._memory.reserve(size), self.messages.hold(call.caller):
                yield
        finally:
            self._unread -= 1
        self._check_ending()
        # The transfer took the caller's time, not ours.
        call.began = time.monotonic()

    def _has_room(self) -> bool:
        return self._memory.has_room(self.message_bytes)

    def _check_ending(self) -> None:
        if self.ending.is_set():
            raise ServerUnavailable("the server is shutting down", hint="another server")

    def _end(self, call: Call) -> None:
        call.ended = time.monotonic()
        self._telemetry.ended(call)
        if call.rpc.endswith(PROBES):
            return
        if requests_log.isEnabledFor(self._level):
            requests_log.log(self._level, "answered", extra={"fields": fields_of(call)})
        if self._trace:
            self._trace(call)


async def abort(
    context: grpc.aio.ServicerContext, error: RequestError, more: Metadata = ()
) -> NoReturn:
    """End a call with an error's status and ``more`` trailing metadata."""
    reply = status.to_status(error)
    await context.abort(reply.code, reply.details, (*(reply.trailing_metadata or ()), *more))
    raise AssertionError("abort always raises")


def reader(message: Any) -> Callable[[bytes], Any]:
    """A parser of this message class that returns its error: gRPC answers UNKNOWN to what it
    raises.
    """

    def parse(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError:
            name = message.DESCRIPTOR.full_name
            return FieldError(f"the message is not a {name}", f"an encoded {name}")

    return parse


def write(message: Any) -> bytes:
    """The bytes of a message."""
    data: bytes = message.SerializeToString()
    return data

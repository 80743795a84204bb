"""``SegmentStream``: many images over one call, a limited number at once, each with an answer or
error of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc

from serving.errors import DeadlineMissed, FieldError, Overloaded, RequestError, ServerUnavailable
from serving.rpc import status
from serving.rpc.calls import Calls, abort, reader, write
from serving.rpc.metadata import started, trailing
from serving.rpc.streams import ROOM_SECONDS, side_by_side, unless
from serving.scheduling.memory import Memory
from serving.telemetry.call import Call
from wsss.v1 import segmentation_pb2 as pb

RPC = "wsss.v1.Segmentation/SegmentStream"
MAX_ID = 1024
# Bulk images wait behind single ones.
PRIORITY = -1

Segment = Callable[[Any, Call, int], Coroutine[Any, Any, Any]]


class SegmentStream:
    """The handler of the method.

    Args:
        segment: makes the reply of one request, from its call and priority.
        memory: the budget that counts requests from arrival to reply.
        in_flight: maximum of unanswered requests per stream.
    """

    def __init__(self, calls: Calls, segment: Segment, memory: Memory, in_flight: int) -> None:
        self._calls = calls
        self._memory = memory
        self._segment = segment
        self._in_flight = in_flight

    def handler(self) -> Any:
        """For the service's method table."""
        return self._calls.streaming(RPC, self._serve, reader(pb.SegmentStreamRequest), write)

    async def _serve(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Any]:
        stream = started(RPC, context)
        first = await unless(self._calls.ending, anext(requests, None))
        try:
            in_order, depth = self._options(first)
        except RequestError as error:
            await abort(context, error, trailing(stream))

        async def pull() -> Any:
            nonlocal first
            message, first = first, None
            # The first message may carry options only.
            if message is None or not (
                isinstance(message, RequestError) or message.HasField("segment")
            ):
                message = await anext(requests, None)
            return message

        async def work(message: Any) -> Any:
            size = 0 if isinstance(message, RequestError) else message.ByteSize()
            with self._memory.count(size):
                return await self._one(message, started(RPC, context))

        async for reply in side_by_side(pull, work, depth, in_order, self._calls.ending):
            yield reply
        context.set_trailing_metadata(trailing(stream))
        if self._calls.ending.is_set():
            ending = ServerUnavailable(
                "the server is shutting down", hint="send every image without a reply again"
            )
            await abort(context, ending, trailing(stream))

    def _options(self, first: Any) -> tuple[bool, int]:
        """Whether replies keep the order of the requests, and how many are taken at once."""
        if first is None or isinstance(first, RequestError):
            return False, self._in_flight
        options = first.options
        if options.order not in pb.StreamOrder.values():
            raise FieldError(
                f"order {options.order} is not known to this server",
                ", ".join(pb.StreamOrder.keys()[1:]),
                field="options.order",
            )
        return options.order == pb.STREAM_ORDER_SENDING, min(
            options.in_flight or self._in_flight, self._in_flight
        )

    async def _one(self, message: Any, call: Call) -> Any:
        """The reply to one message. It waits for a place, and so does the sender."""
        reply = pb.SegmentStreamResponse()
        while not self._calls.requests.has_room(call.caller):
            await asyncio.sleep(ROOM_SECONDS)
        try:
            with self._calls.watch(call):
                _check(message, call)
                reply.id = message.id
                reply.segment.CopyFrom(await self._answered(message.segment, call))
        except RequestError as error:
            reply.failure.CopyFrom(status.to_failure(error))
        return reply

    async def _answered(self, request: Any, call: Call) -> Any:
        remaining = None if call.deadline is None else call.deadline - time.monotonic()
        try:
            async with asyncio.timeout(remaining):
                while True:
                    try:
                        return await self._segment(request, call, PRIORITY)
                    except Overloaded as full:
                        await asyncio.sleep(full.retry_after)
        except TimeoutError:
            raise DeadlineMissed("the request's time is over", hint="a longer timeout") from None


def _check(message: Any, call: Call) -> None:
    if isinstance(message, RequestError):
        raise message
    if len(message.id) > MAX_ID:
        raise FieldError(f"an id of {len(message.id)} characters", f"at most {MAX_ID}", field="id")
    if not message.HasField("segment"):
        raise FieldError("a message without a request", "the field segment", field="segment")
    if message.HasField("timeout"):
        seconds = message.timeout.ToNanoseconds() / 1e9
        own = time.monotonic() + seconds
        call.deadline = own if call.deadline is None else min(own, call.deadline)

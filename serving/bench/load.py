"""Load on a gRPC server: callers who wait for their answers (closed loop), or requests at random
times (open loop).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle

import grpc
import numpy as np

from serving.client.connection import open_channel

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
# A call without an answer by then counts as late, so that every load ends.
TIMEOUT = 60.0
# With more open requests this process itself would be measured.
MOST_OPEN = 2000
TIMINGS_KEY = "wsss-timings"


@dataclass(frozen=True)
class Request:
    """What is sent again and again.

    Attributes:
        method: ``/package.Service/Method``.
        messages: encoded requests, sent in turn.
        timed: whether to ask for the times of the server's stages.
    """

    method: str
    messages: tuple[bytes, ...]
    timed: bool = False


@dataclass
class Load:
    """What the callers saw.

    Attributes:
        seconds: for which requests were sent.
        waits: seconds from the intended sending of a request to its answer.
        codes: of all calls.
        in_time: answers that came while requests were sent.
        queued, ran: seconds in the queue and in the engine, as the server reports them if asked.
    """

    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    in_time: int = 0
    queued: list[float] = field(default_factory=list)
    ran: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.in_time / self.seconds

    def wait(self, share: float) -> float:
        """Seconds within which this share of the answers came; infinity without answers."""
        return float(np.quantile(self.waits, share)) if self.waits else float("inf")


class Caller:
    """Sends one kind of request over one connection."""

    def __init__(self, channel: grpc.aio.Channel, request: Request) -> None:
        self._call = channel.unary_unary(request.method)
        self._messages: Iterator[bytes] = cycle(request.messages)
        self._metadata = ((TIMINGS_KEY, "1"),) if request.timed else None

    async def closed(self, callers: int, seconds: float, count: int) -> Load:
        """``callers`` at once, each sending its next request after the answer to the last."""
        load, began = Load(), time.perf_counter()
        ends = began + seconds

        async def caller() -> None:
            while time.perf_counter() < ends and load.codes.total() < count:
                await self._once(load, time.perf_counter(), ends)

        await asyncio.gather(*(caller() for _ in range(callers)))
        load.seconds = min(seconds, time.perf_counter() - began)
        return load

    async def open(self, rate: float, seconds: float, count: int, seed: int) -> Load:
        """``rate`` requests per second on average, at the times of a Poisson process."""
        load, chance, calls = Load(), random.Random(seed), set[asyncio.Task[None]]()
        due = began = time.perf_counter()
        ends = began + seconds
        for _ in range(count):
            due += chance.expovariate(rate)
            if due >= ends:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(calls) >= MOST_OPEN:
                load.codes["NOT_SENT"] += 1
                continue
            # The wait counts from the time that was drawn, not from the sending: a client that
            # falls behind must not hide the server's delay.
            call = asyncio.ensure_future(self._once(load, due, ends))
            calls.add(call)
            call.add_done_callback(calls.discard)
        load.seconds = min(seconds, due - began)
        await asyncio.gather(*calls)
        return load

    async def _once(self, load: Load, due: float, ends: float) -> None:
        call = self._call(next(self._messages), timeout=TIMEOUT, metadata=self._metadata)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            load.codes[error.code().name] += 1
            return
        now = time.perf_counter()
        load.codes["OK"] += 1
        load.waits.append(now - due)
        load.in_time += now <= ends
        if self._metadata:
            timings = dict(await call.trailing_metadata())[TIMINGS_KEY]
            spent = {
                name: float(rest.partition("dur=")[2]) / 1e3 for name, _, rest in _parts(timings)
            }
            load.queued.append(spent["queue"])
            load.ran.append(spent["infer"])


def closed(address: str, request: Request, callers: int, seconds: float, count: int) -> Load:
    """:meth:`Caller.closed` on a new connection."""

    async def run() -> Load:
        async with open_channel(address, make=grpc.aio) as channel:
            return await Caller(channel, request).closed(callers, seconds, count)

    return asyncio.run(run())


def poisson(
    address: str, request: Request, rate: float, seconds: float, count: int, seed: int
) -> Load:
    """:meth:`Caller.open` on a new connection."""

    async def run() -> Load:
        async with open_channel(address, make=grpc.aio) as channel:
            return await Caller(channel, request).open(rate, seconds, count, seed)

    return asyncio.run(run())


def _parts(timings: str) -> Iterator[tuple[str, str, str]]:
    """Name and value of each entry in ``queue;dur=1.0, infer;dur=2.5``."""
    return (part.strip().partition(";") for part in timings.split(","))

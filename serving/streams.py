"""Many requests on one call: worked on side by side, answered in their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any


async def in_order(
    requests: AsyncIterator[Any], work: Callable[[Any], Coroutine[Any, Any, Any]], depth: int
) -> AsyncIterator[Any]:
    """The result of ``work`` for each request, in the order of the requests and each as soon as it can be.

    At most ``depth`` are at work or wait to be taken; further requests are not read until then, which holds their
    sender back. What is at work when the caller leaves is cancelled.
    """
    places = asyncio.Semaphore(depth)
    pending: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue()
    tasks: set[asyncio.Task[Any]] = set()

    async def read() -> None:
        try:
            async for request in requests:
                await places.acquire()
                task = asyncio.ensure_future(work(request))
                tasks.add(task)
                pending.put_nowait(task)
        finally:
            pending.put_nowait(None)

    reader = asyncio.ensure_future(read())
    try:
        while (task := await pending.get()) is not None:
            result = await task
            tasks.discard(task)
            places.release()
            yield result
        await reader
    finally:
        for left in (reader, *tasks):
            left.cancel()
        await asyncio.gather(reader, *tasks, return_exceptions=True)

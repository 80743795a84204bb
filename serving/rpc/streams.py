"""Many requests on one call, worked on side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Self

Pull = Callable[[], Awaitable[Any]]
Work = Callable[[Any], Coroutine[Any, Any, Any]]
# Pause between two checks for room.
ROOM_SECONDS = 0.02


class Patient:
    """The messages of a stream, until one is late.

    Args:
        seconds: that a message may take.
        has_room: whether the next message may be read; otherwise the sender has to wait.

    Attributes:
        idle: whether a message was late.
    """

    def __init__(
        self,
        messages: AsyncIterator[Any],
        seconds: float,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        self._messages = messages
        self._seconds = seconds
        self._has_room = has_room
        self.idle = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self._has_room():
            await asyncio.sleep(ROOM_SECONDS)
        try:
            async with asyncio.timeout(self._seconds) as timer:
                return await anext(self._messages)
        except TimeoutError:
            if not timer.expired():
                raise
            self.idle = True
            raise StopAsyncIteration from None


async def side_by_side(
    pull: Pull, work: Work, depth: int, in_order: bool, ending: asyncio.Event | None = None
) -> AsyncIterator[Any]:
    """What ``work``, which must not raise, makes of each message until ``pull`` gives None.

    At most ``depth`` messages are pulled and not handed on; meanwhile the sender has to wait.
    Replies keep the order of the messages if ``in_order``, otherwise the first finished comes
    first. ``ending`` stops the pulling. Closing the iterator cancels what is in progress.
    """
    places, replies = asyncio.Semaphore(depth - 1), asyncio.Queue[Any]()
    tasks: set[asyncio.Task[Any]] = set()

    async def take() -> None:
        while (message := await (unless(ending, pull()) if ending else pull())) is not None:
            task = asyncio.ensure_future(work(message))
            tasks.add(task)
            if in_order:
                replies.put_nowait(task)
            else:
                task.add_done_callback(replies.put_nowait)
            # After the task has started: with depth 1 the first message needs no place. HTTP/2 flow
            # control stops the sender once nobody reads.
            await places.acquire()
        if tasks:
            # The end marker must come after the last reply.
            await asyncio.wait(tasks)

    taker = asyncio.ensure_future(take())
    taker.add_done_callback(lambda _: replies.put_nowait(None))
    try:
        while (task := await replies.get()) is not None:
            reply = await task
            tasks.discard(task)
            yield reply
            places.release()
        await taker
    finally:
        for left in (taker, *tasks):
            left.cancel()
        await asyncio.gather(taker, *tasks, return_exceptions=True)


async def unless(event: asyncio.Event, result: Awaitable[Any]) -> Any:
    """The result of an awaitable, or None, and its cancellation, if ``event`` is set before."""
    waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(result)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return None if event.is_set() else waits[1].result()
    finally:
        for wait in waits:
            wait.cancel()

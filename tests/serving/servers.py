"""Servers inside of the test's process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serving.config import ServerConfig
from serving.server import Server


@contextmanager
def running(config: ServerConfig) -> Iterator[Server]:
    """A server on an event loop of its own thread."""
    server = Server(config)
    server.loop = loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(30)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


@contextmanager
def held(server: Server, model: str = "colours") -> Iterator[threading.Event]:
    """Engine runs that wait for the yielded event."""
    go = threading.Event()
    engine = server.models.find(model, 0, None).engine
    run = engine.run

    def wait(inputs, stop=None):
        while not (go.wait(0.01) or (stop and stop.requested)):
            pass
        return run(inputs)

    engine.run = wait
    try:
        yield go
    finally:
        go.set()
        engine.run = run


def admitted(server: Server, model: str = "colours") -> int:
    """Requests that the model has and has not answered."""
    return server.models.find(model, 0, None).batcher.statistics().admitted


def until(condition, seconds: float = 120.0) -> None:
    """Wait for a condition."""
    ended = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ended
        time.sleep(0.01)

"""Connections of the HTTP port that the process of the probes hands over, answered by uvicorn."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from email.utils import formatdate
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from serving.http.protocol import Protocol

log = logging.getLogger(__name__)

# Longest message of the channel: the address and name of a caller.
MESSAGE_BYTES = 4096
DATE_SECONDS = 1.0


class Connections:
    """Answers, on the running event loop, what comes through ``channel``.

    Args:
        channel: see :attr:`serving.telemetry.http.HttpServer.channel`.
    """

    def __init__(self, application: Starlette, channel: socket.socket) -> None:
        # What a hostile caller sends is no news for the log.
        for name in ("uvicorn.error", "python_multipart"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._uvicorn = uvicorn.Config(
            application, http="h11", ws="none", lifespan="off", log_config=None, access_log=False
        )
        self._uvicorn.load()
        self._channel = channel
        self._state = ServerState()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop.add_reader(channel, self._take)
        self._tick()

    def close(self) -> None:
        """Take no more, and end what is open."""
        self._ticking.cancel()
        self._loop.remove_reader(self._channel)
        self._channel.close()
        for connection in list(self._state.connections):
            connection.transport.abort()

    def _tick(self) -> None:
        date = (b"date", formatdate(usegmt=True).encode())
        self._state.default_headers = [date, (b"server", b"wsss-serving")]
        self._ticking = self._loop.call_later(DATE_SECONDS, self._tick)

    def _take(self) -> None:
        try:
            message, files, *_ = socket.recv_fds(self._channel, MESSAGE_BYTES, 1)
        except OSError:
            return
        if not message:
            # The process of the probes ended, which http.py reports.
            self._loop.remove_reader(self._channel)
        # Without a file where no descriptor was left: the caller sees its connection end.
        for file in files:
            connection = socket.socket(fileno=file)
            connection.setblocking(False)
            task = self._loop.create_task(self._serve(connection, json.loads(message)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket, caller: dict[str, Any]) -> None:
        protocol = _Protocol(
            self._uvicorn, self._state, {"certificate": caller["certificate"]}, self._loop
        )
        protocol.caller = (caller["client"][0], caller["client"][1])
        await self._loop.connect_accepted_socket(lambda: protocol, connection)


class _Protocol(Protocol):
    """Tells the application the caller's address, not that of the socket pair."""

    caller: tuple[str, int]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.client = self.caller

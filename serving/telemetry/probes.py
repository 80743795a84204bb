"""The process of the HTTP port, which answers ``/metrics``, ``/healthz`` and ``/readyz``; started
by http.py as ``python -m serving.telemetry.probes``.

It is a process of its own because all threads of the server stand still while gRPC copies a message
of tens of megabytes, and probes must not be late. Through shared memory it knows whether the server
takes requests and when its event loop last ran. So it notices a loop that hangs, too.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from functools import partial
from http import HTTPStatus
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from serving.access.tls import check_dates, server_context, tls_files
from serving.access.tokens import Tokens, allow
from serving.access.watched import Watched
from serving.config import AccessConfig
from serving.errors import RequestError
from serving.telemetry.heads import Reply
from serving.telemetry.port import Entrance, Port

# The event loop ticks every second, and never pauses for so long while it works.
STALLED = 30.0
PAGE_TIMEOUT = 10.0
PLAIN = "text/plain; charset=utf-8"
# When the event loop last ran, by the monotonic clock that all processes share; whether requests
# are taken; and whether the API answers.
STATE = struct.Struct("d??")


class Probes:
    """The answers.

    Args:
        state: memory shared with the server, as :data:`STATE`.
        pages: where the server sends pages of metrics on request.
        tokens: ``/metrics`` needs one with the role ``metrics``; probes need none.
    """

    def __init__(
        self, state: mmap.mmap, pages: Connection[bytes, bytes], tokens: Tokens | None
    ) -> None:
        self._state = state
        self._pages = pages
        self._tokens = tokens
        self._lock = threading.Lock()

    def answer(self, path: str, headers: Any) -> Reply:
        """Status, body and content type for a path."""
        tick, ready, _ = STATE.unpack_from(self._state)
        late = time.monotonic() - tick
        if path in ("/healthz", "/readyz") and late > STALLED:
            return (
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the event loop has not run for {late:.0f} s\n".encode(),
                PLAIN,
            )
        if path == "/healthz":
            return HTTPStatus.OK, b"ok\n", PLAIN
        if path == "/readyz" and not ready:
            return HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n", PLAIN
        if path == "/readyz":
            return HTTPStatus.OK, b"ready\n", PLAIN
        if path == "/metrics":
            return self._metrics(headers)
        return HTTPStatus.NOT_FOUND, b"try /metrics, /healthz or /readyz\n", PLAIN

    def _metrics(self, headers: Any) -> Reply:
        try:
            if self._tokens:
                allow(self._tokens.caller(headers.get("Authorization", "")), "metrics")
        except RequestError as error:
            missing = error.code == "UNAUTHENTICATED"
            return (
                HTTPStatus.UNAUTHORIZED if missing else HTTPStatus.FORBIDDEN,
                f"{error}\n".encode(),
                PLAIN,
            )
        with self._lock:
            # Drop a page whose reader gave up before it came.
            while self._pages.poll(0):
                self._pages.recv_bytes()
            self._pages.send_bytes(headers.get("Accept", "")[:1000].encode())
            if not self._pages.poll(PAGE_TIMEOUT):
                return HTTPStatus.SERVICE_UNAVAILABLE, b"the server is too busy to answer\n", PLAIN
            kind, _, page = self._pages.recv_bytes().partition(b"\n")
        return HTTPStatus.OK, page, kind.decode()


def main() -> None:
    """Answer until standard input ends: the server closes it, or no longer exists."""
    task = json.loads(sys.argv[1])
    # A signal to the process group ends the server; probes are answered until it has drained.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    _raise_file_limit()
    paths: dict[str, Any] = {name: Path(path) for name, path in task["access"].items()}
    tokens = paths.pop("tokens", None)
    access = AccessConfig(**paths)
    context = (
        Watched(tls_files(access), partial(server_context, access), partial(check_dates, access))
        if access.cert
        else None
    )
    state = mmap.mmap(task["state"], STATE.size)
    probes = Probes(state, Connection(task["pages"]), Tokens(tokens) if tokens else None)
    entrance = None
    if task["entrance"]:
        channel = socket.socket(fileno=task["entrance"]["channel"])
        channel.setblocking(False)
        entrance = Entrance(**task["entrance"] | {"channel": channel})
    port = Port(probes.answer, context, entrance, lambda: bool(STATE.unpack_from(state)[2]))
    threading.Thread(target=_end_with_server, daemon=True).start()
    asyncio.run(_serve(port, [socket.socket(fileno=file) for file in task["sockets"]]))


async def _serve(port: Port, sockets: list[socket.socket]) -> None:
    await asyncio.gather(*map(port.serve, sockets))


def _end_with_server() -> None:
    sys.stdin.read()
    os._exit(0)


def _raise_file_limit() -> None:
    """Two descriptors a connection are more than the usual soft limit of 1,024 allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()

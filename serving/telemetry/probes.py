"""The process that answers ``/metrics``, ``/healthz`` and ``/readyz``; started by http.py as
``python -m serving.telemetry.probes``.

It is a process of its own because all threads of the server stand still while gRPC copies a message
of tens of megabytes, and probes must not be late. Through shared memory it knows whether the server
takes requests and when its event loop last ran. So it notices a loop that hangs, too.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from serving.access.tls import check_dates, server_context, tls_files
from serving.access.tokens import Tokens, allow
from serving.access.watched import Watched
from serving.config import AccessConfig
from serving.errors import RequestError

# Seconds. A probe takes milliseconds; a connection that sends nothing, or too little, is closed.
TIMEOUT = 5.0
CONNECTION = 15.0
# The event loop ticks every second, and never pauses for so long while it works.
STALLED = 30.0
PAGE_TIMEOUT = 10.0
MAX_CONNECTIONS = 64
PLAIN = "text/plain; charset=utf-8"
# When the event loop last ran, by the monotonic clock that all processes share, and whether
# requests are taken.
STATE = struct.Struct("d?")

Reply = tuple[HTTPStatus, bytes, str]


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
        tick, ready = STATE.unpack_from(self._state)
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


class ProbeServer(ThreadingHTTPServer):
    """Answers on a listening socket.

    Args:
        answer: see :meth:`Probes.answer`.
        context: TLS, looked up for each connection; None without TLS.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        listening: socket.socket,
        answer: Callable[[str, Any], Reply],
        context: Watched[ssl.SSLContext] | None,
    ) -> None:
        self.answer = answer
        self._context = context
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        socketserver.BaseServer.__init__(self, listening.getsockname(), _Handler)
        self.socket = listening

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the connection, or close it if too many are open."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Shake hands in this thread, where it keeps nobody waiting."""

        def cut() -> None:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

        # A caller that sends a byte now and then would keep its connection for ever.
        limit = threading.Timer(CONNECTION, cut)
        limit.start()
        try:
            request.settimeout(TIMEOUT)
            if self._context:
                request = self._context.value.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:
            self.shutdown_request(request)
        finally:
            limit.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers who hang up deserve no log line."""


class _Handler(BaseHTTPRequestHandler):
    server: ProbeServer
    server_version = "wsss-serving"
    sys_version = ""
    timeout = TIMEOUT

    def do_GET(self) -> None:
        """Send head and body."""
        status, body, kind = self.server.answer(self.path.partition("?")[0], self.headers)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Probes come every few seconds and deserve no log line."""


def main() -> None:
    """Answer until standard input ends: the server closes it, or no longer exists."""
    task = json.loads(sys.argv[1])
    # A signal to the process group ends the server; probes are answered until it has drained.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    cert, key, tokens = (
        Path(task[name]) if task[name] else None for name in ("cert", "key", "tokens")
    )
    access = AccessConfig(cert=cert, key=key)
    context = (
        Watched(tls_files(access), partial(server_context, access), partial(check_dates, access))
        if cert
        else None
    )
    probes = Probes(
        mmap.mmap(task["state"], STATE.size),
        Connection(task["pages"]),
        Tokens(tokens) if tokens else None,
    )
    for file in task["sockets"]:
        server = ProbeServer(socket.socket(fileno=file), probes.answer, context)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()

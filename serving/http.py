"""The HTTP port: ``/metrics``, ``/healthz``, ``/readyz``.

It has threads of its own. The event loop of gRPC stands still while a message of tens of megabytes is received, and a
probe must not be late because of that.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serving.access import Tokens, allow
from serving.certificates import Certificates
from serving.errors import RequestError
from serving.telemetry import Telemetry

# A probe is over in milliseconds; a connection that says nothing is closed.
TIMEOUT_SECONDS = 5.0
MAX_CONNECTIONS = 64
PLAIN = "text/plain; charset=utf-8"
NOT_READY = (HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n", PLAIN)


class HttpServer:
    """Answers probes and Prometheus on a port of its own, from ``start`` to ``stop``.

    Args:
        telemetry: what ``/metrics`` shows.
        tokens: if given, ``/metrics`` needs one with the role ``metrics``; probes need none.
        certificates: if given, the port speaks TLS.

    Attributes:
        ready: what ``/readyz`` says.
    """

    def __init__(self, telemetry: Telemetry, tokens: Tokens | None, certificates: Certificates | None) -> None:
        self._telemetry = telemetry
        self._tokens = tokens
        self._certificates = certificates
        self.ready = False
        self._server: _Server | None = None

    def start(self, host: str, port: int) -> str:
        """Listen; returns the address. The caller has checked that the port is free."""
        self._server = _Server(host, port, self._answer, self._certificates)
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()
        bound = self._server.server_address
        return f"[{host}]:{bound[1]}" if ":" in host else f"{host}:{bound[1]}"

    def stop(self) -> None:
        """Close the port, if it is open."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def _answer(self, path: str, headers: Any) -> tuple[HTTPStatus, bytes, str]:
        if path == "/healthz":
            return HTTPStatus.OK, b"ok\n", PLAIN
        if path == "/readyz":
            return (HTTPStatus.OK, b"ready\n", PLAIN) if self.ready else NOT_READY
        if path != "/metrics":
            return HTTPStatus.NOT_FOUND, b"known: /metrics /healthz /readyz\n", PLAIN
        try:
            if self._tokens:
                allow(self._tokens.caller(headers.get("Authorization", "")), "metrics")
        except RequestError as error:
            missing = error.code == "UNAUTHENTICATED"
            return HTTPStatus.UNAUTHORIZED if missing else HTTPStatus.FORBIDDEN, f"{error}\n".encode(), PLAIN
        page, kind = self._telemetry.page(headers.get("Accept", ""))
        return HTTPStatus.OK, page, kind


Answer = Callable[[str, Any], tuple[HTTPStatus, bytes, str]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, answer: Answer, certificates: Certificates | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.answer = answer
        self._certificates = certificates
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without the look-up of the machine's name that the base class does, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, or its end where too many are open."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The handshake is done here: it must not keep others waiting."""
        try:
            request.settimeout(TIMEOUT_SECONDS)
            if self._certificates:
                request = self._certificates.context().wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:
            self.shutdown_request(request)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "wsss-serving"
    sys_version = ""
    timeout = TIMEOUT_SECONDS

    def do_GET(self) -> None:
        """Answer, head and body."""
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
        """Probes come every few seconds and are not worth a line."""

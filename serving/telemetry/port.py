"""The connections of the HTTP port, in the process of probes.py. Probes are answered here; every
other connection goes on to the server, whose API answers it.

The first request line decides. TLS ends here, so the server gets plain bytes over a socket pair,
and a connection costs it nothing before there is something to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Any

from serving.access.watched import Watched

# Seconds for the head of the first request, TLS handshake included. A caller that sends a byte now
# and then would otherwise keep its connection for ever.
HEAD_SECONDS = 10.0
# Seconds in which a refused sender may go on. Closing at once resets the connection, and the reset
# overtakes the reply.
LINGER_SECONDS = 1.0
# Seconds in which a caller takes the rest of a reply from a connection that ends.
CLOSE_SECONDS = 10.0
# Pause after an accept that failed because no file descriptor was left.
ACCEPT_SECONDS = 0.1
# Connections that have not sent their first line. One more ends the oldest of them.
MAX_SILENT = 512
LINE_BYTES = 16 * 1024
HEAD_LINES = 100
CHUNK = 64 * 1024
PROBES = ("/metrics", "/healthz", "/readyz")

RETRY_SECONDS = 1

# Status, body and content type.
Reply = tuple[HTTPStatus, bytes, str]


def _problem(status: HTTPStatus, detail: str, reason: str, **more: int) -> Reply:
    """A problem as the API writes it, which this process cannot import."""
    body = {"type": "about:blank", "title": status.phrase, "status": status.value}
    body |= {"detail": detail, "reason": reason, **more}
    return status, json.dumps(body).encode(), "application/problem+json"


_unavailable = partial(
    _problem,
    HTTPStatus.SERVICE_UNAVAILABLE,
    reason="UNAVAILABLE",
    retry_after=RETRY_SECONDS,
)
BUSY = _unavailable("too many connections are open")
STARTING = _unavailable("the server is starting")
TOO_LONG = _problem(
    HTTPStatus.REQUEST_URI_TOO_LONG,
    f"the first line has more than {LINE_BYTES:,} bytes",
    "INVALID_REQUEST",
)


@dataclass(frozen=True)
class Entrance:
    """The way to the server.

    Attributes:
        channel: a socket that keeps message boundaries; takes one end of each socket pair.
        connections: that may be open at once.
        idle_seconds: until a connection on which nothing moves is closed.
    """

    channel: socket.socket
    connections: int
    idle_seconds: float

    def enter(self, client: Any, certificate: str) -> socket.socket:
        """Hand one end of a new socket pair to the server; returns the other.

        Raises:
            OSError: the server does not take connections, or no file descriptor is left.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            caller = json.dumps({"client": client[:2], "certificate": certificate}).encode()
            try:
                socket.send_fds(self.channel, [caller], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours


class Port:
    """Accepts connections and serves each until it ends.

    Args:
        answer: the reply to a path and its headers. It runs in a thread for ``/metrics``, which
            waits for the server; the others must be quick.
        context: TLS, looked up for each connection; None without TLS.
        entrance: for the connections that ask for other paths than ``PROBES``; without it,
            ``answer`` answers them, too.
        is_open: whether the server takes connections already.
    """

    def __init__(
        self,
        answer: Callable[[str, Message], Reply],
        context: Watched[ssl.SSLContext] | None = None,
        entrance: Entrance | None = None,
        is_open: Callable[[], bool] = lambda: True,
    ) -> None:
        self._answer = answer
        self._context = context
        self._entrance = entrance
        self._is_open = is_open
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent: dict[asyncio.Timeout, None] = {}
        self._inside = 0

    async def serve(self, listening: socket.socket) -> None:
        """Accept for ever."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while True:
            try:
                connection, client = await loop.sock_accept(listening)
            except OSError:
                await asyncio.sleep(ACCEPT_SECONDS)
                continue
            if len(self._silent) >= MAX_SILENT:
                self._drop_oldest()
            task = asyncio.ensure_future(self._serve(connection, client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # Lets it begin, so that it is counted before the next one is taken.
            await asyncio.sleep(0)

    async def _serve(self, connection: socket.socket, client: Any) -> None:
        reader = asyncio.StreamReader(LINE_BYTES)
        # Callers who hang up, send nonsense or are late deserve no log line.
        failures = (OSError, TimeoutError, ValueError, EOFError, asyncio.IncompleteReadError)
        writer, is_long, patience = None, False, asyncio.timeout(HEAD_SECONDS)
        try:
            async with patience:
                self._silent[patience] = None
                writer = await self._writer(connection, reader)
                line = await reader.readuntil(b"\n")
        except (*failures, asyncio.LimitOverrunError) as error:
            line, is_long = b"", isinstance(error, asyncio.LimitOverrunError)
        finally:
            self._silent.pop(patience, None)
        with contextlib.suppress(*failures):
            if line and writer:
                await self._route(line, reader, writer, client)
            elif is_long and writer:
                await _send(writer, TOO_LONG)
                await _linger(reader, writer)
        if writer:
            await _close(writer)
        else:
            connection.close()

    def _drop_oldest(self) -> None:
        """End the connection that has been silent for longest. A prober sends its line at once, so
        silent callers cannot keep it out.
        """
        patience = next(iter(self._silent))
        del self._silent[patience]
        if not patience.expired():
            patience.reschedule(0)

    async def _writer(
        self, connection: socket.socket, reader: asyncio.StreamReader
    ) -> asyncio.StreamWriter:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader),
            connection,
            ssl=self._context.value if self._context else None,
        )
        return asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _route(
        self,
        line: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: Any,
    ) -> None:
        words = line.split()
        path = words[1].partition(b"?")[0].decode("latin-1") if len(words) > 1 else ""
        if path in PROBES or not self._entrance:
            async with asyncio.timeout(HEAD_SECONDS):
                headers = await _headers(reader)
            if path == "/metrics":
                reply = await asyncio.to_thread(self._answer, path, headers)
            else:
                reply = self._answer(path, headers)
            await _send(writer, reply, with_body=words[:1] != [b"HEAD"])
        elif pair := self._entered(self._entrance, writer, client):
            await self._relay(line, reader, writer, pair, self._entrance.idle_seconds)
        else:
            await _send(writer, BUSY if self._is_open() else STARTING)
            await _linger(reader, writer)

    def _entered(
        self, entrance: Entrance, writer: asyncio.StreamWriter, client: Any
    ) -> socket.socket | None:
        """A connection's way to the server; None while the server takes no more."""
        if not self._is_open() or self._inside >= entrance.connections:
            return None
        # The server is behind with taking them, or no file descriptor is left.
        with contextlib.suppress(OSError):
            return entrance.enter(client, _common_name(writer))
        return None

    async def _relay(
        self,
        line: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: socket.socket,
        seconds: float,
    ) -> None:
        """Carry bytes both ways until one side ends, or nothing has moved for ``seconds``."""
        # Not a stream: one that cannot be written to any more drops what it has not read yet, which
        # is the reply to a body that the server refused.
        pair.setblocking(False)
        self._inside += 1
        loop = asyncio.get_running_loop()
        take, give = partial(loop.sock_recv, pair, CHUNK), partial(loop.sock_sendall, pair)
        tasks: list[asyncio.Task[bool]] = []
        try:
            await give(line)
            there = asyncio.ensure_future(_carry(partial(reader.read, CHUNK), give, seconds))
            back = asyncio.ensure_future(_carry(take, partial(_write, writer), seconds))
            tasks = [there, back]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if there.done() and there.result():
                # The server takes no more, but has answered.
                await asyncio.wait([back])
            if back.done():
                there.cancel()
                await asyncio.wait(tasks)
                await _linger(reader, writer)
        finally:
            self._inside -= 1
            for task in tasks:
                task.cancel()
            if tasks:
                # A socket may be closed only when nobody waits for it.
                await asyncio.wait(tasks)
            pair.close()


def _common_name(writer: asyncio.StreamWriter) -> str:
    """The name in the caller's certificate, if it showed one that the authority signed."""
    certificate = writer.get_extra_info("peercert") or {}
    names = (pair for part in certificate.get("subject", ()) for pair in part)
    return next((value for key, value in names if key == "commonName"), "")


async def _headers(reader: asyncio.StreamReader) -> Message:
    lines = []
    while (line := await reader.readline()) not in (b"\r\n", b"\n", b""):
        lines.append(line)
        if len(lines) > HEAD_LINES:
            raise ValueError("too many headers")
    return BytesHeaderParser().parsebytes(b"".join(lines))


async def _send(writer: asyncio.StreamWriter, reply: Reply, with_body: bool = True) -> None:
    status, body, kind = reply
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Server: wsss-serving",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if status == HTTPStatus.UNAUTHORIZED:
        lines.append("WWW-Authenticate: Bearer")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        lines.append(f"Retry-After: {RETRY_SECONDS}")
    head = "\r\n".join([*lines, "", ""]).encode()
    writer.write(head + body if with_body else head)
    async with asyncio.timeout(HEAD_SECONDS):
        await writer.drain()


async def _carry(
    take: Callable[[], Awaitable[bytes]],
    give: Callable[[bytes], Awaitable[None]],
    idle_seconds: float,
) -> bool:
    """Carry bytes until the source ends, or the target takes no more: whether it was the target."""
    with contextlib.suppress(OSError, TimeoutError):
        while True:
            async with asyncio.timeout(idle_seconds):
                if not (data := await take()):
                    return False
                try:
                    await give(data)
                except ConnectionError:
                    return True
    return False


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the caller read the reply to a request that it is still sending."""
    if writer.can_write_eof():
        writer.write_eof()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while await reader.read(CHUNK):
                pass


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        # Otherwise a caller who reads nothing would keep the rest of its reply in memory.
        writer.transport.abort()

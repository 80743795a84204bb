"""The connections of the HTTP port, in the process of probes.py. Probes are answered here; every
other connection goes on to the server, whose API answers it.

The first request line decides. TLS ends here, so the server gets plain bytes over a socket pair,
and a connection costs it nothing before there is something to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.message import Message
from functools import partial
from http import HTTPStatus
from typing import Any

from serving.access.places import Places
from serving.access.watched import Watched
from serving.errors import CallerBusy, RetryLater, ServerUnavailable
from serving.telemetry import heads

# Pause after an accept that failed because no file descriptor was left.
ACCEPT_SECONDS = 0.1
# Connections that have not sent their first line. One more ends the oldest of them.
MAX_SILENT = 512
LINE_BYTES = 16 * 1024
PROBES = ("/metrics", "/healthz", "/readyz")
# One site has as many addresses of IPv6 as it likes, all with this beginning.
SITE_BITS = 64

_unavailable = partial(
    heads.problem,
    HTTPStatus.SERVICE_UNAVAILABLE,
    reason="UNAVAILABLE",
    retry_after=heads.RETRY_SECONDS,
)
BUSY = _unavailable("the server does not take connections fast enough")
STARTING = _unavailable("the server is starting")
TOO_LONG = heads.problem(
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
        per_address: of those, for one address.
        idle_seconds: until a connection on which nothing moves is closed.
    """

    channel: socket.socket
    connections: int
    per_address: int
    idle_seconds: float

    def enter(self, client: tuple[str, int], certificate: str) -> socket.socket:
        """Hand one end of a new socket pair to the server; returns the other.

        Raises:
            OSError: the server does not take connections, or no file descriptor is left.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            caller = json.dumps({"client": client, "certificate": certificate}).encode()
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
        answer: Callable[[str, Message], heads.Reply],
        context: Watched[ssl.SSLContext] | None = None,
        entrance: Entrance | None = None,
        is_open: Callable[[], bool] = lambda: True,
    ) -> None:
        self._answer = answer
        self._context = context
        self._entrance = entrance
        limits = (entrance.connections, entrance.per_address) if entrance else (0, 0)
        self._places = Places("connections", *limits, ServerUnavailable)
        self._is_open = is_open
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent: dict[asyncio.Timeout, None] = {}

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
            task = asyncio.ensure_future(self._serve(connection, (_host(client), client[1])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # Lets it begin, so that it is counted before the next one is taken.
            await asyncio.sleep(0)

    async def _serve(self, connection: socket.socket, client: tuple[str, int]) -> None:
        reader = asyncio.StreamReader(LINE_BYTES)
        # Callers who hang up, send nonsense or are late deserve no log line.
        failures = (OSError, TimeoutError, ValueError, EOFError, asyncio.IncompleteReadError)
        writer, is_long, patience = None, False, asyncio.timeout(heads.HEAD_SECONDS)
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
                await heads.refuse(reader, writer, TOO_LONG)
        if writer:
            await heads.close(writer)
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
        client: tuple[str, int],
    ) -> None:
        words = line.split()
        path = (
            heads.path_of(words[1].partition(b"?")[0].decode("latin-1")) if len(words) > 1 else ""
        )
        if path in PROBES or not self._entrance:
            async with asyncio.timeout(heads.HEAD_SECONDS):
                fields = await heads.fields(reader)
            if path == "/metrics":
                reply = await asyncio.to_thread(self._answer, path, fields)
            else:
                reply = self._answer(path, fields)
            await heads.send(writer, reply, with_body=words[:1] != [b"HEAD"])
        elif not self._is_open():
            await heads.refuse(reader, writer, STARTING)
        else:
            try:
                with self._places.hold(_site(client[0])):
                    await self._enter(line, reader, writer, client, self._entrance)
            except RetryLater as error:
                await heads.refuse(reader, writer, _later(error))

    async def _enter(
        self,
        line: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: tuple[str, int],
        entrance: Entrance,
    ) -> None:
        try:
            pair = entrance.enter(client, _common_name(writer))
        except OSError:
            # The server is behind with taking them, or no file descriptor is left.
            await heads.refuse(reader, writer, BUSY)
        else:
            await self._relay(line, reader, writer, pair, entrance.idle_seconds)

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
        loop = asyncio.get_running_loop()
        take, give = partial(loop.sock_recv, pair, heads.CHUNK), partial(loop.sock_sendall, pair)
        tasks: list[asyncio.Task[bool]] = []
        try:
            await give(line)
            there = asyncio.ensure_future(_carry(partial(reader.read, heads.CHUNK), give, seconds))
            back = asyncio.ensure_future(_carry(take, partial(_write, writer), seconds))
            tasks = [there, back]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if there.done() and there.result():
                # The server takes no more, but has answered.
                await asyncio.wait([back])
            if back.done():
                there.cancel()
                await asyncio.wait(tasks)
                await heads.linger(reader, writer)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                # A socket may be closed only when nobody waits for it.
                await asyncio.wait(tasks)
            pair.close()


def _host(client: Any) -> str:
    """The address of a caller, without the form that IPv4 has on a socket of both families."""
    host: str = client[0]
    return host.removeprefix("::ffff:") if "." in host else host


def _site(host: str) -> str:
    """What counts as one address: of IPv6, all that begin alike."""
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host.partition("%")[0], SITE_BITS), strict=False))


def _common_name(writer: asyncio.StreamWriter) -> str:
    """The name in the caller's certificate, if it showed one that the authority signed."""
    certificate = writer.get_extra_info("peercert") or {}
    names = (pair for part in certificate.get("subject", ()) for pair in part)
    return next((value for key, value in names if key == "commonName"), "")


def _later(error: RetryLater) -> heads.Reply:
    """A connection too many, as a problem."""
    is_callers = isinstance(error, CallerBusy)
    status = HTTPStatus.TOO_MANY_REQUESTS if is_callers else HTTPStatus.SERVICE_UNAVAILABLE
    return heads.problem(status, error.found, error.reason, retry_after=heads.RETRY_SECONDS)


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

"""Heads and replies of HTTP/1.1 as the process of probes.py needs them; light to import."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from email.message import Message
from email.parser import BytesHeaderParser
from email.utils import formatdate
from http import HTTPStatus

# Seconds for the head of the first request, TLS handshake included. A caller that sends a byte now
# and then would otherwise keep its connection for ever.
HEAD_SECONDS = 10.0
# Seconds in which a refused sender may go on. Closing at once resets the connection, and the reset
# overtakes the reply.
LINGER_SECONDS = 1.0
# Seconds in which a caller takes the rest of a reply from a connection that ends.
CLOSE_SECONDS = 10.0
HEAD_LINES = 100
CHUNK = 64 * 1024
# Scheme and host of a request line in absolute form, as it is sent to proxies.
HOST = re.compile(r"https?://[^/?]*", re.IGNORECASE)
# With these the caller may come back, after so many seconds.
LATER = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
RETRY_SECONDS = 1

# Status, body and content type.
Reply = tuple[HTTPStatus, bytes, str]


def problem(status: HTTPStatus, detail: str, reason: str, **more: int) -> Reply:
    """A problem as the API writes it, which this process cannot import."""
    body = {"type": "about:blank", "title": status.phrase, "status": status.value}
    body |= {"detail": detail, "reason": reason, **more}
    return status, json.dumps(body).encode(), "application/problem+json"


def path_of(target: str) -> str:
    """The path in the target of a request line, which may begin with scheme and host, without a
    slash at its end.
    """
    host = HOST.match(target)
    return target[host.end() if host else 0 :].rstrip("/") or "/"


async def fields(reader: asyncio.StreamReader) -> Message:
    """The header fields that come next.

    Raises:
        ValueError: too many, or one that is too long.
    """
    lines = []
    while (line := await reader.readline()) not in (b"\r\n", b"\n", b""):
        lines.append(line)
        if len(lines) > HEAD_LINES:
            raise ValueError("too many headers")
    return BytesHeaderParser().parsebytes(b"".join(lines))


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: Reply) -> None:
    """Write a reply to a request that is not read to its end."""
    await send(writer, reply)
    await linger(reader, writer)


async def send(writer: asyncio.StreamWriter, reply: Reply, with_body: bool = True) -> None:
    """Write a reply, after which the connection ends."""
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
    if status in LATER:
        lines.append(f"Retry-After: {RETRY_SECONDS}")
    head = "\r\n".join([*lines, "", ""]).encode()
    writer.write(head + body if with_body else head)
    async with asyncio.timeout(HEAD_SECONDS):
        await writer.drain()


async def linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the caller read the reply to a request that it is still sending."""
    if writer.can_write_eof():
        writer.write_eof()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while await reader.read(CHUNK):
                pass


async def close(writer: asyncio.StreamWriter) -> None:
    """End a connection when its caller has taken what was written, or takes nothing."""
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        # Otherwise a caller who reads nothing would keep the rest of its reply in memory.
        writer.transport.abort()

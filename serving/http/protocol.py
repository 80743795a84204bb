"""A connection of HTTP/1.1 by uvicorn, with a time limit for heads and refusals as problems."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.errors import BodyLate, RequestError
from serving.http.problems import problem
from serving.telemetry.heads import HEAD_SECONDS

LATE = BodyLate(f"the head of the request did not arrive within {HEAD_SECONDS:g} s")
MALFORMED = RequestError("no valid HTTP request", "HTTP/1.1")


class Protocol(H11Protocol):
    """Between its replies, a caller has ``HEAD_SECONDS`` for the head of its next request. uvicorn
    itself waits for ever once a byte has arrived.
    """

    _late: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A caller came."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller left."""
        self._late.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Bytes arrived."""
        super().handle_events()
        if self.cycle and not self.cycle.response_complete:
            self._late.cancel()

    def on_response_complete(self) -> None:
        """A reply was written."""
        # First, because the base class then handles a head that has arrived already.
        self._expect_head()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What arrived is no HTTP."""
        self._refuse(MALFORMED)

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(HEAD_SECONDS, self._refuse, LATE)

    def _refuse(self, error: RequestError) -> None:
        # After a reply, or a part of it, nothing else can be said.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            reply = problem(error, "")
            status = HTTPStatus(reply.status_code)
            headers = [(b"connection", b"close"), *reply.raw_headers]
            events = (
                h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
                h11.Data(data=bytes(reply.body)),
                h11.EndOfMessage(),
            )
            self.transport.writelines(self.conn.send(event) or b"" for event in events)
        if self.cycle:
            # Whoever answers this request is not to write a second reply.
            self.cycle.disconnected = True
        self.transport.close()

"""The server's side of the HTTP port: starts the process that listens, gives it state and metrics,
and gets from it the connections of the API.
"""

from __future__ import annotations

import asyncio
import json
import logging
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from serving.addresses import bare, joined, listening
from serving.config import ServerConfig
from serving.telemetry.metrics import Telemetry
from serving.telemetry.probes import STATE

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
END_SECONDS = 5.0
BACKLOG = 128
# The server ends what is idle first, because it can say why.
SLACK_SECONDS = 30.0


class HttpServer:
    """The HTTP port; see :mod:`serving.telemetry.probes` and :mod:`serving.telemetry.port`.

    Args:
        with_api: whether connections that ask for anything but probes come to ``channel``.

    Attributes:
        channel: where they come, one socket a message; None without the API or before the start.
    """

    def __init__(self, telemetry: Telemetry, config: ServerConfig, with_api: bool = False) -> None:
        self._telemetry = telemetry
        self._config = config
        self._with_api = with_api
        self._state = mmap.mmap(-1, STATE.size)
        self._ready = self._open = False
        self._process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen; returns the address. The caller has checked that the port is free."""
        # Shared memory needs no message: the probe process can answer while this one is busy.
        file = os.memfd_create("wsss-probes")
        os.ftruncate(file, STATE.size)
        self._state = mmap.mmap(file, STATE.size)
        self._tick()
        ours, theirs = Pipe()
        sockets = listening(host, port, BACKLOG)
        bound = sockets[0].getsockname()[1]
        entrance = self._channel()
        self._process = self._spawn(sockets, file, theirs.fileno(), entrance)
        for one in (*sockets, *filter(None, [entrance])):
            one.close()
        os.close(file)
        theirs.close()
        threading.Thread(target=self._give_pages, args=(ours,), name="metrics", daemon=True).start()
        threading.Thread(
            target=self._watch, args=(self._process,), name="probes", daemon=True
        ).start()
        self._ticking = asyncio.ensure_future(self._keep_ticking())
        return joined(bare(host), bound)

    def set_ready(self, ready: bool) -> None:
        """Set the answer of ``/readyz``."""
        self._ready = ready
        self._tick()

    def open_api(self) -> None:
        """Let the connections of the API in."""
        self._open = True
        self._tick()

    async def stop(self) -> None:
        """Close the port, if it is open."""
        process, self._process = self._process, None
        if self.channel:
            self.channel.close()
        if process and process.stdin:
            self._ticking.cancel()
            process.stdin.close()
            try:
                await asyncio.to_thread(process.wait, END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _channel(self) -> socket.socket | None:
        """The process's end of a new ``channel``, if there is an API."""
        if not self._with_api:
            return None
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setblocking(False)
        return theirs

    def _spawn(
        self, sockets: list[socket.socket], state: int, pages: int, entrance: socket.socket | None
    ) -> subprocess.Popen[bytes]:
        access = self._config.access
        task: dict[str, Any] = {
            "sockets": [one.fileno() for one in sockets],
            "state": state,
            "pages": pages,
            "access": {
                name: str(path.absolute())
                for name in ("cert", "key", "client_ca", "tokens")
                if (path := getattr(access, name))
            },
            "entrance": entrance
            and {
                "channel": entrance.fileno(),
                "connections": self._config.http.connections,
                "per_address": self._config.http.connections_per_address,
                "idle_seconds": self._config.limits.idle_seconds + SLACK_SECONDS,
            },
        }
        files = [state, pages, *task["sockets"], *([entrance.fileno()] if entrance else [])]
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(
            [sys.executable, "-m", "serving.telemetry.probes", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=files,
            env=os.environ | {"PYTHONPATH": path},
            # Ctrl-C in a terminal goes to the whole group; probes must be answered until the end.
            start_new_session=True,
        )

    def _tick(self) -> None:
        STATE.pack_into(self._state, 0, time.monotonic(), self._ready, self._open)

    async def _keep_ticking(self) -> None:
        while True:
            self._tick()
            await asyncio.sleep(TICK_SECONDS)

    def _give_pages(self, pages: Connection[bytes, bytes]) -> None:
        with pages:
            try:
                while True:
                    page, kind = self._telemetry.page(pages.recv_bytes().decode(errors="replace"))
                    pages.send_bytes(kind.encode() + b"\n" + page)
            except (EOFError, OSError):
                return

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if self._process is process:
            log.error(
                "the probe process ended with code %d: /metrics, /healthz and /readyz no longer"
                " answer",
                code,
            )

"""The life of a backend: the port, the model behind it, and the end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from serving.addresses import is_loopback, joined, listening
from serving.annotation.images import Images
from serving.annotation.labelstudio import Backend, Wish
from serving.client import AsyncClient
from serving.config import Limits, NetworkConfig, ServerConfig
from serving.errors import StartError
from serving.http.protocol import Protocol
from serving.server import Server, check_port

# For requests under way at the end.
GRACE_SECONDS = 10


@dataclass(frozen=True)
class Listening:
    """Where to listen, and whether without a login for all who reach it."""

    host: str
    port: int
    insecure: bool = False


def run(
    place: Listening,
    wish: Wish,
    images: Images,
    connection: dict[str, Any],
    repository: Path | None = None,
) -> None:
    """Be a backend until SIGTERM or Ctrl-C.

    Args:
        connection: arguments of :class:`serving.client.AsyncClient`.
        repository: models to serve in this process; the address of ``connection`` is then unused.

    Raises:
        StartError: the port is taken, or open to others without a login.
        RequestError: the server cannot be reached, or has no such model or class.
        RepositoryError: no sound model.
    """
    if not (is_loopback(place.host) or wish.login or place.insecure):
        raise StartError(
            f"{place.host} is open to other machines, so anyone could call",
            "a login, or an address that only this machine reaches",
            "--login USER:PASSWORD, --host 127.0.0.1, or --insecure behind a gateway",
        )
    if wish.login and ":" not in wish.login:
        raise StartError("--login has no password", "USER:PASSWORD")
    asyncio.run(_run(place, wish, images, connection, repository))


async def _run(
    place: Listening,
    wish: Wish,
    images: Images,
    connection: dict[str, Any],
    repository: Path | None,
) -> None:
    check_port(place.host, place.port)
    async with AsyncExitStack() as stack:
        if repository:
            limits = Limits(max_bytes=images.max_bytes)
            server = Server(ServerConfig(repository, NetworkConfig(port=0), limits=limits))
            stack.push_async_callback(server.stop)
            await server.start()
            connection = {**connection, "address": server.address}
        client = await stack.enter_async_context(AsyncClient(**connection))
        backend = Backend(client, images, wish)
        version, classes = await backend.check()
        sockets = listening(place.host, place.port)
        port = sockets[0].getsockname()[1]
        config = uvicorn.Config(
            backend.application(),
            http=Protocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        print(
            f"backend for Label Studio on http://{joined(place.host, port)}: {version},"
            f" {', '.join(classes)}",
            flush=True,
        )
        await _Uvicorn(config).serve(sockets=sockets)


class _Uvicorn(uvicorn.Server):
    """Ends on a signal as our own server does: uvicorn would raise it again, and skip the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

"""The server: models loaded, one gRPC port with service, health and reflection, and a clean end on SIGTERM."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from serving.config import ServerConfig
from serving.cpus import available_cpus
from serving.errors import StartError
from serving.models import Models
from serving.service import SegmentationService
from wsss.v1 import segmentation_pb2, segmentation_pb2_grpc

log = logging.getLogger(__name__)

SERVICE: str = segmentation_pb2.DESCRIPTOR.services_by_name["Segmentation"].full_name
MESSAGE_SLACK = 1024 * 1024
LAST_WALL = 1024
# Without a call at work until the port closes on watchers: the last replies leave in it.
FLUSH_SECONDS = 0.5
TICK_SECONDS = 0.05


class Server:
    """One server. ``start``, then ``stop``, both on one event loop."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._models = Models(config)
        self._codecs = ThreadPoolExecutor(available_cpus(), thread_name_prefix="codec")
        self._service = SegmentationService(self._models, config.limits, self._codecs)
        self._health = health_aio.HealthServicer()
        self.address = ""

    @property
    def names(self) -> list[str]:
        """The models served now."""
        return sorted({served.card.name for served in self._models.served()})

    async def start(self) -> None:
        """Load, listen, then report SERVING for the server, the service and ``models/NAME`` of each model.

        Raises:
            RepositoryError: a missing, damaged or lying model.
            StartError: the port is taken or the host is none of this machine.
        """
        check_port(self._config.network.host, self._config.network.port)
        await self._models.start()
        limit = 2 * self._config.limits.max_bytes + MESSAGE_SLACK
        self._grpc = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=LAST_WALL,
        )
        segmentation_pb2_grpc.add_SegmentationServicer_to_server(self._service, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        self.address = self._bind()
        await self._grpc.start()
        for name in ("", SERVICE, *(f"models/{name}" for name in self.names)):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Say NOT_SERVING, refuse new calls, let accepted ones finish within ``grace``, then free everything."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._config.shutdown.lame_duck)
        closing = asyncio.ensure_future(self._grpc.stop(self._config.shutdown.grace))
        # A client that watches the health service never ends its call, so the port alone is no sign of idleness.
        idle = 0.0
        while not closing.done() and idle < FLUSH_SECONDS:
            await asyncio.wait([closing], timeout=TICK_SECONDS)
            idle = 0.0 if self._service.in_flight else idle + TICK_SECONDS
        await self._grpc.stop(0)
        await closing
        await self._models.close()
        self._codecs.shutdown()

    def _bind(self) -> str:
        host, port = self._config.network.host, self._config.network.port
        target = f"[{host}]" if ":" in host else host
        try:
            bound = self._grpc.add_insecure_port(f"{target}:{port}")
        except RuntimeError as error:
            raise StartError(f"cannot listen on {target}:{port}: {error}", "a free port", "--port 0") from error
        return f"{target}:{bound}"


def check_port(host: str, port: int) -> None:
    """Try the address with a plain socket, whose error says what gRPC's does not.

    Raises:
        StartError: taken, not allowed, or no address of this machine.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} of {host} is in use", "a free port", f"--port {port + 1}, or --port 0 for any free one"
            ) from error
        reason = error.strerror or str(error)
        raise StartError(
            f"cannot listen on {host}:{port}: {reason}", "an address of this machine", "--host 127.0.0.1"
        ) from error


async def serve(config: ServerConfig, ready: Callable[[Server], None]) -> None:
    """Serve until SIGTERM or SIGINT, then end cleanly. ``ready`` is called once calls are answered.

    Raises:
        RepositoryError, StartError: see :meth:`Server.start`.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, ended.set)
    server = Server(config)
    await server.start()
    ready(server)
    await ended.wait()
    log.info("ending: accepted requests finish")
    await server.stop()

"""The server: models, a gRPC port with services, health and reflection, an HTTP port, and a clean
end.
"""

from __future__ import annotations

import asyncio
import errno
import faulthandler
import importlib.metadata
import importlib.util
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving import capture
from serving.access.certificates import Certificates
from serving.access.tokens import Tokens
from serving.addresses import bare, joined, listening
from serving.config import ServerConfig
from serving.errors import StartError
from serving.repository.models import Models
from serving.rpc import health, open_inference, service
from serving.rpc.calls import Calls, write
from serving.rpc.guard import AccessInterceptor, check_exposure
from serving.rpc.health import Health
from serving.rpc.open_inference import OpenInferenceService
from serving.rpc.service import SegmentationService
from serving.scheduling.codecs import Codecs
from serving.scheduling.memory import Memory
from serving.telemetry.http import HttpServer
from serving.telemetry.metrics import Telemetry
from serving.telemetry.tracing import tracer

log = logging.getLogger(__name__)

SERVICES = (service.NAME, open_inference.NAME)
REFLECTION: str = reflection.SERVICE_NAME
# The largest value of a gRPC option, which is an int32.
NEVER = 2**31 - 1
# Idle time before connections are closed, in which the last replies leave.
FLUSH_SECONDS = 0.5
TICK_SECONDS = 0.05
# After the grace: time to free memory and flush. Anything slower is abandoned.
END_SECONDS = 0.5
HTTP_LIBRARIES = ("starlette", "uvicorn", "python_multipart")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Exit code of a process that left accepted requests unanswered.
UNANSWERED = 1


class Server:
    """One server. ``start`` and then ``stop``, both on one event loop.

    Attributes:
        address, http_address: where it listens; the second is empty without an HTTP port.

    Raises:
        StartError: from the constructor: TLS files, tokens or libraries are missing or not sound.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        access, telemetry = config.access, config.telemetry
        check_exposure(config)
        self._certificates = (
            Certificates(access) if access.cert or access.key or access.client_ca else None
        )
        self._tokens = Tokens(access.tokens) if access.tokens else None
        self.telemetry = Telemetry()
        self._capture = capture.opened(config, self.telemetry)
        self._end_trace: Callable[[], None] | None
        trace, self._end_trace = (
            tracer(importlib.metadata.version("wsss")) if telemetry.tracing else (None, None)
        )
        level = logging.getLevelNamesMapping()[telemetry.log_requests.upper()]
        memory = Memory(config.limits)
        self._calls = Calls(self.telemetry, memory, config.limits, trace, level)
        self.models = Models(config)
        self._codecs = Codecs(memory)
        self.telemetry.watch(memory)
        self._health = Health(self.models, self._calls)
        self._http = HttpServer(self.telemetry, config, with_api=has_api(config))
        self._end_api: Callable[[], None] | None = None
        self.address = self.http_address = ""

    @property
    def names(self) -> list[str]:
        """The models that are served now."""
        return sorted({model.card.name for model in self.models.served()})

    async def start(self) -> None:
        """Load, listen, then report SERVING for the server, its services and ``models/NAME`` of
        each model.

        Raises:
            RepositoryError: see :meth:`serving.repository.models.Models.start`.
            StartError: a port is taken, or the host is not of this machine.
        """
        network = self._config.network
        check_port(network.host, network.port)
        if network.http_port is not None:
            check_port(network.host, network.http_port)
            self.http_address = await self._http.start(network.host, network.http_port)
            log.info("HTTP on %s", self.http_address)
        await self.models.start()
        self.telemetry.follow(self.models)
        if self._capture:
            self._capture.tell(self.models.served())
        segmentation = SegmentationService(
            self.models, self._config, self._codecs, self._calls, self._capture
        )
        interceptors = [AccessInterceptor(self._tokens, self.telemetry)] if self._tokens else []
        self._grpc = grpc.aio.server(
            interceptors=interceptors, options=channel_options(self._config)
        )
        inference = OpenInferenceService(self.models, self._config, self._calls, self._codecs)
        services = (segmentation, inference)
        handlers = [service.handler() for service in (*services, self._health)]
        self._grpc.add_generic_rpc_handlers((*handlers, self._reflection()))
        self.address = self._bind()
        await self._grpc.start()
        self._start_api(segmentation, inference)
        # Last: a balancer sends calls as soon as it reads SERVING.
        self._health.start(SERVICES)
        self._set_ready(True)

    async def stop(self, close: bool = True) -> bool:
        """Report NOT_SERVING, refuse new calls, finish accepted ones within ``grace``, free
        everything.

        Works after a failed or cancelled start, too. Returns whether all requests were answered.

        Args:
            close: close the port, too. A process that ends should not: gRPC answers CANCELLED to
                calls on their way to a closing server (grpc/grpc#41785), while callers see a broken
                connection as UNAVAILABLE and try again.
        """
        self._set_ready(False)
        self._health.end()
        complete = True
        if self.address:
            complete = await self._drain()
            if close:
                await self._grpc.stop(0)
        self._codecs.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if close else END_SECONDS):
                await self._free()
        return complete

    def _start_api(
        self, segmentation: SegmentationService, inference: OpenInferenceService
    ) -> None:
        """Answer the connections of the HTTP API, if there is one."""
        if not self._http.channel:
            return
        from serving.http.app import Api
        from serving.http.connections import Connections
        from serving.http.door import Door
        from serving.http.inference import Inference

        needs_certificate = self._config.access.client_ca is not None
        door = Door(self._calls, self.telemetry, self._tokens, needs_certificate)
        limit = self._config.limits.message_bytes
        tensors = Inference(door, inference, self._codecs, limit).works()
        api = Api(door, segmentation, self.models, self._codecs, self._config, tensors)
        self._end_api = Connections(api.application(), self._http.channel).close
        self._http.open_api()

    async def _free(self) -> None:
        if self._end_api:
            self._end_api()
        await self.models.close()
        await self._http.stop()
        if self._end_trace:
            await asyncio.to_thread(self._end_trace)
        if self._capture:
            await asyncio.to_thread(self._capture.close)

    async def _drain(self) -> bool:
        """Wait for accepted requests; returns whether all were answered."""
        await asyncio.sleep(self._config.shutdown.lame_duck)
        self._calls.ending.set()
        until = time.monotonic() + self._config.shutdown.grace
        idle = 0.0
        while idle < FLUSH_SECONDS and time.monotonic() < until:
            await asyncio.sleep(TICK_SECONDS)
            idle = 0.0 if self._calls.in_flight else idle + TICK_SECONDS
        if left := self._calls.in_flight:
            log.warning("the grace period is over, %d requests stay unanswered", left)
        return not left

    def _reflection(self) -> Any:
        """The handler of reflection, as a stream of ours: limits apply to it, too."""
        servicer = reflection.aio.ReflectionServicer((*SERVICES, health.NAME, REFLECTION))
        service, method = REFLECTION, "ServerReflectionInfo"
        stream = self._calls.streaming(
            f"{service}/{method}",
            servicer.ServerReflectionInfo,
            reflection_pb2.ServerReflectionRequest.FromString,
            write,
        )
        return grpc.method_handlers_generic_handler(service, {method: stream})

    def _set_ready(self, ready: bool) -> None:
        self._calls.draining = not ready
        self._http.set_ready(ready)
        self.telemetry.ready.set(ready)

    def _bind(self) -> str:
        host = bare(self._config.network.host)
        target = joined(host, self._config.network.port)
        try:
            if self._certificates:
                bound = self._grpc.add_secure_port(target, self._certificates.credentials())
            else:
                bound = self._grpc.add_insecure_port(target)
        except RuntimeError as error:
            raise StartError(
                f"cannot listen on {target}: {error}", "a free port", "--port 0"
            ) from error
        return joined(host, bound)


def has_api(config: ServerConfig) -> bool:
    """Whether the HTTP port answers more than probes: it is open, and the libraries are there."""
    if config.network.http_port is None or not config.http.api:
        return False
    if any(importlib.util.find_spec(name) is None for name in HTTP_LIBRARIES):
        log.info("no HTTP API and no page: they need pip install 'wsss[http]'")
        return False
    return True


def channel_options(config: ServerConfig) -> list[tuple[str, int]]:
    """gRPC options for limits and connections."""
    connections = config.connections
    seconds = {
        "grpc.max_connection_age_ms": connections.max_age,
        "grpc.max_connection_age_grace_ms": connections.max_age_grace,
        "grpc.max_connection_idle_ms": connections.max_idle,
        "grpc.keepalive_time_ms": connections.keepalive_time,
        "grpc.keepalive_timeout_ms": connections.keepalive_timeout,
        "grpc.http2.min_recv_ping_interval_without_data_ms": connections.keepalive_min,
    }
    options = [
        ("grpc.max_receive_message_length", config.limits.message_bytes),
        ("grpc.max_send_message_length", -1),
        # Two servers on one port would share its calls without an error.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # Our own limits answer a burst with reasons; gRPC would cut it off silently.
        ("grpc.server.max_pending_requests", NEVER),
        ("grpc.server.max_pending_requests_hard_limit", NEVER),
        *((name, min(int(1000 * value), NEVER)) for name, value in seconds.items() if value),
    ]
    if connections.max_concurrent_calls:
        options.append(("grpc.max_concurrent_streams", connections.max_concurrent_calls))
    return options


def check_port(host: str, port: int) -> None:
    """Try the address with a plain socket, whose error says more than gRPC's.

    Raises:
        StartError: the port is taken or not allowed, or the address is not of this machine.
    """
    try:
        for probe in listening(host, port):
            probe.close()
    # A malformed host name is a ValueError.
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} of {host} is in use",
                "a free port",
                f"--port {port + 1}, or --port 0 for any free one",
            ) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise StartError(
            f"cannot listen on {host}:{port}: {reason}",
            "an address of this machine",
            "--host 127.0.0.1",
        ) from error


async def serve(config: ServerConfig, ready: Callable[[Server], None]) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then end the process.

    The exit code is 0 if every accepted request was answered, otherwise 1. A second signal ends the
    process at once with 128 plus its number. ``ready`` is called once calls are answered.

    Raises:
        RepositoryError, StartError: see :meth:`Server.start`.
    """
    termination = asyncio.Event()
    _end_on_signals(config, termination)
    server = Server(config)
    starting = asyncio.ensure_future(server.start())
    ending = asyncio.ensure_future(termination.wait())
    complete = True
    try:
        await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            ready(server)
            await ending
        log.info("shutting down after accepted requests have finished")
    finally:
        for task in (starting, ending):
            task.cancel()
        await asyncio.wait({starting, ending})
        complete = await server.stop(close=not termination.is_set())
    # The port is still open, see Server.stop. Python's own exit would have gRPC close it first.
    sys.stdout.flush()
    os._exit(0 if complete else UNANSWERED)


def _end_on_signals(config: ServerConfig, termination: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    seconds = config.shutdown.lame_duck + config.shutdown.grace + 2 * END_SECONDS
    nowhere = os.open(os.devnull, os.O_WRONLY)

    def end(number: int) -> None:
        if termination.is_set():
            os._exit(128 + number)
        termination.set()
        try:
            # A C thread, which ends the process with 1 even if a library holds the GIL.
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        except RuntimeError:
            # No memory for a thread: let the kernel end the process by a signal.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)

    for number in SIGNALS:
        # Under nohup the end of the terminal is not the end of the server.
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, end, number)

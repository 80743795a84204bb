"""Every setting of a server, as frozen dataclasses. :mod:`serving.settings` reads them from TOML.

This module imports nothing heavy, so that ``--help`` can show the defaults at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

# Room for the fields of a message beside its image.
MESSAGE_SLACK = 1024 * 1024
Control = Literal["none", "poll", "explicit"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
OversizeRule = Literal["scale", "tile", "auto"]
EngineName = Literal[
    "auto", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "tensorrt"
]
Precision = Literal["auto", "fp32"]


def number(default: float | None, low: float, high: float = math.inf) -> Any:
    """A field that accepts values from ``low`` to ``high``."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class NetworkConfig:
    """Where to listen.

    Attributes:
        host: address; only this machine can reach the default.
        port: of gRPC; 0 takes a free one.
        http_port: of metrics, probes, the HTTP API and the page; None opens no such port.
    """

    host: str = "127.0.0.1"
    port: int = number(8500, 0, 65535)
    http_port: int | None = number(None, 0, 65535)


@dataclass(frozen=True)
class HttpConfig:
    """What the HTTP port answers besides metrics and probes.

    Attributes:
        api: the API and the page, where the extra ``http`` is installed.
        origins: web pages that may call the API from a browser, as in ``https://lab.example``; the
            server's own page always may.
        connections: of the API, open at once.
        per_address: of those, for one address; 0 is half.
    """

    api: bool = True
    origins: tuple[str, ...] = ()
    connections: int = number(512, 1)
    per_address: int = number(0, 0)

    @property
    def connections_per_address(self) -> int:
        """Maximum of open connections for one address."""
        return self.per_address or max(1, self.connections // 2)


@dataclass(frozen=True)
class AccessConfig:
    """Who may call.

    Attributes:
        cert, key: PEM files; with them both ports speak TLS.
        client_ca: PEM file of the authority that signs the certificates of clients.
        tokens: token file; without it every caller may do everything.
        insecure: accept an address that other machines can reach without TLS and tokens.
    """

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    tokens: Path | None = None
    insecure: bool = False


@dataclass(frozen=True)
class ConnectionsConfig:
    """When gRPC closes or tests a connection, in seconds; 0 is never.

    Attributes:
        max_age: of a connection; its clients then reconnect, perhaps to another replica.
        max_age_grace: for the calls on such a connection to finish.
        max_idle: without a call.
        keepalive_time, keepalive_timeout: from silence to a ping, and from the ping to the end.
        keepalive_min: clients that ping more often are disconnected.
        max_concurrent_calls: per connection; 0 is no limit.
    """

    max_age: float = number(0.0, 0)
    max_age_grace: float = number(30.0, 0)
    max_idle: float = number(0.0, 0)
    keepalive_time: float = number(60.0, 0)
    keepalive_timeout: float = number(20.0, 0)
    keepalive_min: float = number(10.0, 0)
    max_concurrent_calls: int = number(0, 0)


@dataclass(frozen=True)
class ModelsConfig:
    """Which models to serve.

    Attributes:
        versions: ``latest``, ``latest:N``, ``all``, or numbers such as ``1,3``.
        control: what changes the models after the start: ``none``; ``poll``, changes in the
            repository; ``explicit``, callers with the role ``control``.
        poll_seconds: between two looks at the repository.
        strict: start only if every model is sound; otherwise the sound ones are served.
        trial: load each model in a separate process first.
        trial_seconds: time limit of a trial.
        trial_memory_mb: memory limit of a trial; 0 is three quarters of what is available.
    """

    versions: str = "latest"
    control: Control = "none"
    poll_seconds: float = number(5.0, 0.05)
    strict: bool = False
    trial: bool = True
    trial_seconds: float = number(120.0, 1)
    trial_memory_mb: int = number(0, 0)


@dataclass(frozen=True)
class ScheduleConfig:
    """How the requests of one model share the processors.

    Attributes:
        workers: parallel runs per model; 0 derives it from the processors.
        threads: per run; 0 derives it.
        queue: requests of one model that may wait or run; the next one is refused.
        max_batch: images per run; 0 is 1 on processors, where a batch takes as long as its images
            one by one, and 8 on GPUs.
        max_delay_ms: how long a free worker waits for more requests of the same shape.
        bucket: sides are rounded up to a multiple of this, so that images of similar sizes share a
            run; 1 changes no pixel.
        warm: sizes to run before the first request, as ``HEIGHTxWIDTH``.
        models: any of the settings above for single models, by name.
    """

    workers: int = number(0, 0)
    threads: int = number(0, 0)
    queue: int = number(64, 1)
    max_batch: int = number(0, 0, 1024)
    max_delay_ms: float = number(0.0, 0, 60_000)
    bucket: int = number(1, 1, 4096)
    warm: tuple[str, ...] = ()
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def for_model(self, model: str) -> ScheduleConfig:
        """The settings of one model."""
        return replace(self, models={}, **self.models.get(model, {}))


@dataclass(frozen=True)
class EngineConfig:
    """What runs the graphs.

    Attributes:
        name: ``auto``, or an engine; a model that it cannot run is refused.
        models: engines of single models, by name.
        precision: ``auto`` is the fastest sound one; ``fp32`` is float32 everywhere.
        device: number of the GPU.
        memory_mb: GPU memory limit of ONNX Runtime, per model, and of TensorRT's kernel search; 0
            is no limit.
        max_side: larger images are scaled or tiled; 0 is the model's own limit, or 1024 with
            TensorRT, which reserves memory for the largest image.
        cuda_graphs: replay the kernels of the sizes in ``schedule.warm`` as one graph; then only
            one run at a time.
        cache: folder of built TensorRT engines, to be trusted like the models; by default in the
            user's cache folder.
    """

    name: EngineName = "auto"
    models: Mapping[str, EngineName] = field(default_factory=dict)
    precision: Precision = "auto"
    device: int = number(0, 0)
    memory_mb: int = number(0, 0)
    max_side: int = number(0, 0)
    cuda_graphs: bool = False
    cache: Path | None = None

    def name_for(self, model: str) -> EngineName:
        """The engine of one model."""
        return self.models.get(model, self.name)


@dataclass(frozen=True)
class Limits:
    """What is refused.

    Attributes:
        max_bytes: of an image file.
        max_pixels: of an image.
        max_passes: pixels that decoding visits; each scan of a progressive JPEG visits all of them.
            Counted before decoding.
        max_decoded_bytes: memory of all requests together, for messages, images and masks; 0 is
            half of what the process, its container or the machine has.
        max_aspect: ratio of the longer to the shorter side.
        max_message_bytes: of a request; 0 is twice ``max_bytes`` plus a megabyte.
        max_batch: first axis of one Open Inference request.
        max_calls: requests in progress at once, from the first byte to the reply.
        max_per_caller: of those, per token, certificate or address; 0 is half of ``max_calls``.
        max_streams: open at once.
        max_watches: of the health service, open at once.
        max_open_per_caller: streams, and watches, that one caller may have open.
        idle_seconds: until a stream without messages, or a request whose message does not arrive,
            is ended.
        stream_in_flight: unanswered requests per stream; no further one is read until then.
    """

    max_bytes: int = number(32 * 1024 * 1024, 1)
    max_pixels: int = number(50_000_000, 1)
    max_passes: int = number(1_000_000_000, 1)
    max_decoded_bytes: int = number(0, 0)
    max_aspect: float = number(100.0, 1)
    max_message_bytes: int = number(0, 0, 2**31 - 1)
    max_batch: int = number(64, 1)
    max_calls: int = number(1024, 1)
    max_per_caller: int = number(0, 0)
    max_streams: int = number(256, 1)
    max_watches: int = number(1024, 1)
    max_open_per_caller: int = number(64, 1)
    idle_seconds: float = number(600.0, 0.1)
    stream_in_flight: int = number(16, 1)

    @property
    def message_bytes(self) -> int:
        """Maximum size of a request."""
        return self.max_message_bytes or min(2 * self.max_bytes + MESSAGE_SLACK, 2**31 - 1)

    @property
    def calls_per_caller(self) -> int:
        """Maximum of requests in progress per caller."""
        return self.max_per_caller or max(1, self.max_calls // 2)


@dataclass(frozen=True)
class TilingConfig:
    """How images above a model's limits are treated unless the request says otherwise.

    Attributes:
        oversize: ``scale``, ``tile``, or ``auto``: scale while half of each side is left, else
            tile.
        overlap: minimum share of a tile that overlaps the next one.
        max_tiles: per image; an image that needs more is refused.
    """

    oversize: OversizeRule = "scale"
    overlap: float = number(0.25, 0, 0.5)
    max_tiles: int = number(1024, 1)


@dataclass(frozen=True)
class ShutdownConfig:
    """How to end.

    Attributes:
        grace: seconds for accepted requests to finish after SIGTERM.
        lame_duck: seconds between NOT_SERVING in the health service and the refusal of calls.
    """

    grace: float = number(30.0, 0)
    lame_duck: float = number(0.0, 0)


@dataclass(frozen=True)
class TelemetryConfig:
    """Logs, traces and metrics.

    Attributes:
        log_format: ``text``, or ``json`` for one object per line.
        log_level: lowest level that is written.
        log_requests: level of the line that each request leaves.
        tracing: export OpenTelemetry spans as the ``OTEL_*`` environment variables say.
    """

    log_format: LogFormat = "text"
    log_level: LogLevel = "info"
    log_requests: LogLevel = "debug"
    tracing: bool = False


@dataclass(frozen=True)
class CaptureConfig:
    """Which images of callers are kept.

    Attributes:
        folder: where; None keeps no image.
        doubt: only images with a larger doubt are kept.
        max_mb: of the folder; then no more images are kept.
        per_minute: images that one process keeps in any minute, at most.
    """

    folder: Path | None = None
    doubt: float = number(0.1, 0, 1)
    max_mb: int = number(1024, 1)
    per_minute: int = number(10, 1, 100_000)


@dataclass(frozen=True)
class ServerConfig:
    """The settings of a server, for the models in the folder ``repository``."""

    repository: Path = Path("exported")
    network: NetworkConfig = NetworkConfig()
    http: HttpConfig = HttpConfig()
    access: AccessConfig = AccessConfig()
    connections: ConnectionsConfig = ConnectionsConfig()
    models: ModelsConfig = ModelsConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    limits: Limits = Limits()
    tiling: TilingConfig = TilingConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    capture: CaptureConfig = CaptureConfig()

"""Every setting of a server: frozen dataclasses, which :mod:`serving.settings` reads from a TOML
file.

No module that a file's reading does not need is imported here, so that the command line knows the
defaults at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

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
    """A field whose value must lie in ``low`` to ``high``."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class NetworkConfig:
    """Where to listen.

    Attributes:
        host: address; the machine itself by default.
        port: of gRPC; 0 takes a free one.
        http_port: of metrics and probes; none is opened where it is left out.
    """

    host: str = "127.0.0.1"
    port: int = number(8500, 0, 65535)
    http_port: int | None = number(None, 0, 65535)


@dataclass(frozen=True)
class AccessConfig:
    """Who may call.

    Attributes:
        cert, key: PEM files; with them both ports speak TLS.
        client_ca: PEM file of who signs the certificates that gRPC callers must show.
        tokens: file of the callers; without it everyone may do everything.
        insecure: listen where other machines reach without TLS and tokens.
    """

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    tokens: Path | None = None
    insecure: bool = False


@dataclass(frozen=True)
class ConnectionsConfig:
    """Seconds after which gRPC ends or tests a connection, 0 for never.

    Attributes:
        max_age: of a connection; its callers connect anew, maybe to another replica.
        max_age_grace: in which the calls of such a connection may finish.
        max_idle: without a call.
        keepalive_time, keepalive_timeout: between pings to a silent caller, and until it is given
        up.
        keepalive_min: callers that ping more often are sent away.
        max_concurrent_calls: on one connection; 0 for no limit.
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
        versions: ``latest``, ``latest:N``, ``all``, or numbers as in ``1,3``.
        control: what changes the models after the start. ``none``; ``poll``: the repository itself,
            which is looked at again and again; ``explicit``: callers who load and unload models, if
            their token has the role.
        poll_seconds: between two looks.
        strict: start only if every model is sound; otherwise serve those that are.
        trial: try a model in a process of its own before it is loaded.
        trial_seconds: after which a trial is ended and its model refused.
        trial_memory_mb: that a trial may take; 0 for three quarters of what there is.
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
        workers: runs at once of each model; 0 chooses by the processors.
        threads: of each run; 0 chooses.
        queue: requests of one model admitted and not answered yet; one more is refused.
        max_batch: images in a run; 0 chooses: 1 on processors, where a batch takes as long as its
            images one by one.
        max_delay_ms: for which a free worker lets a request wait, so that others of its shape may
            join its run.
        bucket: sides are rounded up to a multiple of this, so that images of about one size share a
            run; 1 keeps every size and every bit.
        warm: sizes to run before the first request, as ``HEIGHTxWIDTH``.
        models: of single models, by name, any of the settings above.
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
        name: ``auto``, or an engine, which is used or the model is refused.
        models: engines of single models, by name.
        precision: ``auto`` is what the engine and the device do fastest, ``fp32`` float32 on all of
            them.
        device: number of the GPU.
        memory_mb: of the GPU, that a model's onnxruntime may take, and that TensorRT may use to try
            its kernels; 0 for no limit.
        max_side: larger images are scaled down or tiled; 0 is the model's own, or 1024 where
            TensorRT is the engine, which plans its memory for the largest image.
        cuda_graphs: replay the kernels of the sizes in ``schedule.warm`` as one; one run at a time
            then.
        cache: folder of what TensorRT built; trusted like the models. By default below the user's
        own cache folder.
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
        max_passes: pixels that decoding an image goes over: all of them again in each scan of a
            progressive JPEG. Counted before it is decoded.
        max_decoded_bytes: of memory that all requests under way may take: messages that are read,
            images encoded and decoded, masks; 0 for half of what the process, its container or the
            machine has.
        max_aspect: ratio of its longer to its shorter side.
        max_message_bytes: of a request; 0 is twice the bytes of an image and a megabyte.
        max_batch: first axis of one request of the Open Inference Protocol.
        max_calls: requests of all models and callers under way at once, from their first byte to
            their reply.
        max_per_caller: of them, that one token, certificate or address may have; 0 for half.
        max_streams: open at once.
        max_watches: of the health service, open at once.
        max_open_per_caller: streams, and watches, that one caller may have open.
        idle_seconds: after which a stream without a message is ended, and a request whose message
            does not arrive.
        stream_in_flight: requests of one stream taken and not answered yet; further ones are not
        read until then.
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
        """What a request may have at most."""
        return self.max_message_bytes or min(2 * self.max_bytes + MESSAGE_SLACK, 2**31 - 1)

    @property
    def calls_per_caller(self) -> int:
        """Requests that one caller may have under way."""
        return self.max_per_caller or max(1, self.max_calls // 2)


@dataclass(frozen=True)
class TilingConfig:
    """What becomes of images above a model's limits, unless the request says otherwise.

    Attributes:
        oversize: ``scale`` them down, cut them into ``tile``s, or ``auto``: scale while half of
            each side is left, else tile.
        overlap: share of a tile that overlaps the next one at least.
        max_tiles: of one image; more are refused.
    """

    oversize: OversizeRule = "scale"
    overlap: float = number(0.25, 0, 0.5)
    max_tiles: int = number(1024, 1)


@dataclass(frozen=True)
class ShutdownConfig:
    """How to end.

    Attributes:
        grace: seconds in which accepted requests may finish after SIGTERM.
        lame_duck: seconds between "not serving" in the health service and the closing of the port.
    """

    grace: float = number(30.0, 0)
    lame_duck: float = number(0.0, 0)


@dataclass(frozen=True)
class TelemetryConfig:
    """Logs, traces and metrics.

    Attributes:
        log_format: ``text``, or ``json`` for one object a line.
        log_level: lines below it are not written.
        log_requests: level of the line that each request leaves.
        tracing: write OpenTelemetry spans, to where the ``OTEL_*`` variables of the environment
        say.
    """

    log_format: LogFormat = "text"
    log_level: LogLevel = "info"
    log_requests: LogLevel = "debug"
    tracing: bool = False


@dataclass(frozen=True)
class ServerConfig:
    """How to serve the models of the folder ``repository``."""

    repository: Path = Path("exported")
    network: NetworkConfig = NetworkConfig()
    access: AccessConfig = AccessConfig()
    connections: ConnectionsConfig = ConnectionsConfig()
    models: ModelsConfig = ModelsConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    limits: Limits = Limits()
    tiling: TilingConfig = TilingConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

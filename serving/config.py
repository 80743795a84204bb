"""Every setting of a server: frozen dataclasses, read from a TOML file whose tables are their sections.

No module that a file's reading does not need is imported here, so that the command line knows the defaults at once.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from serving.errors import ConfigError, nearest

T = TypeVar("T")

MESSAGE_SLACK = 1024 * 1024
Control = Literal["none", "poll", "explicit"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
OversizeRule = Literal["scale", "tile", "auto"]


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
        keepalive_time, keepalive_timeout: between pings to a silent caller, and until it is given up.
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
        control: what changes the models after the start. ``none``; ``poll``: the repository itself, which is looked at
            again and again; ``explicit``: callers who load and unload models, if their token has the role.
        poll_seconds: between two looks.
        strict: do not start unless every model is sound; else those that are sound are served.
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
        max_batch: images in a run; 0 chooses: 1 on processors, where a batch takes as long as its images one by one.
        max_delay_ms: for which a free worker lets a request wait, so that others of its shape may join its run.
        bucket: sides are rounded up to a multiple of this, so that images of about one size share a run; 1 keeps
            every size and every bit.
        warm: sizes to run before the first request, as ``HEIGHTxWIDTH``.
    """

    workers: int = number(0, 0)
    threads: int = number(0, 0)
    queue: int = number(64, 1)
    max_batch: int = number(0, 0, 1024)
    max_delay_ms: float = number(0.0, 0, 60_000)
    bucket: int = number(1, 1, 4096)
    warm: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What is refused.

    Attributes:
        max_bytes: of an image file.
        max_pixels: of an image.
        max_aspect: ratio of its longer to its shorter side.
        max_message_bytes: of a request; 0 is twice the bytes of an image and a megabyte.
        max_batch: first axis of one request of the Open Inference Protocol.
        max_streams: open at once.
        max_per_caller: requests that one token, certificate or address may have under way; 0 for no limit.
        stream_in_flight: requests of one stream taken and not answered yet; further ones are not read until then.
    """

    max_bytes: int = number(32 * 1024 * 1024, 1)
    max_pixels: int = number(50_000_000, 1)
    max_aspect: float = number(100.0, 1)
    max_message_bytes: int = number(0, 0, 2**31 - 1)
    max_batch: int = number(64, 1)
    max_streams: int = number(256, 1)
    max_per_caller: int = number(0, 0)
    stream_in_flight: int = number(16, 1)

    @property
    def message_bytes(self) -> int:
        """What a request may have at most."""
        return self.max_message_bytes or min(2 * self.max_bytes + MESSAGE_SLACK, 2**31 - 1)


@dataclass(frozen=True)
class TilingConfig:
    """What becomes of images above a model's limits, unless the request says otherwise.

    Attributes:
        oversize: ``scale`` them down, cut them into ``tile``s, or ``auto``: scale while half of each side is left, else tile.
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
    """What the server tells of itself.

    Attributes:
        log_format: ``text``, or ``json`` for one object a line.
        log_level: lines below it are not written.
        log_requests: level of the line that each request leaves.
        tracing: write OpenTelemetry spans, to where the ``OTEL_*`` variables of the environment say.
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
    limits: Limits = Limits()
    tiling: TilingConfig = TilingConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    telemetry: TelemetryConfig = TelemetryConfig()


def read_config(path: Path) -> ServerConfig:
    """The settings of a TOML file; what it leaves out keeps its default. Paths in it are relative to its folder.

    Raises:
        ConfigError: no such file, no TOML, an unknown setting, or a value of the wrong type or out of range.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "a TOML file of settings") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no TOML: {error}", "lines such as: port = 8500, below [network]") from error
    return changed(ServerConfig(), tree, folder=path.parent)


def changed(config: T, tree: Mapping[str, Any], where: str = "", folder: Path = Path()) -> T:
    """A copy of ``config`` with the values of ``tree``, whose tables are sections.

    Args:
        config: dataclass, maybe with dataclasses in it.
        tree: as ``tomllib`` gives it.
        where: dotted name of ``config``, for errors.
        folder: what relative paths are relative to.

    Raises:
        ConfigError: see :func:`read_config`.
    """
    hints = typing.get_type_hints(type(config))
    fields = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{where}.{key}" if where else key
        if key not in fields:
            raise ConfigError(f"no setting {name!r}", nearest(key, fields))
        old = getattr(config, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} is {value!r}", f"a table: [{name}]")
            values[key] = changed(old, value, name, folder)
        else:
            values[key] = _typed(value, hints[key], name, folder)
            _check_range(values[key], fields[key].metadata, name)
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def set_values(config: ServerConfig, texts: Sequence[str]) -> ServerConfig:
    """A copy with ``section.key=value`` texts applied; a value is written as in TOML, text also without quotes.

    Raises:
        ConfigError: no such form, or see :func:`read_config`.
    """
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r} is no setting", "section.key=value", "--set schedule.queue=128")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except ValueError:
            parsed = value.strip()
        config = set_value(config, name.strip(), parsed)
    return config


def set_value(config: ServerConfig, name: str, value: Any) -> ServerConfig:
    """A copy with the setting of this dotted name changed.

    Raises:
        ConfigError: see :func:`read_config`.
    """
    for key in reversed(name.split(".")):
        value = {key: value}
    return changed(config, value)


def _typed(value: Any, hint: Any, name: str, folder: Path) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # TOML has no null: an optional setting is left out, or given as its one other type.
        return _typed(value, next(a for a in arguments if a is not type(None)), name, folder)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{name} is {value!r}", nearest(str(value), map(str, arguments)))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} is {value!r}", "a list in [ ]")
        return tuple(_typed(entry, arguments[0], name, folder) for entry in value)
    if hint is Path and isinstance(value, str | Path):
        return folder / value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{name} is {value!r}", f"a value of type {hint.__name__}")
    return value


def _check_range(value: Any, metadata: Mapping[str, Any], name: str) -> None:
    low, high = metadata.get("low", -math.inf), metadata.get("high", math.inf)
    # Written so that a NaN fails too.
    if metadata and not low <= value <= high:
        raise ConfigError(f"{name} is {value}", f"{low} to {high}" if high < math.inf else f"{low} or more")

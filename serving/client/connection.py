"""What both Python clients share: channel options, TLS, the token and the number of attempts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc

from serving.addresses import is_local
from serving.client.retries import Retries
from serving.errors import ConfigError
from wsss.v1 import segmentation_pb2_grpc

ADDRESS = "127.0.0.1:8500"
OPTIONS = [
    # gRPC's default of 4 MiB is too small for masks; the server has limits of its own.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC waits a second and more before it reconnects. A server that restarts should be found by
    # the next attempt.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # Without keepalive a host that vanished leaves a call waiting for ever.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


def open_channel(address: str, tls: grpc.ChannelCredentials | None = None, make: Any = grpc) -> Any:
    """A channel of ``grpc`` or ``grpc.aio``, plain or with TLS.

    It bypasses proxies on the way to this machine, whatever the environment says. To other hosts it
    respects ``no_proxy``.
    """
    options = [*OPTIONS, ("grpc.enable_http_proxy", int(not is_local(address)))]
    if tls:
        return make.secure_channel(address, tls, options)
    return make.insecure_channel(address, options=options)


class Connection:
    """The arguments of both clients and their channel. See :class:`serving.client.Client`."""

    _grpc: Any = grpc

    def __init__(
        self,
        address: str = ADDRESS,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        token: str = "",
        tls: grpc.ChannelCredentials | None = None,
    ) -> None:
        metadata = bearer(token)
        self._channel = open_channel(address, tls, self._grpc)
        self._stub = segmentation_pb2_grpc.SegmentationStub(self._channel)
        self._timeout = timeout
        self._retries = retries
        self._metadata = metadata

    def _tries(self) -> Retries:
        return Retries(self._retries, self._timeout)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata with a token; empty without one. White space around the token, such as the line
    break of a file, is stripped.

    Raises:
        ConfigError: a character that a header cannot hold.
    """
    token = token.strip()
    if odd := [character for character in token if not "!" <= character <= "~"]:
        raise ConfigError(
            f"the token contains {odd[0]!r}",
            "printable ASCII without white space, as wsss-serving token makes it",
        )
    return (("authorization", f"Bearer {token}"),) if token else ()


def credentials(
    ca: str | os.PathLike[str], cert: str | os.PathLike[str] = "", key: str | os.PathLike[str] = ""
) -> grpc.ChannelCredentials:
    """Credentials for a server with TLS.

    Args:
        ca: PEM file of the authority that signed the server's certificate.
        cert, key: PEM files of the caller's own certificate, if the server asks for one.

    Raises:
        OSError: a file cannot be read.
    """
    own = [Path(file).read_bytes() if file else None for file in (key, cert)]
    return grpc.ssl_channel_credentials(Path(ca).read_bytes(), *own)

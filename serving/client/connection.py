"""What both Python clients need for a connection: its options, TLS, token, and how often a call is
tried.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc

from serving.client.retries import Retries
from wsss.v1 import segmentation_pb2_grpc

ADDRESS = "127.0.0.1:8500"
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that starts again is found again by the next try.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # A server that vanished without a word is given up.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


class Connection:
    """What both clients are told, and their channel, which ``grpc`` or ``grpc.aio`` makes. See
    ``serving.client.Client``.
    """

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
        make = self._grpc
        self._channel = (
            make.secure_channel(address, tls, OPTIONS)
            if tls
            else make.insecure_channel(address, options=OPTIONS)
        )
        self._stub = segmentation_pb2_grpc.SegmentationStub(self._channel)
        self._timeout = timeout
        self._retries = retries
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def _tries(self) -> Retries:
        return Retries(self._retries, self._timeout)


def credentials(
    ca: str | os.PathLike[str], cert: str | os.PathLike[str] = "", key: str | os.PathLike[str] = ""
) -> grpc.ChannelCredentials:
    """For a server that speaks TLS.

    Args:
        ca: PEM file of who signed the server's certificate.
        cert, key: PEM files of the caller's own certificate, where the server asks for one.

    Raises:
        OSError: a file cannot be read.
    """
    own = [Path(file).read_bytes() if file else None for file in (key, cert)]
    return grpc.ssl_channel_credentials(Path(ca).read_bytes(), *own)

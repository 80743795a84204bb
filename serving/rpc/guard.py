"""Refuses callers without the right token, and a server that is exposed by accident."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from serving.access.tokens import Tokens, allow
from serving.addresses import is_loopback
from serving.config import ServerConfig
from serving.errors import RequestError, StartError
from serving.rpc.calls import abort
from serving.rpc.metadata import TOKEN_NAME
from serving.telemetry.metrics import Telemetry

log = logging.getLogger(__name__)

HEALTH = "/grpc.health."
REFLECTION = "/grpc.reflection."
CONTROL = {
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
}


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without a token of the required role, before their message is read. The health
    service is open to all.
    """

    def __init__(self, tokens: Tokens, telemetry: Telemetry) -> None:
        self._tokens = tokens
        self._telemetry = telemetry

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The call's own handler, or one that refuses it."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(HEALTH):
            return handler
        try:
            caller = self._tokens.caller(_header(details.invocation_metadata))
            if not details.method.startswith(REFLECTION):
                allow(caller, "control" if details.method in CONTROL else "infer")
        except RequestError as error:
            self._telemetry.refused(details.method[1:], error.code, error.reason)
            return _refusal(error)
        # The handler runs in this task's context, where it finds the caller's name.
        TOKEN_NAME.set(caller.name)
        return handler


def check_exposure(config: ServerConfig) -> None:
    """Refuse an exposed server that nobody asked for.

    Raises:
        StartError: other machines can reach the address, there is neither TLS nor a token file, and
            ``insecure`` is not set; or model control is on without a token file.
    """
    access, host = config.access, config.network.host
    if access.insecure or is_loopback(host):
        return
    if not access.cert and not access.tokens:
        raise StartError(
            f"{host} is open to other machines, so anyone could call",
            "TLS, tokens, or an address that only this machine reaches",
            "--tls-cert CERT --tls-key KEY, --tokens FILE, --host 127.0.0.1, or --insecure behind a"
            " gateway",
        )
    if config.models.control == "explicit" and not access.tokens:
        raise StartError(
            f"{host} is open to other machines, so anyone could load and unload models",
            "a token file with callers of the role control",
            "--tokens FILE",
        )
    if not access.cert:
        log.warning("tokens travel unencrypted, because %s has no TLS", host)


def _header(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    return next(
        (value for key, value in metadata if key == "authorization" and isinstance(value, str)), ""
    )


def _refusal(error: RequestError) -> Any:
    """A handler that reads nothing and refuses. To gRPC, every kind of call is a stream of
    messages.
    """

    async def refuse(requests: Any, context: grpc.aio.ServicerContext) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)

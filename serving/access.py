"""Who may call: tokens with roles, and no open door by accident."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from serving.calls import TOKEN_NAME, abort
from serving.config import ServerConfig
from serving.errors import PermissionDenied, RequestError, StartError, TokenMissing, TokenUnknown
from serving.telemetry import Telemetry
from serving.watched import Watched

log = logging.getLogger(__name__)

ROLES = ("infer", "control", "metrics")
HEALTH = "/grpc.health."
REFLECTION = "/grpc.reflection."
CONTROL = {
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
}
SCHEME = "bearer "


@dataclass(frozen=True)
class Caller:
    """Whose token a call carries, and what it may do."""

    name: str
    roles: frozenset[str]


class Tokens:
    """The callers of a token file. A line is ``NAME ROLE[,ROLE] SHA-256 of the token in hexadecimal``; # comments.

    The file holds no token itself: who reads it cannot call. ``wsss-serving token`` makes token and line.

    Raises:
        StartError: no such file, or a line of another form.
    """

    def __init__(self, path: Path) -> None:
        self._entries = Watched([path], lambda: _read_tokens(path))

    def caller(self, header: str) -> Caller:
        """Who an ``authorization`` header stands for.

        Raises:
            TokenMissing, TokenUnknown: no token, or one that is not in the file.
        """
        if not header.lower().startswith(SCHEME):
            raise TokenMissing("no token", "authorization: Bearer TOKEN")
        digest = _digest(header[len(SCHEME) :].strip())
        found = None
        # All of them, so that the time taken tells nothing.
        for known, caller in self._entries.value:
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise TokenUnknown("the token is not known here", "one of the server's token file")
        return found


def new_token(name: str, roles: Sequence[str]) -> tuple[str, str]:
    """A new token, and its line for the token file.

    Raises:
        StartError: a role that there is not, or a name with white space.
    """
    token = secrets.token_urlsafe(32)
    line = f"{name} {','.join(roles)} {_digest(token)}"
    _token_line(line)
    return token, line


def allow(caller: Caller, role: str) -> None:
    """Refuse a caller without the role.

    Raises:
        PermissionDenied: it has not.
    """
    if role not in caller.roles:
        roles = ", ".join(sorted(caller.roles))
        raise PermissionDenied(f"{caller.name!r} has the roles: {roles}", f"the role {role}", metadata={"role": role})


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without a token of the role that they need, before their message is read. Health is open to all."""

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
            return _refusal(handler, error)
        TOKEN_NAME.set(caller.name)
        return handler


def check_exposure(config: ServerConfig) -> None:
    """Refuse to open a door by accident.

    Raises:
        StartError: an address that others can reach, without TLS or tokens, and ``insecure`` does not ask for it;
            or one with model control without tokens.
    """
    access, host = config.access, config.network.host
    if access.insecure or _is_loopback(host):
        return
    if not access.cert and not access.tokens:
        raise StartError(
            f"{host} can be reached from other machines and anyone could call",
            "TLS, tokens, or the machine itself alone",
            "--tls-cert CERT --tls-key KEY, --tokens FILE, --host 127.0.0.1, or --insecure behind a gateway",
        )
    if config.models.control == "explicit" and not access.tokens:
        raise StartError(
            f"{host} can be reached from other machines and anyone could load and unload models",
            "tokens, of which some have the role control",
            "--tokens FILE",
        )
    if not access.cert:
        log.warning("tokens travel unencrypted: %s has no TLS", host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _header(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    return next((value for key, value in metadata if key == "authorization" and isinstance(value, str)), "")


def _refusal(handler: Any, error: RequestError) -> Any:
    """A handler of the same kind that reads nothing and refuses."""

    async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
        await abort(context, error)

    kind = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    return kind(refuse)


def _read_tokens(path: Path) -> list[tuple[str, Caller]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise StartError(f"{path} cannot be read: {error}", "a token file", "wsss-serving token --help") from error
    return [_token_line(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _token_line(line: str) -> tuple[str, Caller]:
    words = line.split()
    roles = words[1].split(",") if len(words) == 3 else []
    if (
        not roles
        or not set(roles) <= set(ROLES)
        or len(words[2]) != 64
        or set(words[2].lower()) - set("0123456789abcdef")
    ):
        raise StartError(
            f"a line of the token file has {len(words)} words or a role or hash of another form",
            f"NAME ROLE[,ROLE] SHA256, roles: {', '.join(ROLES)}",
            "wsss-serving token --name NAME --role infer",
        )
    return words[2].lower(), Caller(words[0], frozenset(roles))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()

"""Who may call: TLS and mutual TLS, tokens with roles, and no open door by accident.

Certificates and tokens are files that may change while the server runs; the next connection or call uses the new ones.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import ssl
import threading
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc

from serving.calls import abort
from serving.config import AccessConfig, ServerConfig
from serving.errors import PermissionDenied, RequestError, StartError, TokenMissing, TokenUnknown
from serving.telemetry import Telemetry

log = logging.getLogger(__name__)
T = TypeVar("T")

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


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


class Watched(Generic[T]):
    """What ``read`` makes of some files, made again when one of them changed; a bad change is logged and not taken.

    Raises:
        StartError: from the constructor, as ``read`` does.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._stamp = self._now()
        self._value = read()

    @property
    def value(self) -> T:
        """The newest sound value."""
        with self._lock:
            stamp = self._now()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._value = self._read()
                    log.info("read again: %s", ", ".join(path.name for path in self._paths))
                except StartError as error:
                    log.error("a change is not taken: %s", error)
            return self._value

    def _now(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


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
        CALLER.set(caller)
        return handler


class Certificates:
    """The server's certificate and key, and who may sign its clients' certificates.

    Raises:
        StartError: a file is missing, no PEM, or key and certificate do not belong together.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._config = config
        paths = [path for path in (config.cert, config.key, config.client_ca) if path]
        self._configuration = Watched(paths, self._read)
        self._given = self._configuration.value
        self._context = Watched(paths, self._read_context)

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC port."""
        mutual = self._config.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._given, self._changed, mutual)

    def context(self) -> ssl.SSLContext:
        """For a connection of the HTTP port, whose callers need no certificate: probes have none."""
        return self._context.value

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        newest = self._configuration.value
        if newest is self._given:
            return None
        self._given = newest
        return newest

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._read_context()
        cert, key, client_ca = (_bytes(path) for path in (self._config.cert, self._config.key, self._config.client_ca))
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)

    def _read_context(self) -> ssl.SSLContext:
        """Also the check of the files: gRPC itself says nothing of a bad one but refuses every caller."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        config = self._config
        if not config.cert or not config.key:
            raise StartError("TLS needs a certificate and its key", "both files", "--tls-cert CERT --tls-key KEY")
        try:
            # A key with a password would ask for it on the terminal.
            context.load_cert_chain(config.cert, config.key, password=lambda: "")
            if config.client_ca:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(config.client_ca)
        except (OSError, ValueError) as error:
            files = ", ".join(str(path) for path in (config.cert, config.key, config.client_ca) if path)
            raise StartError(
                f"the TLS files do not load: {error}", f"PEM files that belong together, without password: {files}"
            ) from error
        return context


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


def _bytes(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None

"""Commands of those who call a server: segment, health, token."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.errors import StartError

if TYPE_CHECKING:
    import grpc

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object or array instead of text.")]
Address = Annotated[str, typer.Option(envvar="WSSS_ADDRESS", help="Server to ask.")]
TlsCa = Annotated[
    Path | None,
    typer.Option(envvar="WSSS_TLS_CA", help="PEM file of who signed the server's certificate: speak TLS to it."),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(envvar="WSSS_TLS_CERT", help="PEM file of the own certificate, if the server asks for one."),
]
TlsKey = Annotated[Path | None, typer.Option(envvar="WSSS_TLS_KEY", help="PEM file of its key.")]
LOCAL = "127.0.0.1:8500"


class Role(StrEnum):
    """What a caller may do."""

    infer = "infer"
    control = "control"
    metrics = "metrics"


def segment(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")],
    target: Annotated[Path, typer.Argument(metavar="MASK", help="PNG to write, pixel value = label.")],
    model: Annotated[str, typer.Option(help="Model; may be left out if there is one segmenter only.")] = "",
    address: Address = LOCAL,
    token: Annotated[str, typer.Option(envvar="WSSS_TOKEN", help="Token, if the server asks for one.")] = "",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Segment one image through a running server."""
    from serving.client import Client

    with Client(address, timeout=timeout, token=token, tls=_credentials(tls_ca, tls_cert, tls_key)) as client:
        result = client.segment(image, model)
    target.write_bytes(result.reply.mask.png)
    found = {name: {"score": result.scores[name], "pixels": result.areas[name]} for name in result.present}
    if as_json:
        print(json.dumps({"mask": str(target), "found": found}))
    else:
        print(f"{target}: {', '.join(found) or 'background only'}")


def health(
    address: Address = LOCAL,
    model: Annotated[str, typer.Option(help="Model to ask for; empty asks for the whole server.")] = "",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Ask a server whether it serves; exit code 0 if so, else 1. For container health checks."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    request = health_pb2.HealthCheckRequest(service=f"models/{model}" if model else "")
    tls = _credentials(tls_ca, tls_cert, tls_key)
    with grpc.secure_channel(address, tls) if tls else grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
            state = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        except grpc.RpcError as error:
            state = error.code().name
    print(json.dumps({"address": address, "model": model, "status": state}) if as_json else state)
    raise typer.Exit(0 if state == "SERVING" else 1)


def token(
    name: Annotated[str, typer.Argument(help="Whose token it is; stands in the server's file and log.")],
    role: Annotated[list[Role], typer.Option(help="What it allows. May be repeated.")],
    file: Annotated[Path | None, typer.Option(help="The server's token file, to add the line to.")] = None,
    as_json: Json = False,
) -> None:
    """Make a token for a caller. It is shown once; the server's file holds its hash alone."""
    from serving.access import new_token

    secret, line = new_token(name, [str(entry) for entry in role])
    if file:
        try:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(f"{line}\n")
        except OSError as error:
            raise StartError(
                f"{file} cannot be written: {error.strerror}", "a file, or a new one in a folder"
            ) from error
    if as_json:
        print(json.dumps({"name": name, "roles": role, "token": secret, "line": line}))
        return
    print(f"token: {secret}")
    print(f"added to {file}" if file else f"line for the token file: {line}")


def _credentials(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials | None:
    from serving.client import credentials

    if not ca:
        if cert or key:
            raise StartError("--tls-cert or --tls-key without --tls-ca", "who signed the server's certificate")
        return None
    try:
        return credentials(ca, cert or "", key or "")
    except OSError as error:
        raise StartError(f"{error.filename} cannot be read: {error.strerror}", "a PEM file") from error

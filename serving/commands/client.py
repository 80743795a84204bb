"""Commands that call a server (segment, health) or serve its callers (token)."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.commands.options import (
    LOCAL,
    Address,
    BackgroundThreshold,
    Json,
    MinConfidence,
    ModelOption,
    Overlap,
    Oversize,
    ScoreThreshold,
    Tile,
    TlsCa,
    TlsCert,
    TlsKey,
    Token,
    names,
)
from serving.config import Limits
from serving.errors import ServingError, StartError, nearest

if TYPE_CHECKING:
    import grpc

ENDINGS = {"png": (".png",), "raw": (".raw", ".bin")}
ENCODINGS = ("png", "raw", "coco_rle", "polygons", "label_runs")


class Role(StrEnum):
    """A permission of a token."""

    infer = "infer"
    control = "control"
    metrics = "metrics"


def segment(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")],
    target: Annotated[
        Path, typer.Argument(metavar="MASK", help="File to write; in a PNG, pixel value = label.")
    ],
    model: ModelOption = "",
    classes: Annotated[
        str, typer.Option(help="Classes to keep, comma-separated; the others become background.")
    ] = "",
    tags: Annotated[
        str, typer.Option(help="Classes known to be in the image; no other can win a pixel.")
    ] = "",
    encoding: Annotated[
        str, typer.Option(help=f"Of MASK: {', '.join(ENCODINGS)}; the last three are JSON.")
    ] = "png",
    overlay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Picture to write: the mask over the image.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite MASK and FILE whatever they hold.")
    ] = False,
    oversize: Oversize = "",
    tile: Tile = False,
    overlap: Overlap = None,
    score_threshold: ScoreThreshold = None,
    background_threshold: BackgroundThreshold = None,
    min_confidence: MinConfidence = None,
    address: Address = LOCAL,
    token: Token = "",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Segment one image with a running server."""
    from serving.client import Client
    from serving.client.results import as_file

    if encoding not in ENCODINGS:
        raise ServingError(
            f"no encoding {encoding!r}", nearest(encoding, ENCODINGS), "--encoding png"
        )
    _check_ending(target, encoding)
    wishes: dict[str, Any] = {
        "classes": names(classes),
        "tags": names(tags),
        "encoding": encoding,
        "oversize": "tile" if tile else oversize,
        "tile_overlap": overlap,
        "score_threshold": score_threshold,
        "background_threshold": background_threshold,
        "confidence_threshold": min_confidence,
    }
    tls = client_credentials(tls_ca, tls_cert, tls_key)
    with _file_errors(), Client(address, timeout=timeout, token=token, tls=tls) as client:
        result = client.segment(image, model, **wishes)
        files = {target: as_file(result)}
        if overlay:
            card = client.get_model(result.model, version=result.version)
            picture = _overlay(image, overlay, result, card)
            if overlay.resolve() == target.resolve():
                raise ServingError(f"{target} is both MASK and --overlay", "two files")
            files[overlay] = picture
        _write(files, image, force)
    if not as_json:
        print(f"{target}: {', '.join(result.present) or 'background only'}")
        return
    scores, areas, boxes = result.scores, result.areas, result.boxes
    shares = {
        name: {"score": scores[name], "pixels": areas[name], "box": boxes.get(name)}
        for name in result.present
    }
    doubt = {} if result.doubt is None else {"doubt": result.doubt}
    print(json.dumps({"mask": str(target), "found": shares, **doubt}))


def health(
    address: Address = LOCAL,
    model: Annotated[str, typer.Option(help="Model to ask about; empty is the whole server.")] = "",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Tell whether a server serves, for container health checks.

    Prints the status, such as SERVING, NOT_SERVING or UNAVAILABLE. The exit code is 0 for SERVING,
    otherwise 1.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from serving.client.connection import open_channel

    request = health_pb2.HealthCheckRequest(service=f"models/{model}" if model else "")
    tls = client_credentials(tls_ca, tls_cert, tls_key)
    with open_channel(address, tls) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
            state = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        except grpc.RpcError as error:
            state = error.code().name
    print(json.dumps({"address": address, "model": model, "status": state}) if as_json else state)
    raise typer.Exit(0 if state == "SERVING" else 1)


def token(
    name: Annotated[str, typer.Argument(help="Name of the caller, for the server's file and log.")],
    role: Annotated[list[Role], typer.Option(help="Permission of the token. May be repeated.")],
    file: Annotated[
        Path | None, typer.Option(help="The server's token file, to which the line is added.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a token for a caller. It is shown once; the token file holds only its hash."""
    from serving.access.tokens import add_token, new_token

    secret, line = new_token(name, [str(entry) for entry in role])
    if file:
        try:
            add_token(file, line)
        except OSError as error:
            raise StartError(
                f"{file} cannot be written: {error.strerror}", "a file in an existing folder"
            ) from error
    if as_json:
        print(json.dumps({"name": name, "roles": role, "token": secret, "line": line}))
        return
    print(f"token: {secret}")
    print(f"added to {file}" if file else f"line for the token file: {line}")


def client_credentials(
    ca: Path | None, cert: Path | None, key: Path | None
) -> grpc.ChannelCredentials | None:
    """Credentials from the options of a command; None without ``--tls-ca``.

    Raises:
        StartError: options are missing, or a file cannot be read.
    """
    from serving.client import credentials

    if not ca:
        if cert or key:
            raise StartError(
                "--tls-cert or --tls-key without --tls-ca", "all three", "--tls-ca CA.PEM"
            )
        return None
    try:
        return credentials(ca, cert or "", key or "")
    except OSError as error:
        raise StartError(
            f"{error.filename} cannot be read: {error.strerror}", "a PEM file"
        ) from error


@contextmanager
def _file_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServingError(
            f"{error.filename}: {error.strerror}", "a file that you may read or write"
        ) from error


def _check_ending(target: Path, encoding: str) -> None:
    """Refuse a file name that promises another kind of contents."""
    from serving.images.decoding import EXTENSIONS

    right = ENDINGS.get(encoding, (".json",))
    others = {*EXTENSIONS, *(ending for endings in ENDINGS.values() for ending in endings), ".json"}
    if target.suffix.lower() in others - set(right):
        raise ServingError(
            f"{target} would hold a mask as {encoding}",
            f"a name that ends in {' or '.join(right)}",
            f"{target.with_suffix(right[0])}",
        )


def _write(files: dict[Path, bytes], image: Path, force: bool) -> None:
    """Write all of the files, or none if one of them must not be written."""
    from serving.files import write_atomic
    from serving.outputs import check_file

    hint = "another name, or --force to overwrite it"
    for path, data in files.items():

        def may_go(there: Path, data: bytes = data) -> bool:
            return force or there.read_bytes() == data

        check_file(path, [image], may_go, hint=hint)
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    for path, data in files.items():
        write_atomic(path, data)


def _overlay(image: Path, target: Path, result: Any, card: Any) -> bytes:
    """The picture, in the format of the file name's ending."""
    from PIL import Image

    from serving.images import masks
    from serving.images.decoding import decode

    pixels = decode(
        image.read_bytes(), Limits(max_bytes=sys.maxsize, max_pixels=sys.maxsize)
    ).pixels
    palette = [(label.red, label.green, label.blue) for label in card.labels]
    kind = Image.registered_extensions().get(target.suffix.lower(), "")
    buffer = io.BytesIO()
    try:
        Image.fromarray(masks.overlay(pixels, result.mask, palette)).save(buffer, kind)
    except (KeyError, ValueError, OSError) as error:
        raise ServingError(
            f"{target} is not the name of a picture", "a name that ends in .jpg or .png"
        ) from error
    return buffer.getvalue()

"""The command that puts masks into annotation tools as first drafts."""

from __future__ import annotations

import logging
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.commands.client import LOCAL, Address, TlsCa, TlsCert, TlsKey, client_credentials
from serving.commands.options import DEFAULT, MaxBytes
from serving.errors import ConfigError, StartError

MODULE = "serving.annotation.cvat"


class Tool(StrEnum):
    """An annotation tool."""

    labelstudio = "labelstudio"
    cvat = "cvat"


def annotate(
    context: typer.Context,
    tool: Annotated[
        Tool,
        typer.Option(
            "--for",
            help="labelstudio: be the backend of projects. cvat: print the command for cvat-cli.",
        ),
    ] = Tool.labelstudio,
    address: Address = LOCAL,
    repository: Annotated[
        Path | None,
        typer.Option(help="Folder of models to serve here, instead of a server at --address."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model; optional if there is only one segmenter.")
    ] = "",
    classes: Annotated[
        str, typer.Option(help="Classes to draw, comma-separated; by default all of the model.")
    ] = "",
    simplify: Annotated[
        float,
        typer.Option(min=0, help="Pixels that a polygon may stray from the mask; 0 is exact."),
    ] = 1.0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the backend; 0 takes a free one.")
    ] = 9090,
    images_root: Annotated[
        Path | None,
        typer.Option(help="Folder that tasks may name images of; by default none."),
    ] = None,
    label_studio_url: Annotated[
        str, typer.Option(help="Label Studio itself, to read images that were uploaded to it.")
    ] = "",
    label_studio_token: Annotated[
        str,
        typer.Option(envvar="LABEL_STUDIO_API_KEY", help="Access token for --label-studio-url."),
    ] = "",
    image_url: Annotated[
        list[str] | None,
        typer.Option(help="Beginning of other addresses that tasks may name. May be repeated."),
    ] = None,
    login: Annotated[
        str,
        typer.Option(
            envvar="WSSS_LOGIN",
            metavar="USER:PASSWORD",
            help="What Label Studio must send (Basic authentication).",
        ),
    ] = "",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow other machines without a login.")
    ] = False,
    max_bytes: MaxBytes = DEFAULT.limits.max_bytes,
    token: Annotated[
        str, typer.Option(envvar="WSSS_TOKEN", help="Token, if the server needs one.")
    ] = "",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an image.")] = 60.0,
) -> None:
    """Give annotation tools a model's masks as first drafts.

    For Label Studio this command is the backend that projects connect to, until Ctrl-C. For CVAT
    it prints the command that CVAT's own client needs.
    """
    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    if tool is Tool.cvat:
        print(_cvat_command(address, model, names, simplify, tls_ca))
        return
    _check_libraries()
    if repository and _is_typed(context, "address"):
        raise ConfigError("--repository and --address", "one of them")

    from serving.annotation.images import Images
    from serving.annotation.labelstudio import Wish
    from serving.annotation.running import Listening, run
    from serving.telemetry import logs

    logs.configure("text", "info")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    images = Images(images_root, label_studio_url, label_studio_token, image_url or (), max_bytes)
    tls = client_credentials(tls_ca, tls_cert, tls_key)
    run(
        Listening(host, port, insecure),
        Wish(model, names, simplify, login),
        images,
        {"address": address, "token": token, "tls": tls, "timeout": timeout},
        repository,
    )


def _is_typed(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _check_libraries() -> None:
    import importlib.util

    if missing := [n for n in ("starlette", "uvicorn") if importlib.util.find_spec(n) is None]:
        raise StartError(
            f"annotate needs {' and '.join(missing)}", "the extra http", "pip install 'wsss[http]'"
        )


def _cvat_command(
    address: str, model: str, classes: tuple[str, ...], simplify: float, tls_ca: Path | None
) -> str:
    parameters: dict[str, Any] = {"address": address, "model": model, "classes": ",".join(classes)}
    parts = [f"{key}=str:{value}" for key, value in parameters.items() if value]
    parts += [f"simplify=float:{simplify:g}"] if simplify != 1 else []
    parts += [f"tls_ca=str:{tls_ca}"] if tls_ca else []
    words = [word for part in parts for word in ("-p", part)]
    command = ["cvat-cli", "task", "auto-annotate", "TASK", "--function-module", MODULE, *words]
    return shlex.join(command)

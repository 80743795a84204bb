"""The command that puts masks into annotation tools as first drafts."""

from __future__ import annotations

import logging
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.commands.client import client_credentials
from serving.commands.options import (
    DEFAULT,
    LOCAL,
    Address,
    MaxBytes,
    ModelOption,
    TlsCa,
    TlsCert,
    TlsKey,
    Token,
    names,
)
from serving.errors import ConfigError, StartError

MODULE = "serving.annotation.cvat"
# Options with a meaning for CVAT.
FOR_CVAT = ("tool", "address", "model", "classes", "simplify", "tls_ca", "timeout")
# Options about a server elsewhere.
OF_SERVER = ("address", "token", "tls_ca", "tls_cert", "tls_key")


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
    model: ModelOption = "",
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
    token: Token = "",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an image.")] = 60.0,
) -> None:
    """Give annotation tools a model's masks as first drafts.

    For Label Studio this command is the backend that projects connect to, until Ctrl-C. For CVAT
    it prints the command that CVAT's own client needs.
    """
    options = [name for name in context.params if _is_typed(context, name)]
    if tool is Tool.cvat:
        if others := [name for name in options if name not in FOR_CVAT]:
            raise ConfigError(
                f"--for cvat has no {_option(others[0])}",
                f"{', '.join(map(_option, FOR_CVAT[1:]))}, of a running server",
                "a token in the variable WSSS_TOKEN, when cvat-cli runs",
            )
        print(_cvat_command(context.params))
        return
    _check_libraries()
    if repository and (others := [name for name in options if name in OF_SERVER]):
        raise ConfigError(f"--repository and {_option(others[0])}", "one of them")

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
        Wish(model, names(classes), simplify, login),
        images,
        {"address": address, "token": token, "tls": tls, "timeout": timeout},
        repository,
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_typed(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _check_libraries() -> None:
    import importlib.util

    if missing := [n for n in ("starlette", "uvicorn") if importlib.util.find_spec(n) is None]:
        raise StartError(
            f"annotate needs {' and '.join(missing)}", "the extra http", "pip install 'wsss[http]'"
        )


def _cvat_command(values: dict[str, Any]) -> str:
    """The command for ``cvat-cli``, without what is the function's own default."""
    parameters: list[str] = []
    for name, kind, default in (
        ("address", "str", None),
        ("model", "str", ""),
        ("classes", "str", ""),
        ("simplify", "float", 1.0),
        ("timeout", "float", 60.0),
        ("tls_ca", "str", None),
    ):
        if values[name] is not None and values[name] != default:
            parameters += ["-p", f"{name}={kind}:{values[name]}"]
    command = ["cvat-cli", "task", "auto-annotate", "TASK", "--function-module", MODULE]
    return shlex.join([*command, *parameters])

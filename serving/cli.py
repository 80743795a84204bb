"""``wsss-serving``: parse, call one function, print. Commands import heavy modules inside their
body.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from serving.commands import bench, client, label
from serving.commands.options import DEFAULT, EngineOption, Json, MaxBytes, MaxPixels, Repository
from serving.config import ServerConfig
from serving.errors import ServingError
from serving.settings import read_config, set_value, set_values

app = typer.Typer(
    name="wsss-serving",
    help="Serve exported models over gRPC, or label a folder of images with them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Options of ``serve`` that are short for a setting.
SETTINGS = {
    "repository": "repository",
    "host": "network.host",
    "port": "network.port",
    "http_port": "network.http_port",
    "tls_cert": "access.cert",
    "tls_key": "access.key",
    "tls_client_ca": "access.client_ca",
    "tokens": "access.tokens",
    "insecure": "access.insecure",
    "log_format": "telemetry.log_format",
    "log_level": "telemetry.log_level",
    "versions": "models.versions",
    "control": "models.control",
    "poll_seconds": "models.poll_seconds",
    "strict": "models.strict",
    "workers": "schedule.workers",
    "threads": "schedule.threads",
    "queue": "schedule.queue",
    "engine": "engine.name",
    "grace": "shutdown.grace",
    "lame_duck": "shutdown.lame_duck",
    "max_pixels": "limits.max_pixels",
    "max_bytes": "limits.max_bytes",
}


@app.command(epilog="Example: wsss-serving serve --repository exported/ --port 8500")
def serve(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; the options here overrule it.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Change any setting of the file. May be repeated.",
        ),
    ] = None,
    repository: Repository = DEFAULT.repository,
    host: Annotated[
        str, typer.Option(help="Address to listen on; * is every interface.")
    ] = DEFAULT.network.host,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")
    ] = DEFAULT.network.port,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port of /metrics, /healthz and /readyz; none without it."
        ),
    ] = DEFAULT.network.http_port,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM file of the server's certificate; both ports use it.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="PEM file of who signs the certificates that callers must show."),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="File of callers, their roles and hashes of their tokens.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen where others reach, without TLS and tokens.")
    ] = False,
    log_format: Annotated[
        str, typer.Option(help="text, or json for one object a line.")
    ] = DEFAULT.telemetry.log_format,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning or error.")
    ] = DEFAULT.telemetry.log_level,
    versions: Annotated[
        str, typer.Option(help="Versions to serve: latest, latest:N, all, or numbers as in 1,3.")
    ] = DEFAULT.models.versions,
    all_versions: Annotated[
        bool, typer.Option("--all-versions", help="The same as --versions all.")
    ] = False,
    control: Annotated[
        str,
        typer.Option(
            help="What changes the models later: none, poll (the repository), explicit (callers)."
        ),
    ] = DEFAULT.models.control,
    poll_seconds: Annotated[
        float, typer.Option(min=0.05, help="Seconds between two looks at the repository.")
    ] = DEFAULT.models.poll_seconds,
    strict: Annotated[
        bool, typer.Option("--strict", help="Do not start unless every model is sound.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=0, help="Runs at once of each model; 0 chooses.")
    ] = DEFAULT.schedule.workers,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of each run; 0 chooses.")
    ] = DEFAULT.schedule.threads,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests of one model waiting or running; more are refused.")
    ] = DEFAULT.schedule.queue,
    engine: EngineOption = DEFAULT.engine.name,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for accepted requests to finish in.")
    ] = DEFAULT.shutdown.grace,
    lame_duck: Annotated[
        float, typer.Option(min=0, help="Seconds between NOT_SERVING and the closed port.")
    ] = DEFAULT.shutdown.lame_duck,
    max_pixels: MaxPixels = DEFAULT.limits.max_pixels,
    max_bytes: MaxBytes = DEFAULT.limits.max_bytes,
) -> None:
    """Serve the models of a repository over gRPC until SIGTERM or Ctrl-C."""
    import asyncio

    from serving.server import Server
    from serving.server import serve as run
    from serving.telemetry import logs

    settings = _server_config(context, config, set_ or [])
    logs.configure(settings.telemetry.log_format, settings.telemetry.log_level)

    def ready(server: Server) -> None:
        print(
            f"serving {', '.join(server.names) or 'no model yet'} on {server.address}", flush=True
        )

    asyncio.run(run(settings, ready))


@app.command(epilog="Example: wsss-serving models --repository exported/ --json")
def models(repository: Repository = Path("exported"), as_json: Json = False) -> None:
    """List the models of a repository, with every card and checksum verified."""
    from serving.repository.versions import read_repository, verify

    cards = [
        card for versions in read_repository(repository).values() for card in versions.values()
    ]
    for card in cards:
        verify(card)
    if as_json:
        fields = (
            "name",
            "version",
            "kind",
            "classes",
            "graph_sha256",
            "protocol",
            "supervision",
            "metrics",
        )
        print(json.dumps([{field: getattr(card, field) for field in fields} for card in cards]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "version", "kind", "classes", "sha256", "method", "backbone")
    for card in cards:
        method, backbone = (str(card.source.get(key) or "") for key in ("method", "backbone"))
        classes = ", ".join(card.classes[:6]) + (
            f" and {len(card.classes) - 6} more" if len(card.classes) > 6 else ""
        )
        table.add_row(
            card.name,
            str(card.version),
            card.kind,
            classes,
            card.graph_sha256[:12],
            method,
            backbone,
        )
    Console().print(table)


app.command(epilog="Example: wsss-serving label photos/ masks/ --model pets --format coco")(
    label.label
)
app.command(
    epilog="Example: wsss-serving bench --repository exported/ --model pets --images photos/"
)(bench.bench)
app.command(epilog="Example: wsss-serving segment photo.jpg mask.png --overlay look.jpg")(
    client.segment
)
app.command(epilog="Example: wsss-serving health --address 127.0.0.1:8500 --model pets")(
    client.health
)
app.command(epilog="Example: wsss-serving token ci --role infer --file tokens")(client.token)


def _server_config(context: typer.Context, file: Path | None, texts: list[str]) -> ServerConfig:
    """The settings file, overridden by the options, overridden by ``--set``."""
    config = read_config(file) if file else DEFAULT
    for option, setting in SETTINGS.items():
        source = context.get_parameter_source(option)
        if source and source.name != "DEFAULT":
            config = set_value(config, setting, context.params[option])
    if context.params["all_versions"]:
        config = set_value(config, "models.versions", "all")
    return set_values(config, texts)


def main() -> None:
    """Run the command line; user errors are printed without a traceback."""
    # Pillow warns about damaged metadata in pictures that it reads all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        app()
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

"""``wsss-serving``: parse, call one function, print. Commands import heavy modules inside their
body.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.commands import annotate, bench, client, label
from serving.commands.options import (
    DEFAULT,
    EngineOption,
    Json,
    MaxBytes,
    MaxPixels,
    Repository,
    examples,
)
from serving.commands.progress import tell
from serving.config import ServerConfig
from serving.errors import ServingError
from serving.settings import read_config, set_value, set_values

app = typer.Typer(
    name="wsss-serving",
    help="Serve exported models over gRPC, or label folders of images with them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

KEYS = ("name", "version", "kind", "classes", "graph_sha256", "protocol", "supervision", "metrics")
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
    "capture": "capture.folder",
    "capture_doubt": "capture.doubt",
    "capture_mb": "capture.max_mb",
    "capture_per_minute": "capture.per_minute",
}


@app.command(
    epilog=examples(
        "wsss-serving serve --repository exported/",
        "wsss-serving serve --config serving.toml --set schedule.queue=128",
        "wsss-serving serve --capture doubtful/ --capture-doubt 0.05",
        "wsss-serving serve --host '*' --tls-cert server.crt --tls-key server.key --tokens tokens",
    )
)
def serve(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; options override it.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Override any setting. May be repeated."
        ),
    ] = None,
    repository: Repository = DEFAULT.repository,
    host: Annotated[
        str, typer.Option(help="Address to listen on; * is all interfaces.")
    ] = DEFAULT.network.host,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of gRPC; 0 takes a free one.")
    ] = DEFAULT.network.port,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port of the HTTP API, /metrics and probes; closed by default."
        ),
    ] = DEFAULT.network.http_port,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM file of the server's certificate, for both ports.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the authority that signs client certificates.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="Token file: callers, roles and token hashes.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow other machines without TLS and tokens.")
    ] = False,
    log_format: Annotated[
        str, typer.Option(help="text, or json for one object per line.")
    ] = DEFAULT.telemetry.log_format,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning or error.")
    ] = DEFAULT.telemetry.log_level,
    versions: Annotated[
        str, typer.Option(help="Versions to serve: latest, latest:N, all, or numbers such as 1,3.")
    ] = DEFAULT.models.versions,
    all_versions: Annotated[
        bool, typer.Option("--all-versions", help="Short for --versions all.")
    ] = False,
    control: Annotated[
        str,
        typer.Option(
            help="What changes the models later: none, poll (the repository) or explicit (calls)."
        ),
    ] = DEFAULT.models.control,
    poll_seconds: Annotated[
        float, typer.Option(min=0.05, help="Seconds between two looks at the repository.")
    ] = DEFAULT.models.poll_seconds,
    strict: Annotated[
        bool, typer.Option("--strict", help="Start only if every model is sound.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=0, help="Parallel runs per model; 0 is automatic.")
    ] = DEFAULT.schedule.workers,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads per run; 0 is automatic.")
    ] = DEFAULT.schedule.threads,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests per model that may wait or run; more are refused.")
    ] = DEFAULT.schedule.queue,
    engine: EngineOption = DEFAULT.engine.name,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for accepted requests to finish at the end.")
    ] = DEFAULT.shutdown.grace,
    lame_duck: Annotated[
        float, typer.Option(min=0, help="Seconds from NOT_SERVING to the refusal of new calls.")
    ] = DEFAULT.shutdown.lame_duck,
    max_pixels: MaxPixels = DEFAULT.limits.max_pixels,
    max_bytes: MaxBytes = DEFAULT.limits.max_bytes,
    capture: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep doubtful images that callers send, for wsss-trainer ask; off by default.",
        ),
    ] = DEFAULT.capture.folder,
    capture_doubt: Annotated[
        float, typer.Option(min=0, max=1, help="Keep images with a doubt above this.")
    ] = DEFAULT.capture.doubt,
    capture_mb: Annotated[
        int, typer.Option(min=1, help="Megabytes of DIR; then no more images are kept.")
    ] = DEFAULT.capture.max_mb,
    capture_per_minute: Annotated[
        int, typer.Option(min=1, help="Images that are kept in any minute, at most.")
    ] = DEFAULT.capture.per_minute,
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


@app.command(epilog=examples("wsss-serving models --repository exported/ --json"))
def models(repository: Repository = Path("exported"), as_json: Json = False) -> None:
    """List the models of a repository, with every card and checksum verified."""
    from serving.repository.versions import read_repository, verify

    models = read_repository(repository).values()
    cards = [card for versions in models for card in versions.values()]
    for card in cards:
        verify(card)
    if as_json:
        print(json.dumps([{field: getattr(card, field) for field in KEYS} for card in cards]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "version", "kind", "classes", "sha256", "method", "backbone")
    for card in cards:
        method, backbone = (str(card.source.get(key) or "") for key in ("method", "backbone"))
        more = f" and {len(card.classes) - 6} more" if len(card.classes) > 6 else ""
        classes = ", ".join(card.classes[:6]) + more
        row = (card.name, str(card.version), card.kind, classes, card.graph_sha256[:12])
        table.add_row(*row, method, backbone)
    Console().print(table)


COMMANDS: dict[Any, tuple[str, ...]] = {
    label.label: (
        "wsss-serving label photos/ masks/ --repository exported/",
        "wsss-serving label photos/ coco/ --model pets --format coco --polygons",
    ),
    bench.bench: (
        "wsss-serving bench --repository exported/ --images photos/",
        "wsss-serving bench --model pets --only all-callers,tail --rounds 2",
    ),
    client.segment: (
        "wsss-serving segment photo.jpg mask.png --overlay look.jpg",
        "wsss-serving segment photo.jpg mask.json --encoding polygons --tags cat,dog",
    ),
    annotate.annotate: (
        "wsss-serving annotate --for labelstudio --model photos --images-root photos/",
        "wsss-serving annotate --for cvat --model photos",
    ),
    client.health: ("wsss-serving health --address 127.0.0.1:8500 --model pets",),
    client.token: (
        "wsss-serving token ci --role infer --file tokens",
        "wsss-serving token admin --role infer --role control --file tokens",
    ),
}
for command, lines in COMMANDS.items():
    app.command(epilog=examples(*lines))(command)


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
        tell(f"error: {error}", "error", text=str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

"""``wsss-serving bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.commands.options import DEFAULT, EngineOption, Json, Repository, names
from serving.commands.progress import progress_bar


def bench(
    repository: Repository = DEFAULT.repository,
    model: Annotated[str, typer.Option(help="Model; optional if there is only one.")] = "",
    images: Annotated[
        Path | None, typer.Option(help="Folder of JPEGs to send; synthetic ones by default.")
    ] = None,
    tensors: Annotated[
        bool,
        typer.Option("--tensors", help="Send tensors by the Open Inference Protocol, not images."),
    ] = False,
    side: Annotated[int, typer.Option(min=1, max=4096, help="Length of their free axes.")] = 256,
    address: Annotated[
        str,
        typer.Option(help="A running server with the same repository; by default one is started."),
    ] = "",
    engine: EngineOption = DEFAULT.engine.name,
    callers: Annotated[int, typer.Option(min=1, max=256, help="Parallel callers.")] = 4,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="Rounds per figure, which is their median.")
    ] = 4,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="Seconds of each load in a round.")
    ] = 3.0,
    count: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Maximum of requests per load.")
    ] = 20_000,
    only: Annotated[
        str, typer.Option(help="Figures to measure, comma-separated: all-callers,steady-wait.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Measure a server against the bare engine on this machine.

    The server it starts listens on this machine only and ends with it. With the defaults a
    measurement takes about a minute and a half.
    """
    from serving.bench import bench as run
    from serving.bench.setting import BenchConfig
    from serving.settings import changed

    config = BenchConfig(
        repository,
        model,
        images,
        tensors,
        side,
        address,
        callers,
        rounds,
        seconds,
        count,
        names(only),
        changed(DEFAULT.engine, {"name": engine}),
    )
    with progress_bar("measuring", images=False) as progress:
        results = run(config, progress)
    if as_json:
        print(json.dumps(results))
    else:
        print_table(results)


def print_table(results: dict[str, Any]) -> None:
    """Print the results of :func:`serving.bench.bench` as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "what", "median", "lowest to highest", "aim", "")
    for key, figure in results["figures"].items():
        met = {True: "met", False: "missed", None: ""}[figure["met"]]
        table.add_row(
            key,
            figure["text"],
            f"{figure['value']:g}",
            f"{figure['low']:g} to {figure['high']:g}",
            figure["aim"],
            met,
        )
    console = Console()
    console.print(table)
    console.print(
        ", ".join(
            f"{name.replace('_', ' ')} {value:g}" for name, value in results["measured"].items()
        )
    )
    model, engine = results["model"], results["engine"]
    console.print(
        f"{model} on {engine}, {results['cpus']} processors, {results['callers']} callers"
    )

"""``wsss-serving bench``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.commands.options import DEFAULT, EngineOption, Json, Repository


def bench(
    repository: Repository = DEFAULT.repository,
    model: Annotated[str, typer.Option(help="Model; may be left out if there is one only.")] = "",
    images: Annotated[
        Path | None, typer.Option(help="Folder of JPEGs to send; made ones without.")
    ] = None,
    tensors: Annotated[
        bool,
        typer.Option("--tensors", help="Send tensors by the Open Inference Protocol, not images."),
    ] = False,
    side: Annotated[int, typer.Option(min=1, max=4096, help="Of free axes of such tensors.")] = 256,
    address: Annotated[
        str,
        typer.Option(
            help="Server that runs already, with the same repository; starts its own without."
        ),
    ] = "",
    engine: EngineOption = DEFAULT.engine.name,
    callers: Annotated[int, typer.Option(min=1, max=256, help="Callers at once.")] = 4,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="Of each measurement; the medians count.")
    ] = 4,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="Of each load in a round.")
    ] = 3.0,
    count: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Requests of one load at most.")
    ] = 20_000,
    only: Annotated[
        str, typer.Option(help="Figures to measure, with commas: all-callers,steady-wait.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Measure a server against the bare engine on this machine, and print the ratios.

    Servers that it starts listen on the machine itself and end with it. With the defaults it takes
    about a minute and a half.
    """
    from serving.bench import bench as run
    from serving.bench.setting import BenchConfig
    from serving.settings import changed

    keys = tuple(key.strip() for key in only.split(",") if key.strip())
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
        keys,
        changed(DEFAULT.engine, {"name": engine}),
    )
    with shown() as progress:
        results = run(config, progress)
    if as_json:
        print(json.dumps(results))
    else:
        print_table(results)


@contextmanager
def shown() -> Iterator[Callable[[int, int], None]]:
    """A bar of progress on standard error; call it with the loads that are over and all there
    are.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda count, total: progress.update(task, completed=count, total=total)


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

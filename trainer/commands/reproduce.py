"""The command that repeats a paper's table: ``wsss-trainer reproduce``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.commands.data import Json, LogOption
from trainer.commands.fit import options_of, parse
from trainer.errors import ConfigError
from trainer.progress import Log, say

if TYPE_CHECKING:
    from trainer.reproduce.tables import Row, Table
    from trainer.reproduce.work import Cell, Job, Order


def reproduce(
    context: typer.Context,
    table: Annotated[
        str | None, typer.Argument(help="Name of a table; --list shows them all.")
    ] = None,
    data: Annotated[Path | None, typer.Argument(help="Data folder, as of fit.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the tables, or the rows of one.")] = (
        False
    ),
    only: Annotated[
        list[str] | None, typer.Option(help="Only this row; may be repeated.", metavar="ROW")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands and their stages; train nothing.")
    ] = False,
    small: Annotated[
        bool,
        typer.Option(
            "--small", help="The same rows with the recipe for small networks and data sets."
        ),
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Several seeds a row, as of fit.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Folder for one run a row and the page reproduce.md. Default: runs/TABLE, with"
                " --small runs/TABLE-small."
            )
        ),
    ] = None,
    json_: Json = False,
    log: LogOption = Log.text,
) -> None:
    """Train the rows of a paper's table and set ours beside the published values.

    Each row is an ordinary run. The same command continues where it stopped, and rows share the
    stages that are the same for them. Everything after -- goes to every row's fit.

    \b
    Examples:
      wsss-trainer reproduce --list
      wsss-trainer reproduce mixup-cam-1 VOC2012/ --dry-run
      wsss-trainer reproduce mixup-cam-1 VOC2012/ --only cam --only mixup-cam
      wsss-trainer reproduce vwe-1 photos/ --small --seeds 0,1,2 -- --epochs 3
    """
    from trainer.reproduce.tables import read_table

    if list_:
        show_tables(table, json_)
        return
    if table is None or data is None:
        raise ConfigError(
            "reproduce without a table" if table is None else "reproduce without data",
            "TABLE and DATA",
            "wsss-trainer reproduce --list shows the tables",
        )
    entry = read_table(table)
    folder = out or Path("runs") / (f"{table}-small" if small else table)
    further = [*context.args, *(("--seeds", seeds) if seeds else ())]
    rows = entry.select(tuple(only or ()))
    jobs = [job_of(entry, row, data, folder, small, further, log) for row in rows]
    for reason in {job.reason: None for job in jobs if job.reason}:
        say(reason)
    if dry_run:
        show_commands(jobs, json_)
    else:
        work(entry, jobs, data, folder, small, json_)


def job_of(
    table: Table,
    row: Row,
    data: Path,
    folder: Path,
    is_small: bool,
    further: Sequence[str],
    log: Log = Log.text,
) -> Job:
    """A row as a command, parsed as if it had been typed."""
    from trainer.reproduce.work import Job
    from trainer.seed_folder import parse_seeds

    arguments = [str(data), "--run", str(folder / row.folder), *table.arguments(row, is_small)]
    arguments += further
    params = parse(arguments, log)
    options, reason = options_of(params)
    text = params["seeds"]
    seeds = parse_seeds(text) if text else None
    return Job(row, options, seeds, shlex.join(["wsss-trainer", "fit", *arguments]), reason)


def work(
    table: Table, jobs: Sequence[Job], data: Path, folder: Path, is_small: bool, as_json: bool
) -> None:
    """Train and measure all rows; the page is written after each."""
    from trainer.outputs import check_folder
    from trainer.reproduce.page import holds_table, write_page
    from trainer.reproduce.work import carry_out, cells, orders

    check_folder(folder, holds_table, [data], "--out")

    def write() -> tuple[list[Cell], list[Order], Path]:
        values = cells(table, jobs)
        agreement = orders(table, values)
        return values, agreement, write_page(folder, table, jobs, values, agreement, is_small)

    # First, because the page marks the folder as ours.
    values, agreement, path = write()
    for job in jobs:
        carry_out(jobs, job)
        values, agreement, path = write()
    say(f"page: {path}")
    if as_json:
        print(json.dumps(_report(table, jobs, values, agreement, path), indent=1))
    else:
        _print(table, values, agreement)


def show_tables(name: str | None, as_json: bool) -> None:
    """Print all tables, or the rows of one."""
    from rich.console import Console
    from rich.table import Table as Grid

    from trainer.reproduce.page import number
    from trainer.reproduce.tables import read_table, table_names

    names = table_names() if name is None else [name]
    if as_json:
        print(json.dumps([_description(read_table(one)) for one in names], indent=1))
        return
    grid = Grid("table", "in the paper", "what") if name is None else Grid("row", "published")
    for table in map(read_table, names):
        if name is None:
            grid.add_row(table.name, f"{table.paper.split(',')[0]}, {table.place}", table.title)
            continue
        for row in table.rows:
            values = [f"{figure} {number(value)}" for figure, value in row.published.items()]
            grid.add_row(row.folder, ", ".join(values) or "-")
    Console().print(grid)


def show_commands(jobs: Sequence[Job], as_json: bool) -> None:
    """Print the command of every row, and the stages that it has or what it lacks.

    Raises:
        ConfigError: a row whose options cannot be.
    """
    rows = [
        {
            "row": job.row.folder,
            "command": job.command,
            "stages": [] if job.lack else job.stages(),
            "lacks": job.lack,
        }
        for job in jobs
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"# {row['row']}: {row['lacks'] or ', '.join(row['stages'])}\n{row['command']}")


def _print(table: Table, values: Sequence[Cell], agreement: Sequence[Order]) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    from trainer.reproduce.page import HEADS, lines_of, order_line

    grid = Grid(*HEADS, title=f"{table.name}: {table.title}")
    for line in lines_of(values):
        grid.add_row(*line)
    console = Console()
    console.print(grid)
    for text in (f"published: {table.protocol}", table.note, *map(order_line, agreement)):
        if text:
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def _description(table: Table) -> dict[str, Any]:
    return {
        "table": table.name,
        "paper": table.paper,
        "place": table.place,
        "title": table.title,
        "protocol": table.protocol,
        "note": table.note,
        "rows": [{"row": row.folder, "published": dict(row.published)} for row in table.rows],
    }


def _report(
    table: Table,
    jobs: Sequence[Job],
    values: Sequence[Cell],
    agreement: Sequence[Order],
    path: Path,
) -> dict[str, Any]:
    return {
        **_description(table),
        "rows": [cell.report() for cell in values],
        "order": [order.report() for order in agreement],
        "runs": {job.row.folder: str(job.options.run) for job in jobs},
        "page": str(path),
    }

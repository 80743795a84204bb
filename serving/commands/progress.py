"""What long commands say on standard error: a bar in a terminal, now and then a line elsewhere, or
JSON lines.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer

LINE_EVERY = 30.0
"""Seconds between two lines of progress where no bar can be drawn."""


class Log(StrEnum):
    """The form of what is said."""

    text = "text"
    json = "json"


_log = Log.text


def set_log(log: Log) -> Log:
    """Choose the form of everything that is said from now on."""
    global _log
    _log = log
    return log


LogOption = Annotated[
    Log,
    typer.Option(
        "--log",
        callback=set_log,
        help="What stderr gets: text, or json for one JSON object a line.",
    ),
]


def tell(line: str, event: str, **facts: Any) -> None:
    """Print a line, or the facts of the same event as a JSON object.

    Args:
        line: for people; nothing is printed for them where it is empty.
        event: what happened: ``stage``, ``progress``, ``message`` or ``error``.
        facts: the other fields of the object.
    """
    if _log is Log.json:
        line = json.dumps({"event": event, **facts})
    if line:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(stage: str, images: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, or a line every half minute where that is no terminal.

    Call the value with the number of finished steps and of all; ``images`` says that a step is an
    image.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if _log is Log.json or not console.is_terminal:
        tell("", "stage", stage=stage, state="started")
        yield progress_lines(stage, images)
        tell("", "stage", stage=stage, state="done")
        return
    columns = (TextColumn(stage), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda count, total: progress.update(task, completed=count, total=total)


def progress_lines(stage: str, images: bool = True) -> Callable[[int, int], None]:
    """A line on standard error every ``LINE_EVERY`` seconds, for log files and supervisors."""
    start = line = time.monotonic()

    def report(count: int, total: int) -> None:
        nonlocal line
        now = time.monotonic()
        if not count or now - line < LINE_EVERY:
            return
        line = now
        speed = count / (now - start)
        left = (total - count) / speed
        rate = f"{speed:.3g} images/s, " if images else ""
        tell(
            f"{stage} {count}/{total} ({count / total:.0%}), {rate}about {left:.0f} s left",
            "progress",
            stage=stage,
            step=count,
            steps=total,
            share=round(count / total, 4),
            images_per_second=float(f"{speed:.4g}") if images else None,
            seconds_left=round(left, 1),
            losses={},
        )

    return report

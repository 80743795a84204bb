"""Options, help texts and the progress bar that several commands share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from serving.config import ServerConfig

DEFAULT = ServerConfig()
LINE_EVERY = 30.0
"""Seconds between two lines of progress where no bar can be drawn."""

Repository = Annotated[
    Path, typer.Option(help="Folder of models: NAME/VERSION/model.json and a graph.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
MaxPixels = Annotated[
    int, typer.Option(min=1, help="Refuse images with more pixels, before decoding.")
]
MaxBytes = Annotated[int, typer.Option(min=1, help="Refuse image files with more bytes.")]
Oversize = Annotated[
    str,
    typer.Option(help="Images above the model's limits: scale, tile, or auto (tile the largest)."),
]
Tile = Annotated[
    bool, typer.Option("--tile", help="Short for --oversize tile: full resolution without seams.")
]
Overlap = Annotated[
    float | None,
    typer.Option(
        min=0, max=0.5, help="Share of a tile that overlaps the next one; 0.25 by default."
    ),
]
ScoreThreshold = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Score from which a class counts as present; by default the model's."
    ),
]
BackgroundThreshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="CAM models: activation from which a pixel is foreground; by default the model's.",
    ),
]
MinConfidence = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Label pixels below this confidence 255, undecided."),
]
EngineOption = Annotated[
    str,
    typer.Option(
        help="auto, onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, openvino or tensorrt."
    ),
]


def examples(*lines: str) -> str:
    """The part of a help text that shows command lines."""
    # An empty line keeps typer from joining lines to a paragraph.
    return "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *lines))


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, or a line every half minute where that is no terminal.

    Call the value with the number of finished steps and of all.
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
    if not console.is_terminal:
        yield progress_lines(text)
        return
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda count, total: progress.update(task, completed=count, total=total)


def progress_lines(text: str) -> Callable[[int, int], None]:
    """A line on standard error every ``LINE_EVERY`` seconds, for log files and supervisors."""
    start = line = time.monotonic()

    def report(count: int, total: int) -> None:
        nonlocal line
        now = time.monotonic()
        if count and now - line >= LINE_EVERY:
            line = now
            left = (now - start) * (total - count) / count
            typer.echo(f"{text} {count}/{total}, about {left:.0f} s left", err=True)

    return report

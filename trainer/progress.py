"""Progress bars with time left, on stderr, so that printed results stay clean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def make_progress(show: bool = True) -> Progress:
    """A bar with count, time spent, time left and a free ``status`` text."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=Console(stderr=True),
        disable=not show,
    )


@contextlib.contextmanager
def progress_bar(title: str, total: int, show: bool = True) -> Iterator[Callable[[], None]]:
    """Yield a function to call once an item."""
    with make_progress(show and total > 0) as bar:
        task = bar.add_task(title, total=total, status="")
        yield lambda: bar.advance(task)

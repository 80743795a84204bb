"""Progress of long work on stderr: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY = 30.0
"""Seconds between two lines where no bar can be drawn."""


def say(text: str) -> None:
    """A line for the person at the terminal; stdout is left to results."""
    print(text, file=sys.stderr, flush=True)


def make_progress(show: bool = True) -> Progress:
    """Count, time spent, time left and a free ``status`` text of each task."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return ProgressLines(console, show)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        disable=not show,
    )


@contextlib.contextmanager
def progress_bar(title: str, total: int, show: bool = True) -> Iterator[Callable[[], None]]:
    """Yield a function to call once an item."""
    with make_progress(show and total > 0) as bar:
        task = bar.add_task(title, total=total, status="")
        yield lambda: bar.advance(task)


class ProgressLines(Progress):
    """Progress for log files: a line every half minute, and one at the end of each task."""

    def __init__(self, console: Console, show: bool) -> None:
        # Disabled, a Progress still counts and estimates, and draws nothing.
        super().__init__(console=console, disable=True, get_time=time.monotonic)
        self.show = show
        self.next_line = time.monotonic() + LINE_EVERY

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """See ``Progress.update``."""
        super().update(task_id, **changes)
        self._print_when_due(self.tasks[task_id])

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """See ``Progress.advance``."""
        super().advance(task_id, advance)
        self._print_when_due(self.tasks[task_id])

    def stop(self) -> None:
        """Print where each task ended."""
        for task in self.tasks:
            self._print(task)
        super().stop()

    def _print_when_due(self, task: Task) -> None:
        # ``stop`` prints the last line of each task.
        if time.monotonic() >= self.next_line and not task.finished:
            self.next_line = time.monotonic() + LINE_EVERY
            self._print(task)

    def _print(self, task: Task) -> None:
        if not self.show:
            return
        left = "" if task.finished or task.time_remaining is None else _clock(task.time_remaining)
        parts = [
            f"{task.description} {task.completed:.0f}/{task.total:.0f}",
            f"{_clock(task.elapsed or 0)} spent",
            f"{left} left" if left else "",
            task.fields["status"],
        ]
        self.console.print(", ".join(part for part in parts if part), highlight=False, markup=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"

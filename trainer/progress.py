"""What long work says on stderr: a bar in a terminal, now and then a line elsewhere, or JSON lines.

stdout is left to results.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
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

from trainer.ranks import rank

WARNING = "warning: "
LINE_EVERY = 30.0
"""Seconds between two lines where no bar can be drawn."""
SPEED_OVER = 300.0
"""Seconds that a speed is the mean of. It needs two steps, and one step of a large network may take
longer than rich's 30 s.
"""


class Log(StrEnum):
    """The form of what is said."""

    text = "text"
    json = "json"


_log = Log.text
_seed: int | None = None


def set_log(log: Log) -> Log:
    """Choose the form of everything that is said from now on, warnings included."""
    global _log
    _log = log
    logging.captureWarnings(is_json())
    (logging.root.addHandler if is_json() else logging.root.removeHandler)(_WARNINGS)
    return log


def is_json() -> bool:
    """Whether every line has to be a JSON object."""
    return _log is Log.json


@contextlib.contextmanager
def naming(seed: int) -> Iterator[None]:
    """Name the seed of a run in everything that is said meanwhile."""
    global _seed
    _seed = seed
    try:
        yield
    finally:
        _seed = None


def _prefix() -> str:
    return "" if _seed is None else f"seed {_seed}: "


def say(text: str) -> None:
    """A line for the person at the terminal; one that begins with ``WARNING`` is a warning."""
    event = "warning" if text.startswith(WARNING) else "message"
    tell(text, event, text=text.removeprefix(WARNING))


def tell(line: str, event: str, **facts: Any) -> None:
    """Print a line, or the facts of the same event as a JSON object. Of the processes of torchrun,
    the first one speaks; the others only print errors.

    Args:
        line: for people; nothing is printed for them where it is empty.
        event: what happened: ``message``, ``stage``, ``progress``, ``warning`` or ``error``.
        facts: the other fields of the object.
    """
    if rank() and event != "error":
        return
    if is_json():
        seed = {} if _seed is None else {"seed": _seed}
        print(json.dumps({"event": event, **facts, **seed}), file=sys.stderr, flush=True)
    elif line:
        print(f"{_prefix()}{line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def announced(stage: str) -> Iterator[None]:
    """Say when a stage starts and when it is done."""
    tell(f"{stage}: started", "stage", stage=stage, state="started")
    start = time.monotonic()
    yield
    seconds = time.monotonic() - start
    tell(
        f"{stage}: done in {clock(seconds)}",
        "stage",
        stage=stage,
        state="done",
        seconds=round(seconds, 1),
    )


def make_progress(show: bool = True, images: int = 1) -> Progress:
    """Count, time spent, time left and a free ``status`` text of each task.

    Args:
        show: whether anything is printed.
        images: of one step.
    """
    console = Console(stderr=True)
    if is_json() or not console.is_terminal:
        return ProgressLines(console, show, images)
    return Progress(
        TextColumn(f"{_prefix()}{{task.description}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        disable=not show or rank() > 0,
        speed_estimate_period=SPEED_OVER,
    )


@contextlib.contextmanager
def progress_bar(title: str, total: int, show: bool = True) -> Iterator[Callable[[], None]]:
    """Yield a function to call once an image."""
    with make_progress(show and total > 0) as bar:
        task = bar.add_task(title, total=total, status="")
        yield lambda: bar.advance(task)


class ProgressLines(Progress):
    """Progress for log files: a line every half minute, and one at the end of each task."""

    def __init__(self, console: Console, show: bool, images: int) -> None:
        # Disabled, a Progress still counts and estimates, and draws nothing.
        super().__init__(
            console=console,
            disable=True,
            get_time=time.monotonic,
            speed_estimate_period=SPEED_OVER,
        )
        self.show, self.images = show, images
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
        if time.monotonic() >= self.next_line and not task.finished:
            self.next_line = time.monotonic() + LINE_EVERY
            self._print(task)

    def _print(self, task: Task) -> None:
        if not self.show:
            return
        total = task.total or 0
        share = task.completed / total if total else 1.0
        speed = (task.finished_speed or task.speed or 0) * self.images
        left = 0.0 if task.finished else task.time_remaining
        parts = [
            f"{task.description} {task.completed:.0f}/{total:.0f} ({share:.0%})",
            f"{_digits(speed)} images/s" if speed else "",
            f"{clock(task.elapsed or 0)} spent",
            f"{clock(left)} left" if left else "",
            task.fields["status"],
        ]
        tell(
            ", ".join(part for part in parts if part),
            "progress",
            stage=task.description,
            step=int(task.completed),
            steps=int(total),
            share=round(share, 4),
            images_per_second=float(f"{speed:.4g}") if speed else None,
            seconds_left=left,
            losses=_losses(task.fields.get("losses", {})),
        )


class _Warnings(logging.Handler):
    """Warnings of Python and of libraries as events."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(record.getMessage(), "warning", text=record.getMessage())


_WARNINGS = _Warnings(logging.WARNING)


def _losses(values: dict[str, float]) -> dict[str, float | None]:
    # JSON has no NaN.
    losses = {name: value for name, value in values.items() if name.startswith("loss")}
    return {name: value if math.isfinite(value) else None for name, value in losses.items()}


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _digits(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}"

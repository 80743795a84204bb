"""The budget curve as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.report.budget import curves, point_words, remarks
from trainer.run import Run


def print_budget(content: Mapping[str, Any], run: Path) -> None:
    """Print mean IoU with its interval against the number of masks, then what it rests on.

    Args:
        content: of ``budget.json``.
        run: that holds it.
    """
    console, columns = Console(), curves(content)
    seconds = content["seconds"]
    heads = ("masks", *(f"min at {each:g} s" for each in seconds))
    table = Table(*heads, *columns)
    counts = sorted({point["masks"] for points in columns.values() for point in points})
    for count in counts:
        minutes = (f"{count * each / 60:.0f}" for each in seconds)
        rows = [next((p for p in own if p["masks"] == count), None) for own in columns.values()]
        table.add_row(str(count), *minutes, *map(point_words, rows))
    console.print(table)
    for line in remarks(content, Run.existing(run).manifest):
        console.print(line, markup=False, highlight=False, soft_wrap=True)

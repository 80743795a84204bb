"""The page of ``wsss-trainer reproduce``: Markdown, to read as it is and to paste elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.files import write_atomic
from trainer.outputs import MARK, is_marked
from trainer.reproduce.tables import Table
from trainer.reproduce.work import Cell, Job, Order

FILE = "reproduce.md"
HEADS = ("row", "figure", "ours", "published", "difference")


def holds_table(folder: Path) -> bool:
    """Whether ``reproduce`` wrote a folder."""
    return is_marked(folder / FILE)


def number(value: float | None, signed: bool = False) -> str:
    """A figure with one decimal; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def lines_of(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """The cells as texts, in the order of ``HEADS``."""
    rows: list[tuple[str, ...]] = []
    for cell in cells:
        spread = "" if cell.deviation is None else f" ± {number(cell.deviation)}"
        # Two decimals are the published ones, where a paper has them.
        published = "–" if cell.published is None else f"{cell.published:g}"
        ours = f"{number(cell.ours)}{spread}"
        difference = number(cell.difference, signed=True)
        rows.append((cell.row, str(cell.figure), ours, published, difference))
    return rows


def order_line(order: Order) -> str:
    """The agreement of the order in words."""
    return (
        f"{order.figure}: Kendall's tau {order.tau:.2f} between our order of {order.rows} rows and"
        f" the published one (p = {order.p:.2g})"
    )


def write_page(
    folder: Path,
    table: Table,
    jobs: Sequence[Job],
    cells: Sequence[Cell],
    orders: Sequence[Order],
    is_small: bool,
) -> Path:
    """Write ``folder/reproduce.md``, and return its path.

    Raises:
        RunError: the file cannot be written.
    """
    caution = (
        "The small recipe on other data than the paper's: only the order of the rows can be"
        " compared, never a value."
    )
    parts = [
        f"<!-- {MARK} -->",
        f"# {table.name}: {table.title}",
        f"{table.paper}, {table.place}.",
        f"Published protocol: {table.protocol}",
        *([caution] if is_small else []),
        *([table.note] if table.note else []),
        _markdown(lines_of(cells)),
        *(f"- {order_line(order)}" for order in orders),
        "## Commands",
        "```\n" + "\n".join(job.command for job in jobs) + "\n```",
    ]
    path = folder / FILE
    write_atomic(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    # A bar in a row's name would start a new column.
    lines = [HEADS, ("---",) * len(HEADS), *rows]
    return "\n".join(f"| {' | '.join(t.replace('|', '/') for t in line)} |" for line in lines)

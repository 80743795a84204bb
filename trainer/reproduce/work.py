"""Train and measure the rows of a table, and set what comes out beside what was published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.evaluation.figures_table import foreground
from trainer.evaluation.over_seeds import evaluation_of
from trainer.fit import fit_run, fit_seeds
from trainer.options import Options, make_configs
from trainer.plan import choose_stages
from trainer.progress import WARNING, say
from trainer.reproduce.tables import Figure, Row, Table
from trainer.run import is_run
from trainer.seed_folder import seed_runs


@dataclass(frozen=True)
class Job:
    """A row as a command.

    Attributes:
        row: of the table.
        options: of its ``fit``.
        seeds: of ``--seeds``; None for a run of one seed.
        command: as typed.
        reason: why the backbone is another one than usual; empty where it is not.
    """

    row: Row
    options: Options
    seeds: tuple[int, ...] | None
    command: str
    reason: str = ""

    def stages(self) -> list[str]:
        """Names of the stages, by names and knobs alone.

        Raises:
            ConfigError: options that cannot be.
        """
        configs = make_configs(self.options)
        return [stage.name for stage in choose_stages(self.options, configs)]

    @property
    def lack(self) -> str:
        """What has to be typed after ``--`` for this row; empty where nothing is missing."""
        knobs = {setting.partition("=")[0] for setting in self.options.settings}
        needs = self.row.needs
        return (
            f"--only {self.row.folder} -- --set {needs}=FILE"
            if needs and needs not in knobs
            else ""
        )

    @property
    def has_run(self) -> bool:
        """Whether its run has begun."""
        return is_run(self.options.run) or bool(seed_runs(self.options.run))


@dataclass(frozen=True)
class Cell:
    """One figure of one row; ours and published in percent, None where there is none.

    Attributes:
        row: name of the row.
        figure: the column.
        ours: mean IoU or whatever the column measures; the mean over seeds.
        deviation: over seeds; None for one seed.
        published: in the paper.
    """

    row: str
    figure: Figure
    ours: float | None
    deviation: float | None
    published: float | None

    @property
    def difference(self) -> float | None:
        """Ours less published, points."""
        if self.ours is None or self.published is None:
            return None
        return self.ours - self.published

    def report(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "row": self.row,
            "figure": str(self.figure),
            "ours": self.ours,
            "deviation": self.deviation,
            "published": self.published,
            "difference": self.difference,
        }


@dataclass(frozen=True)
class Order:
    """How our order of the rows agrees with the published one: Kendall's tau-b.

    Attributes:
        figure: the column.
        rows: how many rows have both values.
        tau: 1 for the same order, -1 for the reverse.
        p: two-sided, of no agreement at all.
    """

    figure: Figure
    rows: int
    tau: float
    p: float

    def report(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"figure": str(self.figure), "rows": self.rows, "tau": self.tau, "p": self.p}


def carry_out(jobs: Sequence[Job], job: Job) -> None:
    """Train a row, or go on with it; a row that lacks a file is left out.

    Stages that another row has done with the same key are taken over: rows that differ in their
    maps alone share one classifier.

    Raises:
        UserError: what ``fit`` cannot do.
    """
    number = f"row {jobs.index(job) + 1} of {len(jobs)}, {job.row.name}"
    if job.lack:
        say(f"{WARNING}{number}: left out; it takes {job.lack}")
        return
    say(f"{number}: {job.command}")
    folders = [other.options.run for other in jobs]
    runs = [*folders, *(run for folder in folders for run in seed_runs(folder).values())]
    if job.seeds is None:
        fit_run(job.options, runs)
    else:
        fit_seeds(job.options, job.seeds, runs)


def cells(table: Table, jobs: Sequence[Job]) -> list[Cell]:
    """Every figure of every row; those of runs that have not begun are empty."""
    return [
        _cell(job.row, figure, evaluation)
        for job in jobs
        for evaluation in [evaluation_of(job.options.run, table.convention) if job.has_run else {}]
        for figure in table.figures
    ]


def _cell(row: Row, figure: Figure, evaluation: Mapping[str, Any]) -> Cell:
    entry = evaluation.get(figure.stage, {}).get(figure.list, {})
    # The mean over the foreground is of the means over the seeds, which have no deviation of it.
    mean = foreground(entry) if figure.key == "foreground" and entry else None
    ours = _value(entry, figure.key) if mean is None else 100 * mean
    deviation = _value(entry.get("deviation"), figure.key)
    return Cell(row.name, figure, ours, deviation, row.published.get(str(figure)))


def _value(entry: Any, key: str) -> float | None:
    for part in key.split("."):
        entry = entry.get(part) if isinstance(entry, Mapping) else None
    return None if entry is None else 100 * float(entry)


def orders(table: Table, values: Sequence[Cell]) -> list[Order]:
    """Agreement of the order of the rows, of every column that has three rows or more."""
    from scipy.stats import kendalltau

    result = []
    for figure in table.figures:
        pairs = [
            (cell.ours, cell.published)
            for cell in values
            if cell.figure == figure and cell.difference is not None
        ]
        # Two rows have one order by chance every other time.
        if len(pairs) < 3:
            continue
        tau, p = kendalltau(*zip(*pairs, strict=True))
        # Undefined where all rows are equal.
        if math.isfinite(tau):
            result.append(Order(figure, len(pairs), float(tau), float(p)))
    return result

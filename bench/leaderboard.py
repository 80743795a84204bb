"""Measure every method with every refinement and segmenter on one data set, over seeds.

Prints what it is going to train and for about how long, then trains what is missing. Rows share
whatever is the same for them: one classifier and its maps serve all refinements. A run that is
finished is not made again, so an interrupted program goes on when it is called again.

Writes the page leaderboard.md with the table for the docs, after each row: mean and deviation over
seeds, minutes of this machine, and the paired interval against cam with the same refinement and
segmenter, over images and seeds. The best row comes first.

    python bench/leaderboard.py DATA --weights FILE --train-list train_balanced --plan
    python bench/leaderboard.py DATA --weights FILE --train-list train_balanced --seeds 0,1,2
    python bench/leaderboard.py DATA --until cams --only cam seam cpn_grid --epochs 3

Further options are those of wsss-trainer fit, such as --backbone, --epochs or --set.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import command_line

from trainer.commands.reproduce import job_of
from trainer.errors import UserError
from trainer.evaluation.bootstrap import Interval
from trainer.evaluation.compare import compare, open_sides
from trainer.files import write_atomic
from trainer.outputs import MARK, check_folder, is_marked
from trainer.progress import WARNING, say
from trainer.reproduce.tables import Figure, Row, Table
from trainer.reproduce.work import Cell, Job, carry_out, cells
from trainer.run import Run
from trainer.seed_folder import seed_run, seed_runs

PAGE = "leaderboard.md"
BASE = "cam"
"""The variant that all others are compared with."""
VARIANTS = {
    BASE: "--method cam",
    "cam_contrast": "--method cam --set method.contrast=1",
    "mixup_cam": "--method mixup_cam",
    "fmix_cam": "--method fmix_cam",
    "manifold_mixup_cam": "--method manifold_mixup_cam",
    "sc_cam": "--method sc_cam --set method.rounds=1",
    "sc_cam_finch": "--method sc_cam --set method.rounds=1 --set method.k=auto",
    "subcategory_teaching": "--method subcategory_teaching --set method.teacher=backbone",
    "seam": "--method seam",
    "seam_star": "--method seam --set method.prcm=on",
    "cpn_grid": "--method cpn",
    "cpn_superpixel": "--method cpn --set method.patches=superpixel",
    "vwe": "--method vwe",
    "vwe_published_weight": "--method vwe --set method.word_weight=1",
    "vwe_hspp": "--method vwe --set method.word_weight=1 --set method.pooling=hspp",
    "recam": "--method recam",
    "amn": "--method amn",
}
REFINEMENTS = ("crf", "affinity", "irn")
UNTIL = {"cams": ("cam",), "refine": ("cam", "refined"), "segment": ("cam", "refined", "segment")}
"""What each of the stages where ``fit`` can stop has figures of."""
MEASURING = ("evaluate",)
GUESS = {
    "classify": 5.0,
    "cams": 10.0,
    "refine": 2.0,
    "affinity": 25.0,
    "irn": 25.0,
    "walk": 5.0,
    "segment": 17.0,
}
"""Minutes of a first estimate, for 1,692 photographs of 320 pixels and MobileNetV2 on 2 cores."""


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("data", type=Path, help="data set with true masks")
    parser.add_argument("--out", type=Path, default=Path("runs/leaderboard"), help="runs and page")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of every row")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="variants; default: all")
    parser.add_argument(
        "--refine", nargs="+", default=list(REFINEMENTS), help="refinements of --refine of fit"
    )
    parser.add_argument("--segmenter", nargs="+", default=["aspp"], help="segmenters of fit")
    parser.add_argument("--until", choices=UNTIL, default="segment", help="last stage of every row")
    parser.add_argument("--lists", nargs="+", default=["train", "val"], help="lists to measure")
    parser.add_argument("--plan", action="store_true", help="print the plan and train nothing")
    args, further = parser.parse_known_args()
    try:
        lead(args, further)
    except UserError as error:
        raise SystemExit(str(error)) from error


def lead(args: argparse.Namespace, further: Sequence[str]) -> None:
    """Plan, train and measure."""
    board = Board(args, further)
    for line in plan_lines(board):
        print(line, flush=True)
    if args.plan:
        return
    check_folder(args.out, lambda folder: is_marked(folder / PAGE), [args.data], "--out")
    failures = []
    # First, because the page marks the folder as ours.
    path = write_page(board)
    for job in board.jobs:
        try:
            carry_out(board.jobs, job)
        except UserError as error:
            # The other rows can still be measured.
            say(f"{WARNING}{job.row.name}: {error}")
            failures.append(job.row.name)
        path = write_page(board)
    print(path.read_text())
    if failures:
        raise SystemExit(f"{len(failures)} rows failed: {', '.join(failures)}")


@dataclass(frozen=True)
class Way:
    """A row: which method, refined how, and for which segmenter; empty where none is reached."""

    variant: str
    refine: str
    segmenter: str

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.variant, self.refine, self.segmenter)))

    @property
    def options(self) -> str:
        refine = f" --refine {self.refine}" if self.refine else ""
        segmenter = f" --segmenter {self.segmenter}" if self.segmenter else ""
        return f"{VARIANTS[self.variant]}{refine}{segmenter}"


class Board:
    """Every row as a job.

    Attributes:
        table: rows and columns.
        ways: of the rows.
        jobs: of the rows, those of one variant side by side.
        seeds: of every row.
    """

    def __init__(self, args: argparse.Namespace, further: Sequence[str]) -> None:
        stages = UNTIL[args.until]
        refinements = args.refine if "refined" in stages else [""]
        segmenters = args.segmenter if "segment" in stages else [""]
        variants = args.only or list(VARIANTS)
        # Without it there is nothing to compare with.
        variants = list(dict.fromkeys([BASE, *variants]))
        self.ways = [Way(*way) for way in itertools.product(variants, refinements, segmenters)]
        self.table = Table(
            name="leaderboard",
            paper="",
            place="",
            title="",
            protocol="",
            figures=tuple(Figure(stage, name) for stage in stages for name in args.lists),
            rows=tuple(Row(way.name, way.options, {}) for way in self.ways),
        )
        words = ["--seeds", args.seeds, *further]
        self.jobs = [
            job_of(self.table, row, args.data, args.out, False, words) for row in self.table.rows
        ]
        self.folder: Path = args.out
        self.seeds = self.jobs[0].seeds or ()

    @property
    def best_first(self) -> str:
        """The column that orders the rows."""
        return str(self.table.figures[-1])

    def base_of(self, way: Way) -> Job:
        """The row of ``cam`` that a row is compared with."""
        return self.jobs[self.ways.index(Way(BASE, way.refine, way.segmenter))]


def plan_lines(board: Board) -> Iterator[str]:
    """What is trained, how often, and for about how long."""
    known, missing = minutes_by_stage(board), defaultdict[str, list[str]](list)
    total, guesses, shared = 0.0, 0, set[tuple[str, ...]]()
    for way, job in zip(board.ways, board.jobs, strict=True):
        for stage, seed in itertools.product(job.stages(), board.seeds):
            identity = identity_of(way, stage, seed)
            if identity in shared:
                continue
            shared.add(identity)
            if is_done(job, stage, seed):
                continue
            minutes, measured = minutes_of(way, stage, known)
            total += minutes
            guesses += not measured
            missing[stage].append(way.name)
    yield f"{len(board.jobs)} rows x {len(board.seeds)} seeds, in {board.folder}"
    for stage, names in missing.items():
        yield f"  {stage:16s} {len(names):4d} to do"
    source = f"; {guesses} of the times are guesses for 2 cores" if guesses else ""
    yield f"about {total / 60:.1f} hours of work are left{source}"


def identity_of(way: Way, stage: str, seed: int) -> tuple[str, ...]:
    """Rows with the same identity share the stage."""
    parts = [way.variant, stage, str(seed)]
    if stage.startswith("segment"):
        parts += [way.refine, way.segmenter]
    elif stage in ("refine", "walk") or stage.startswith(("affinity", "irn")):
        parts.append(way.refine)
    return tuple(parts)


def is_done(job: Job, stage: str, seed: int) -> bool:
    """Whether a run says that it has the stage; ``fit`` compares the knobs once more."""
    path = seed_run(job.options.run, seed)
    if not (path / "manifest.json").exists():
        return False
    return bool(Run(path).manifest["stages"].get(stage, {}).get("status") == "done")


def minutes_by_stage(board: Board) -> dict[tuple[str, str], list[float]]:
    """Minutes of finished stages by variant and stage, and by stage under an empty variant."""
    known = defaultdict[tuple[str, str], list[float]](list)
    for way, job in zip(board.ways, board.jobs, strict=True):
        for entry_of_run in manifests(job):
            for stage, entry in entry_of_run.items():
                if "seconds" in entry and "taken_from" not in entry:
                    known[way.variant, stage].append(entry["seconds"] / 60)
                    known["", stage].append(entry["seconds"] / 60)
    return known


def minutes_of(
    way: Way, stage: str, known: Mapping[tuple[str, str], list[float]]
) -> tuple[float, bool]:
    """Minutes of a stage, and whether they were measured: of the same variant, or of any."""
    for variant in (way.variant, ""):
        if values := known.get((variant, stage)):
            return fmean(values), True
    kinds = [kind for kind in GUESS if stage.startswith(kind)]
    # Preparations of a method train a classifier.
    return GUESS[kinds[0]] if kinds else GUESS["classify"], False


def manifests(job: Job) -> list[Mapping[str, Any]]:
    """The stages of each run of a row."""
    return [Run(path).manifest["stages"] for path in seed_runs(job.options.run).values()]


def minutes_alone(job: Job) -> float | None:
    """Minutes that a row would take by itself, the mean over seeds; None before its first run."""
    totals = [
        sum(entry.get("seconds", 0) for name, entry in run.items() if name not in MEASURING) / 60
        for run in manifests(job)
    ]
    return fmean(totals) if totals else None


def write_page(board: Board) -> Path:
    """Write the page, best row first, with the figures that are there."""
    values = defaultdict[str, dict[str, Cell]](dict)
    for cell in cells(board.table, board.jobs):
        values[cell.row][str(cell.figure)] = cell
    rows = sorted(
        zip(board.ways, board.jobs, strict=True),
        key=lambda pair: -(values[pair[1].row.name][board.best_first].ours or -1.0),
    )
    names = [str(figure) for figure in board.table.figures]
    heads = ["method", "refinement", "segmenter", *names, "against cam", "minutes"]
    lines, facts = [heads, ["---"] * len(heads)], []
    for way, job in rows:
        own, minutes = values[job.row.name], minutes_alone(job)
        interval = against(board, way, job) if own[board.best_first].ours is not None else None
        texts = [text_of(own[name]) for name in names]
        texts += [text_of_interval(interval), "-" if minutes is None else f"{minutes:.0f}"]
        lines.append([way.variant, way.refine or "-", way.segmenter or "-", *texts])
        fact: dict[str, Any] = {"row": job.row.name, "command": job.command, "minutes": minutes}
        fact["figures"] = [cell.report() for cell in own.values()]
        facts.append({**fact, "against": interval and interval.report()})
    write_atomic(board.folder / "leaderboard.json", json.dumps(facts, indent=1).encode())
    return save(board, lines)


def save(board: Board, lines: Sequence[Sequence[str]]) -> Path:
    """Write the Markdown."""
    note = (
        "Mean IoU in percent, mean ± deviation over the seeds"
        f" {', '.join(map(str, board.seeds))}. `against cam`: difference of `{board.best_first}`"
        " from `cam` with the same refinement and segmenter, with its 95 % interval over images and"
        " seeds. `minutes`: of one run that shares nothing, on this machine."
    )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    commands = "\n".join(job.command for job in board.jobs)
    parts = [f"<!-- {MARK} -->", "# Leaderboard", note, table, "## Commands"]
    path: Path = board.folder / PAGE
    write_atomic(path, ("\n\n".join([*parts, f"```\n{commands}\n```"]) + "\n").encode())
    return path


def against(board: Board, way: Way, job: Job) -> Interval | None:
    """The difference from ``cam``; None for ``cam``, and where one of the two has no figures."""
    base, figure = board.base_of(way), board.table.figures[-1]
    if base is job or not base.has_run:
        return None
    for line in compare(open_sides([base.options.run, job.options.run])):
        paired = line.matches[1].against_first
        if (line.stage, line.list) == (figure.stage, figure.list) and paired:
            return paired.difference
    return None


def text_of_interval(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    value, low, high = (100 * x for x in (interval.value, interval.low, interval.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def text_of(cell: Cell) -> str:
    if cell.ours is None:
        return "-"
    return f"{cell.ours:.1f}" + ("" if cell.deviation is None else f" ± {cell.deviation:.1f}")


if __name__ == "__main__":
    main()

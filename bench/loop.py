"""Measure the loop of tags, few masks and a better model. One subcommand answers one question.

    python bench/loop.py rounds DATA --weights FILE --rounds 2 3
    python bench/loop.py masks DATA --weights FILE --numbers 8 32

Further options are those of wsss-trainer fit, such as --backbone or --set. Every run is a run of
the command line. A run that is finished is not made again, so an interrupted program goes on when
it is called again. Runs of one seed share the classifier and its maps: the others start from a copy
of the first one.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import command_line
import numpy as np
from own_data import add, fitted, mean_and_deviation

from trainer.data.dataset import Dataset
from trainer.data.formats.opening import open_dataset
from trainer.evaluation.bootstrap import compare_paired
from trainer.evaluation.image_counts import ImageCounts, counts_path
from trainer.files import write_atomic

LINKED = {".npz", ".png", ".pt"}
"""Files that are only ever replaced, so a copy of a run may share them."""
System = tuple[Path, str]
"""A run, and which of its segmenters."""


def main() -> None:
    parser = command_line.parser(__doc__)
    questions = parser.add_subparsers(required=True, metavar="QUESTION")
    add(questions, "rounds", rounds, add_rounds)
    add(questions, "masks", masks, add_masks)
    args, args.fit = parser.parse_known_args()
    args.answer(args)


def add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(until="evaluate")
    parser.add_argument(
        "--rounds", type=int, nargs="+", default=[2], help="numbers of rounds to compare with one"
    )


def add_masks(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(until="evaluate")
    parser.add_argument(
        "--numbers", type=int, nargs="+", default=[32], help="numbers of true masks"
    )
    parser.add_argument(
        "--seconds", type=int, nargs="+", default=[20, 240], help="seconds of work a mask"
    )


def rounds(args: argparse.Namespace) -> None:
    """What self-training is worth: several rounds against one, without any mask.

    Measured is the mean IoU of the segmenter on the validation list, as difference from one round
    and as share of the same segmenter on all true masks (weak / full).
    """
    table = Table(args)
    for seed in range(args.seeds):
        base = tags_alone(args, seed)
        table.add("one round", (base, "segment"), seed, full=base)
        for number in args.rounds:
            run = variant(args, base, f"rounds{number}", seed, f"segment.rounds={number}")
            table.add(f"{number} rounds", (run, "segment"), seed, full=base)
    table.show({f"{number} rounds": ["one round"] for number in args.rounds})


def masks(args: argparse.Namespace) -> None:
    """What few true masks are worth: tags and N masks against the tags alone and the masks alone.

    The seed draws the images with a mask, and everything random of the runs. "N masks alone" is the
    same segmenter trained on these masks only. Measured is the mean IoU on the validation list, and
    its share of the same segmenter on all true masks (weak / full).
    """
    table, dataset = Table(args), open_dataset(args.data)
    for seed in range(args.seeds):
        base = tags_alone(args, seed)
        table.add("tags alone", (base, "segment"), seed, full=base)
        for number in args.numbers:
            ids = drawn(dataset, args, number, seed)
            file = args.out / "lists" / f"{number}-{seed}.txt"
            write_atomic(file, "\n".join(ids).encode())
            run = variant(args, base, f"tags-and-{number}", seed, masks=file)
            table.add(f"tags and {number}", (run, "segment"), seed, full=base)
            alone = masks_alone(args, dataset, ids, number, seed)
            table.add(f"{number} alone", (alone, "segment_full"), seed, full=base)
    pairs = {f"tags and {n}": ["tags alone", f"{n} alone"] for n in args.numbers}
    table.show(pairs)
    for number in args.numbers:
        minutes = ", ".join(f"{number * s / 60:.0f} at {s} s" for s in args.seconds)
        print(f"{number} masks are minutes of work: {minutes} a mask")


def drawn(dataset: Dataset, args: argparse.Namespace, number: int, seed: int) -> list[str]:
    """Ids of training images that show a class and have a true mask. Larger numbers contain the
    smaller ones.
    """
    name = args.train_list or dataset.default_list("train") or "all"
    records = [record for record in dataset.masked(name) if record.tags]
    order = np.random.default_rng((seed, 1)).permutation(len(records))
    if number > len(records):
        raise SystemExit(f"{number} masks, and the training list has {len(records)}")
    return sorted(records[i].id for i in order[:number])


def tags_alone(args: argparse.Namespace, seed: int) -> Path:
    """The run from tags alone, with the same segmenter on all true masks."""
    return fitted(args, args.data, args.out / f"tags-{seed}", seed, ("--supervision", "both"))


def variant(
    args: argparse.Namespace,
    base: Path,
    name: str,
    seed: int,
    *settings: str,
    masks: Path | None = None,
) -> Path:
    """A run that goes on from a copy of ``base`` with other knobs, or with true masks."""
    run = args.out / f"{name}-{seed}"
    if not run.exists():
        copy_run(base, run)
    more = [word for knob in settings for word in ("--set", knob)]
    more += ["--masks", str(masks)] if masks else []
    return fitted(args, args.data, run, seed, ("--supervision", "both", *more))


def copy_run(base: Path, run: Path) -> None:
    """Copy a run folder; large files are links."""

    def copy(source: str, target: str) -> None:
        if Path(source).suffix in LINKED:
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    # A copy that was interrupted must not pass for a run.
    unfinished = run.with_name(f"{run.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(base, unfinished, copy_function=copy)
    unfinished.rename(run)


def masks_alone(
    args: argparse.Namespace, dataset: Dataset, ids: Sequence[str], number: int, seed: int
) -> Path:
    """The segmenter on these masks only. A table of lists makes them the training list."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["image", "list"])
    lists = {"few": ids, args.val_list: dataset.lists[args.val_list]}
    writer.writerows([i, name] for name, members in lists.items() for i in members)
    file = (args.out / "lists" / f"{number}-{seed}.csv").resolve()
    write_atomic(file, buffer.getvalue().encode())
    options = ("--supervision", "full", "--set", f"data.lists={file}", "--train-list", "few")
    return fitted(args, args.data, args.out / f"alone-{number}-{seed}", seed, options)


class Table:
    """Mean IoU of several systems on the validation list, seed by seed."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.name = args, args.val_list
        self.systems: dict[str, list[ImageCounts]] = {}
        self.ratios: dict[str, list[float]] = {}
        self.values: dict[str, list[float]] = {}

    def add(self, name: str, system: System, seed: int, full: Path) -> None:
        """Read the figures of a system.

        Args:
            name: in the table.
            system: the run, and which segmenter.
            seed: of the run.
            full: the run with the segmenter on all true masks.
        """
        run, stage = system
        entry = json.loads((run / "evaluation.json").read_text())[stage][self.name]
        counts = ImageCounts.read(counts_path(run, stage, self.name))
        best = ImageCounts.read(counts_path(full, "segment_full", self.name))
        ratio = compare_paired(best, counts).ratio.value
        self.systems.setdefault(name, []).append(counts)
        self.values.setdefault(name, []).append(100 * entry["miou"])
        self.ratios.setdefault(name, []).append(ratio)
        print(
            f"{name}, seed {seed}: {100 * entry['miou']:.2f}, weak / full {ratio:.3f}", flush=True
        )

    def show(self, pairs: dict[str, list[str]]) -> None:
        """Print and write all figures.

        Args:
            pairs: system -> those that it is compared with.
        """
        print(f"\n{'list ' + self.name:24s} {'mean IoU':>14s} {'weak / full':>14s}")
        for name, values in self.values.items():
            shares = mean_and_deviation([100 * ratio for ratio in self.ratios[name]])
            print(f"{name:24s} {mean_and_deviation(values):>14s} {shares:>12s} %")
        rows = [self.difference(name, o) for name, others in pairs.items() for o in others]
        result = {"list": self.name, "miou": self.values, "weak_full": self.ratios, "pairs": rows}
        file = self.args.out / f"{self.args.out.name}.json"
        write_atomic(file, json.dumps(result, indent=1).encode())

    def difference(self, name: str, other: str) -> dict[str, Any]:
        """Difference of two systems with its interval over images, seed by seed."""
        pairs = zip(self.systems[other], self.systems[name], strict=True)
        reports = [compare_paired(a, b).difference.ends() for a, b in pairs]
        values = [100 * float(report["value"] or 0) for report in reports]
        print(f"{name} against {other}: {mean_and_deviation(values)}")
        for seed, report in enumerate(reports):
            low, high = (100 * float(report[end] or 0) for end in ("low", "high"))
            print(f"  seed {seed}: {values[seed]:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}")
        return {"system": name, "against": other, "seeds": reports}


if __name__ == "__main__":
    main()

"""Measure the loop of tags, few masks and a better model. One subcommand answers one question.

    python bench/loop.py rounds DATA --weights FILE --rounds 2 3
    python bench/loop.py masks DATA --weights FILE --steps 30,60 --draws 5

Further options are those of wsss-trainer fit, such as --backbone or --set. Every run is a run of
the command line. A run that is finished is not made again, so an interrupted program goes on when
it is called again. Runs of one seed share the classifier and its maps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import command_line
from own_data import add, command, fit_words, fitted, mean_and_deviation, run_options

from trainer.commands.fit import options_of, parse
from trainer.evaluation.bootstrap import compare_paired
from trainer.evaluation.image_counts import ImageCounts, counts_path
from trainer.files import write_atomic
from trainer.fit import fit_run
from trainer.progress import Log

System = tuple[Path, str]
"""A run, and which of its segmenters."""


def main() -> None:
    parser = command_line.parser(__doc__)
    questions = parser.add_subparsers(required=True, metavar="QUESTION")
    add(questions, "rounds", rounds, add_rounds)
    add(questions, "masks", masks, add_masks)
    args, words = parser.parse_known_args()
    args.fit = words
    args.answer(args)


def add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(until="evaluate")
    parser.add_argument(
        "--rounds", type=int, nargs="+", default=[2], help="numbers of rounds to compare with one"
    )


def add_masks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", default="30,60", help="numbers of true masks")
    parser.add_argument("--draws", type=int, default=5, help="random choices a seed")


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
    """What few true masks are worth, chosen by ask and at random, with the tags and alone.

    This is wsss-trainer budget with everything that it can compare. Measured is the mean IoU of
    the segmenter on the validation list, with paired intervals over images.
    """
    seeds = ",".join(map(str, range(args.seeds)))
    curve = ("--steps", args.steps, "--chosen", "both", "--draws", args.draws, "--alone")
    options = ["--supervision", "both", *run_options(args), *args.fit]
    words = (args.data, "--run", args.out / "curve", "--seeds", seeds, *curve, "--", *options)
    print(command("budget", *words))


def tags_alone(args: argparse.Namespace, seed: int) -> Path:
    """The run from tags alone, with the same segmenter on all true masks."""
    return fitted(args, args.data, args.out / f"tags-{seed}", seed, ("--supervision", "both"))


def variant(args: argparse.Namespace, base: Path, name: str, seed: int, *settings: str) -> Path:
    """A run with other knobs, which takes over what is the same in ``base``."""
    run = Path(args.out, f"{name}-{seed}")
    more = [word for knob in settings for word in ("--set", knob)]
    words = fit_words(args, args.data, run, seed, ("--supervision", "both", *more))
    options, _ = options_of(parse(words, Log.text))
    fit_run(options, [base])
    return run


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

"""Measure the product on data as people have them. One subcommand answers one question.

    python bench/own_data.py hidden-tags DATA --weights FILE --out runs/hidden-tags
    python bench/own_data.py negatives DATA --until report
    python bench/own_data.py whole DATA --until report

Further options are those of wsss-trainer fit, such as --backbone or --set. Every run is a run of
the command line. A run that is finished is not made again, so an interrupted program goes on when
it is called again.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import children
import command_line
import numpy as np

from trainer.data.dataset import Record
from trainer.data.formats.opening import open_dataset
from trainer.data.formats.voc import CSV
from trainer.data.formats.writing import tag_table
from trainer.data.pixels import read_image
from trainer.files import write_atomic

STAGES = ("cam", "refined", "segment")
FULL = "segment_full"
WAYS = ("absent", "unknown")


def main() -> None:
    parser = command_line.parser(__doc__)
    questions = parser.add_subparsers(required=True, metavar="QUESTION")
    add(questions, "hidden-tags", hidden_tags, add_hidden_tags)
    add(questions, "negatives", negatives)
    add(questions, "whole", whole)
    args, words = parser.parse_known_args()
    args.fit = words
    args.answer(args)


def add(
    questions: Any,
    name: str,
    answer: Callable[[argparse.Namespace], None],
    *options: Callable[[argparse.ArgumentParser], None],
) -> None:
    """A subcommand: ``answer``, whose docstring is its help, with the options of all runs."""
    about = inspect.cleandoc(answer.__doc__ or "")
    parser = questions.add_parser(
        name,
        description=about,
        help=about.split(".")[0],
        formatter_class=command_line.Help,
    )
    parser.add_argument("data", type=Path, help="data set with true masks")
    parser.add_argument("--weights", help="initial weights of the backbone; fit's default")
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--train-list", help="list to train on; fit's default")
    parser.add_argument("--val-list", default="val", help="list whose tags stay as they are")
    parser.add_argument("--until", default="cams", help="last stage of every run")
    for more in options:
        more(parser)
    parser.set_defaults(answer=answer)


def add_hidden_tags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.2, 0.4], help="shares of the tags to hide"
    )


def hidden_tags(args: argparse.Namespace) -> None:
    """How far the maps fall if some tags are unknown, and how far if they are called absent.

    Draws a share of the entries of the 0/1 table of tags, of all images outside of the validation
    list, and hides them in two ways. "unknown": these entries become "?". "absent": those of them
    that were 1 become 0. Measured is the mean IoU of the maps on each list with true masks: on the
    training list, where hidden tags also decide which maps an image has, and on the validation
    list, whose tags all stay, where only what the classifier has learned can differ. The seed
    draws the entries and everything random of the run.

    Prints the mean and the deviation over seeds, and for each share the fall of "unknown" as a
    part of the fall of "absent".
    """
    base = args.out / "data" / "whole"
    command("convert", args.data, base, "--to", "voc", "--images", "symlink")
    variants: list[tuple[float, str]] = [(0.0, "whole"), *itertools.product(args.shares, WAYS)]
    rows = []
    for (share, way), seed in itertools.product(variants, range(args.seeds)):
        name = f"{way}-{share:g}-{seed}" if share else f"whole-{seed}"
        data = hidden(base, args.out / "data" / name, share, way, seed, args) if share else base
        figures = run(args, data, args.out / name, seed)
        for stage, lists in figures.items():
            rows += [(stage, on, share, way, value) for on, value in lists.items()]
            print(name, stage, {on: f"{value:.2f}" for on, value in lists.items()}, flush=True)
    write_atomic(args.out / "hidden_tags.json", json.dumps(rows, indent=1).encode())
    for stage, on in dict.fromkeys(row[:2] for row in rows):
        print_falls(stage, on, [row[2:] for row in rows if row[:2] == (stage, on)])


def hidden(
    base: Path, folder: Path, share: float, way: str, seed: int, args: argparse.Namespace
) -> Path:
    """``folder``: the VOC data set ``base`` with hidden tags, its other files as links."""
    dataset = open_dataset(base)
    measured = set(dataset.lists.get(args.val_list, ()))
    draws = np.random.default_rng(seed).random((len(dataset.records), len(dataset.classes)))
    records = [
        record if record.id in measured else without(record, np.flatnonzero(row < share), way)
        for record, row in zip(dataset.records.values(), draws, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        if path.name != CSV and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    write_atomic(folder / CSV, tag_table(dataset.classes, records))
    return folder


def without(record: Record, classes: Iterable[int], way: str) -> Record:
    """The record with the tags of ``classes`` hidden."""
    hidden_classes = set(map(int, classes))
    tags = tuple(k for k in record.tags if k not in hidden_classes)
    unknown = tuple(sorted(hidden_classes)) if way == "unknown" else ()
    return dataclasses.replace(record, tags=tags, unknown=unknown)


def negatives(args: argparse.Namespace) -> None:
    """What images that show no class are good for: with them, and without.

    "without" leaves them out of the training of the classifier, and the segmenter sees none
    (classify.negatives=0, segment.negatives=0). Measured are the validation list's AUROC of each
    class and of "any class" by the classifier, the share of free images that are called defective
    at 90 % recall, and mean IoU and share of objects hit of maps, masks and segmenter.
    """
    out = ("--set", "classify.negatives=0", "--set", "segment.negatives=0")
    table: dict[str, dict[str, list[float]]] = {}
    for (way, settings), seed in itertools.product(
        {"with": (), "without": out}.items(), range(args.seeds)
    ):
        report = evaluation(args, args.data, args.out / f"{way}-{seed}", seed, settings)
        for figure, value in own_figures(report, args.val_list):
            table.setdefault(figure, {}).setdefault(way, []).append(value)
    write_atomic(args.out / "negatives.json", json.dumps(table, indent=1).encode())
    print(f"{'list ' + args.val_list:34s} {'with negatives':>16s} {'without':>16s}")
    for figure, ways in table.items():
        cells = (mean_and_deviation(ways.get(way, [])) for way in ("with", "without"))
        print(f"{figure:34s} " + " ".join(f"{cell:>16s}" for cell in cells))


def whole(args: argparse.Namespace) -> None:
    """What a user gets who types "fit DATA" and nothing else, beside training on all true masks.

    Measured are the figures of "negatives", the mean IoU of the segmenter as a share of one that
    trained on true masks (segment_full), the minutes of all stages without that one, and the images
    where the exported model contradicts itself: its mask shows a class whose score is under the
    threshold of its card.
    """
    table: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        folder = args.out / f"whole-{seed}"
        report = evaluation(args, args.data, folder, seed, ("--supervision", "both"))
        figures = dict(own_figures(report, args.val_list))
        weak, full = (report[stage][args.val_list]["miou"] for stage in ("segment", FULL))
        figures |= {f"{FULL}, mean IoU": 100 * full, "weak / full": weak / full}
        stages = json.loads((folder / "manifest.json").read_text())["stages"]
        figures["minutes"] = (
            sum(entry["seconds"] for name, entry in stages.items() if FULL not in name) / 60
        )
        figures["contradictions"] = contradictions(args, folder)
        for figure, value in figures.items():
            table.setdefault(figure, []).append(value)
        print(
            f"seed {seed}:", {name: round(value, 2) for name, value in figures.items()}, flush=True
        )
    write_atomic(args.out / "whole.json", json.dumps(table, indent=1).encode())
    print(f"{'list ' + args.val_list:34s} {'fit with its defaults':>22s}")
    for figure, values in table.items():
        print(f"{figure:34s} {mean_and_deviation(values, 2):>22s}")


def contradictions(args: argparse.Namespace, run: Path) -> int:
    """Images of the validation list whose exported mask shows a class under its threshold."""
    import onnxruntime

    version = run / "exported" / "own" / "1"
    if not version.exists():
        command("export", run, "--name", "own", "--repository", run / "exported")
    card = json.loads((version / "model.json").read_text())
    least = np.array(card["thresholds"]["scores"])
    session = onnxruntime.InferenceSession(version / "model.onnx")
    count = 0
    for record in open_dataset(args.data).subset(args.val_list):
        image = read_image(record.image)[None]
        mask, scores = session.run(["mask", "scores"], {"image": image})
        classes = np.setdiff1d(np.unique(mask), 0) - 1
        count += bool((scores[0][classes] < least[classes]).any())
    return count


def own_figures(report: Any, on: str) -> Iterable[tuple[str, float]]:
    """Name and value of the figures on a list, in percent."""
    scores = report.get("classifier", {}).get(on)
    if scores:
        for name, entry in {**scores["classes"], "any class": scores["any"]}.items():
            if entry["auroc"] is not None:
                yield f"AUROC, {name}", 100 * entry["auroc"]
        if scores["any"]["false_alarms_at_90"] is not None:
            yield "false alarms at 90 % recall", 100 * scores["any"]["false_alarms_at_90"]
    for stage in STAGES:
        entry = report.get(stage, {}).get(on)
        if entry:
            yield f"{stage}, mean IoU", 100 * entry["miou"]
            for name, value in entry["objects_hit_by_class"].items():
                if value is not None:
                    yield f"{stage}, objects hit, {name}", 100 * value


def mean_and_deviation(values: Sequence[float], digits: int = 1) -> str:
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}" if values else "-"


def run(
    args: argparse.Namespace, data: Path, folder: Path, seed: int
) -> dict[str, dict[str, float]]:
    """Mean IoU in percent of maps and masks on each list."""
    report = evaluation(args, data, folder, seed)
    return {
        stage: {on: 100 * report[stage][on]["miou"] for on in report[stage]}
        for stage in STAGES
        if stage in report
    }


def evaluation(
    args: argparse.Namespace, data: Path, folder: Path, seed: int, settings: Sequence[str] = ()
) -> Any:
    """What ``eval RUN --json`` prints of a run."""
    return json.loads(command("eval", fitted(args, data, folder, seed, settings), "--json"))


def fitted(
    args: argparse.Namespace, data: Path, folder: Path, seed: int, settings: Sequence[str] = ()
) -> Path:
    """The run in ``folder``, after ``fit`` has done what is missing. ``settings`` go over the
    options that all runs have.
    """
    command("fit", *fit_words(args, data, folder, seed, settings))
    return folder


def fit_words(
    args: argparse.Namespace, data: Path, folder: Path, seed: int, settings: Sequence[str] = ()
) -> list[str]:
    """What stands after ``wsss-trainer fit``."""
    own = [data, "--run", folder, "--seed", seed, "--until", args.until]
    return [*map(str, own), *run_options(args), *args.fit, *settings]


def run_options(args: argparse.Namespace) -> list[str]:
    """The options of ``fit`` that the subcommands share."""
    options = ["--val-list", args.val_list]
    for name in ("weights", "train_list"):
        if value := getattr(args, name):
            options += [f"--{name.replace('_', '-')}", value]
    return options


def command(*words: object) -> str:
    """What ``wsss-trainer`` prints; its progress goes to stderr."""
    return children.output("-m", "trainer", *words)


def print_falls(stage: str, on: str, rows: Sequence[tuple[float, str, float]]) -> None:
    values: dict[tuple[float, str], list[float]] = {}
    for share, way, value in rows:
        values.setdefault((share, way), []).append(value)
    print(f"\n{stage}, list {on}: mean IoU in percent")
    for (share, way), several in values.items():
        deviation = f" ± {np.std(several, ddof=1):.2f}" if len(several) > 1 else ""
        print(f"  {share:4.0%} {way:8s} {np.mean(several):6.2f}{deviation}")
    whole = np.mean(values[0.0, "whole"])
    for share in dict.fromkeys(share for share, _ in values if share):
        absent, unknown = (whole - np.mean(values[share, way]) for way in WAYS)
        part = f"{unknown / absent:.2f} of it" if absent > 0 else "no fall to compare with"
        print(f"  falls at {share:.0%}: absent {absent:.2f}, unknown {unknown:.2f}, {part}")


if __name__ == "__main__":
    main()

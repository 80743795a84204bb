"""Figures as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from trainer.evaluation.boundary import describe_tolerance
from trainer.evaluation.compare import Line, Match
from trainer.evaluation.measure import pixel_figures
from trainer.evaluation.measure_classifier import CLASSIFIER
from trainer.evaluation.metrics import CONVENTIONS

MEANS = {
    "mean_f": "F, mean",
    "f_of_means": "F of means",
    "boundary_f": "boundary F",
    "objects_hit": "objects hit",
    "pixel_ap": "pixel AP",
    "pro": "PRO",
    "over_activation": "over-act.",
    "under_activation": "under-act.",
}
NO_MASKS = (
    "No figures of masks: no list of this data set has true masks."
    "\ntry: add masks of some images (docs/data.md), then wsss-trainer eval;"
    " or look at the maps and masks: wsss-trainer report"
)
OPEN = {"background": "as background", "missed": "as missed", "refused": "not at all"}


def print_evaluation(evaluation: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the figures of image scores, then mean IoU with its interval, IoU of each class, other
    means, and all protocols.
    """
    console = Console()
    image_lines = evaluation.get(CLASSIFIER, {})
    for name, figures in image_lines.items():
        console.print(_image_table(name, figures))
    # Protocol lines may hold square brackets, which Rich would take for markup, and are copied
    # whole, so they must not wrap.
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    for name, figures in image_lines.items():
        say(f"{CLASSIFIER} {name}: {figures['protocol']}")
    entries = pixel_figures(evaluation)
    if not entries:
        say(NO_MASKS)
        return
    for name in dict.fromkeys(name for _, name, _ in entries):
        console.print(_table(name, [(stage, entry) for stage, n, entry in entries if n == name]))
    for line in _remarks(entries):
        say(line)


def _image_table(name: str, figures: Mapping[str, Any]) -> Table:
    # The interval of the average precision would not fit into 80 columns.
    heads = ("AUROC", "95 %", "AP", "FPR at 90", "with", "without")
    table = Table(f"{name}, images", *heads)
    # Where every image shows a class, "any class" has no figure.
    any_class = {} if figures["any"]["auroc"] is None else {"any class": figures["any"]}
    for label, entry in {**any_class, **figures["classes"]}.items():
        table.add_row(
            label,
            percent(entry["auroc"]),
            _interval(entry.get("auroc_interval")),
            percent(entry["average_precision"]),
            percent(entry["false_alarms_at_90"]),
            str(entry["positives"]),
            str(entry["negatives"]),
            end_section=label == "any class",
        )
    mean = figures["mean"]
    table.add_section()
    table.add_row("mean", percent(mean["auroc"]), "", percent(mean["average_precision"]))
    return table


def _table(name: str, entries: Sequence[tuple[str, Any]]) -> Table:
    table = Table(name, *(stage for stage, _ in entries))
    table.add_row("mIoU", *(_figure(entry, "miou") for _, entry in entries), style="bold")
    table.add_row("95 %", *(_interval(entry.get("miou_interval")) for _, entry in entries))
    table.add_row(
        "foreground", *(percent(foreground(entry)) for _, entry in entries), end_section=True
    )
    for label in entries[0][1]["iou"]:
        table.add_row(label, *(_figure(entry, "iou", label) for _, entry in entries))
    table.add_section()
    for key, words in MEANS.items():
        if any(entry.get(key) is not None for _, entry in entries):
            table.add_row(words, *(_figure(entry, key) for _, entry in entries))
    table.add_section()
    thresholds = [entry["threshold"] for _, entry in entries]
    table.add_row("threshold", *("-" if t is None else f"{t:.2f}" for t in thresholds))
    table.add_row("chosen", *(entry["threshold_from"] or "-" for _, entry in entries))
    return table


def _figure(entry: Mapping[str, Any], *keys: str) -> str:
    """A figure of an entry; of several seeds with its deviation."""
    value: Any = entry
    spread: Any = entry.get("deviation") or {}
    for key in keys:
        value, spread = (value or {}).get(key), (spread or {}).get(key)
    return percent(value) + (f" ± {percent(spread)}" if isinstance(spread, float) else "")


def foreground(entry: Mapping[str, Any]) -> float | None:
    """Mean IoU of an entry over its classes without the background."""
    values = [v for label, v in entry["iou"].items() if label != "background" and v is not None]
    return sum(values) / len(values) if values else None


def _remarks(entries: list[tuple[str, str, Any]]) -> list[str]:
    lines = [f"{stage} {name}: {entry['protocol']}" for stage, name, entry in entries]
    for _, name, entry in entries:
        if "weak_full" in entry:
            ratio = entry["weak_full"]["ratio"]
            value, low, high = (
                "-" if ratio[key] is None else f"{ratio[key]:.3f}"
                for key in ("value", "low", "high")
            )
            ends = f"{100 * ratio['level']:g} % interval {low} to {high}"
            lines.append(
                f"weak / full on {name}: {value} ({ends}, {entry['weak_full']['images']} images)"
            )
    first = entries[0][2]
    rule = CONVENTIONS[first["convention"]]
    open_ = sum(entry["predicted_ignore"] for *_, entry in entries)
    note = f"; {open_} predicted pixels of 255 counted {OPEN[rule.open]}" if open_ else ""
    lines.append(f"mIoU by convention {first['convention']}: {rule.about}{note}")
    if interval := first.get("miou_interval"):
        units = "groups" if first.get("conditions", {}).get("groups") else "images"
        seeds = first.get("seeds", {})
        units += " and, apart from them, of the seeds" if len(seeds) > 1 else ""
        draws = f"{interval['samples']} bootstrap samples of the {units}, seed {interval['seed']}"
        lines.append(f"intervals: {draws}")
    lines += _seed_remarks(entries)
    if first.get("boundary_tolerance"):
        lines.append(f"boundary F within {describe_tolerance(first['boundary_tolerance'])}")
    return lines


def _seed_remarks(entries: Sequence[tuple[str, str, Any]]) -> list[str]:
    """The figure of every seed, and what the runs do not have in common."""
    lines = []
    for stage, name, entry in entries:
        if seeds := entry.get("seeds"):
            values = ", ".join(f"{percent(e['miou'])} (seed {seed})" for seed, e in seeds.items())
            lines.append(f"mIoU of {stage} {name} by seed: {values}")
        lines += [f"caution, {stage} {name}: {text}" for text in entry.get("cautions", ())]
    return lines + (["±: deviation over seeds"] if lines else [])


def print_comparison(lines: Sequence[Line]) -> None:
    """Print mean IoU of every run, its difference from the first, and cautions."""
    console = Console()
    first = next(
        match.against_first.difference
        for line in lines
        for match in line.matches
        if match.against_first
    )
    level = f"{100 * first.level:g} %"
    table = Table(
        "",
        Column("run", overflow="fold"),
        *(Column(h, no_wrap=True) for h in ("mIoU", "points", level, "ratio", "p")),
    )
    for line in lines:
        for match in line.matches:
            where = f"{line.stage} {line.list}" if match.against_first is None else ""
            table.add_row(where, match.name, _figure(match.entry, "miou"), *_against(match))
        table.add_section()
    console.print(table)
    console.print(
        f"points: difference from the first run, with its {level} interval: paired bootstrap over"
        f" {drawn_units(lines)}, {first.samples} samples, seed {first.seed}; p is two-sided",
        highlight=False,
        soft_wrap=True,
    )
    for line in lines:
        for match in line.matches:
            for flag in match.flags:
                text = f"caution, {line.stage} {line.list} of {match.name}: {flag}"
                console.print(text, markup=False, highlight=False, soft_wrap=True)


def drawn_units(lines: Sequence[Line]) -> str:
    """What the bootstrap of a comparison draws, in words."""
    paired = [match.against_first for line in lines for match in line.matches]
    most = max(max(one.seeds) for one in paired if one)
    return "images and seeds" if most > 1 else "images"


def _against(match: Match) -> list[str]:
    if match.against_first is None:
        return ["", "", "", ""]
    gain, ratio, p = (
        match.against_first.difference,
        match.against_first.ratio,
        match.against_first.p,
    )
    if np.isnan(gain.value):
        return ["-", "-", "-", "-"]
    # A smaller p would rest on fewer than five of 10,000 samples.
    p_text = "< 0.001" if p < 0.001 else f"{p:.3f}"
    interval = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
    return [f"{100 * gain.value:+.1f}", interval, f"{ratio.value:.3f}", p_text]


def percent(value: float | None) -> str:
    """0.468 as ``46.8``; a dash where there is no number."""
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(interval: Mapping[str, Any] | None) -> str:
    return "-" if interval is None else f"{percent(interval['low'])} - {percent(interval['high'])}"

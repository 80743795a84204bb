"""Tables for the terminal: methods and their knobs, weight files, figures."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.methods.base import method_classes, method_module, method_names
from trainer.nets.weights import StoredWeights


def list_methods() -> list[dict[str, str]]:
    """Name and first line of the documentation of every method."""
    documents = {name: inspect.getdoc(method_module(name)) or "" for name in method_names()}
    return [{"method": name, "about": text.splitlines()[0], "paper": _paper(text)} for name, text in documents.items()]


def describe_method(name: str) -> dict[str, Any]:
    """Documentation, knobs (name, default, meaning) and presets of a method.

    Raises:
        ConfigError: no such method.
    """
    module, (_, config) = method_module(name), method_classes(name)
    meanings: dict[str, str] = {}
    for described in reversed(config.__mro__):
        meanings |= _attributes(described.__doc__ or "")
    knobs = [
        {"knob": f.name, "default": str(f.default), "values": str(f.type), "meaning": meanings.get(f.name, "")}
        for f in dataclasses.fields(config)
    ]
    presets = {key: {k: str(v) for k, v in changes.items()} for key, changes in getattr(module, "PRESETS", {}).items()}
    return {"method": name, "about": inspect.getdoc(module) or "", "knobs": knobs, "presets": presets}


def print_catalogue(value: Any) -> None:
    """Print what ``list_methods`` or ``describe_method`` returned."""
    console = Console()
    rows = value if isinstance(value, list) else value["knobs"]
    if isinstance(value, dict):
        console.print(value["about"], markup=False)
    table = Table(*rows[0]) if rows else Table("no knobs")
    for row in rows:
        table.add_row(*(str(cell) for cell in row.values()))
    console.print(table)
    for name, changes in value["presets"].items() if isinstance(value, dict) else ():
        changed = " ".join(f"--set {knob}={new}" for knob, new in changes.items()) or "the defaults"
        console.print(f"--preset {name}: {changed}", markup=False, highlight=False, soft_wrap=True)


def print_weights(stored: list[StoredWeights], as_json: bool) -> None:
    """Print the weight cache."""
    rows = [{k: None if v is None else str(v) for k, v in dataclasses.asdict(s).items()} for s in stored]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("backbone", "in the cache", "file to bring", "supervision")
    for row in rows:
        table.add_row(row["backbone"], row["path"] or "no", row["file_name"] or "-", row["supervision"] or "-")
    Console().print(table)


def print_evaluation(evaluation: dict[str, dict[str, Any]]) -> None:
    """Print a table of mean IoU and class IoU, and the protocol of each line under it."""
    entries = [(stage, name, entry) for stage, lines in evaluation.items() for name, entry in lines.items()]
    if not entries:
        print("nothing was measured: no list of this data set has true masks")
        return
    table = Table("", *(f"{stage}\n{name}".replace("_", "\n") for stage, name, _ in entries))
    table.add_row("mIoU", *(_percent(entry["miou"]) for *_, entry in entries), style="bold", end_section=True)
    for label in entries[0][2]["iou"]:
        table.add_row(label, *(_percent(entry["iou"][label]) for *_, entry in entries))
    table.add_section()
    thresholds = [entry["threshold"] for *_, entry in entries]
    table.add_row("threshold", *("-" if t is None else f"{t:.2f}" for t in thresholds))
    table.add_row("chosen", *((entry["threshold_from"] or "-").replace("_", "\n") for *_, entry in entries))
    console = Console()
    console.print(table)
    for stage, name, entry in entries:
        console.print(f"{stage} {name}: {entry['protocol']}", markup=False, highlight=False, soft_wrap=True)
    for name, weak in evaluation.get("segment", {}).items():
        full = evaluation.get("segment_full", {}).get(name)
        if full:
            console.print(f"weak / full on {name}: {weak['miou'] / full['miou']:.3f}")


def _paper(text: str) -> str:
    paragraphs = text.split("\n\n")
    return " ".join(paragraphs[1].split()) if len(paragraphs) > 1 else ""


def _attributes(text: str) -> dict[str, str]:
    """Name -> meaning of an ``Attributes:`` section."""
    section = inspect.cleandoc(text).partition("Attributes:\n")[2]
    meanings: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(section).splitlines():
        if line and not line.startswith(" ") and ":" in line:
            name, _, rest = line.partition(":")
            meanings[name] = rest.strip()
        elif name:
            meanings[name] += " " + line.strip()
    return {k: v.strip() for k, v in meanings.items()}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"

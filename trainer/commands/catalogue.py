"""Tables for the terminal: methods and their knobs, weight files."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainer.config import ranges
from trainer.methods.recipes import RECIPES
from trainer.methods.registry import declaration, method_module, method_names
from trainer.weights.cache import StoredWeights


def list_methods() -> list[dict[str, str]]:
    """Name, description and paper of every method."""
    documents = {name: inspect.getdoc(method_module(name)) or "" for name in method_names()}
    return [
        {"method": name, "about": _paragraph(text, 0), "paper": _paragraph(text, 1)}
        for name, text in documents.items()
    ]


def describe_method(name: str) -> dict[str, Any]:
    """Documentation of a method, its knobs (default, value in each preset, meaning), its presets,
    and its published training.

    Raises:
        ConfigError: no such method.
    """
    module, method = method_module(name), declaration(name)
    config: type[Any] = method.config
    presets, training = _texts(method.presets), _texts(method.training)
    meanings: dict[str, str] = {}
    # From the base class down, so that a method's own words about a knob prevail.
    for base in reversed(config.__mro__):
        meanings |= _attributes(base.__doc__ or "")
    knobs, hints, limits = [], typing.get_type_hints(config), ranges(config)
    for f in dataclasses.fields(config):
        default, key = _text(f.default), f"method.{f.name}"
        by_preset = {preset: changes.get(key, default) for preset, changes in presets.items()}
        values = _values(hints[f.name])
        if f.name in limits:
            values += f", {limits[f.name]}"
        about = {"values": values, "meaning": meanings.get(f.name, "")}
        knobs.append({"knob": f.name, "default": default, **by_preset, **about})
    return {
        "method": name,
        "about": inspect.getdoc(module) or "",
        "knobs": knobs,
        "presets": presets,
        "training": training,
    }


def print_catalogue(value: Any) -> None:
    """Print the result of ``list_methods`` or ``describe_method``."""
    console = Console()
    if isinstance(value, list):
        table = Table(*value[0])
        for row in value:
            table.add_row(*row.values())
        console.print(table)
        return
    console.print(_reflowed(value["about"]), markup=False, highlight=False)
    for row in value["knobs"]:
        # Only the presets that differ from the default: those are what a reader looks for.
        others = [f"{p}: {row[p]}" for p in value["presets"] if row[p] != row["default"]]
        head = [f"\nmethod.{row['knob']}={row['default']}", row["values"], *others]
        console.print("   ".join(head).rstrip(), markup=False)
        console.print(Padding(Text(row["meaning"].replace("``", "`")), (0, 0, 0, 4)))
    console.print()
    for title, changes in _settings(value).items():
        text = " ".join(f"--set {knob}={new}" for knob, new in changes.items()) or "the defaults"
        console.print(f"{title}: {text}", markup=False, highlight=False, soft_wrap=True)


def _settings(value: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Title -> knobs of each preset, of its additions for one recipe, and of published training."""
    lines: dict[str, dict[str, str]] = {}
    for preset, changes in value["presets"].items():
        lines[f"--preset {preset}"] = {}
        for knob, new in changes.items():
            section, _, name = knob.partition(".")
            if section in RECIPES:
                title = f"--preset {preset}, also with recipe {section}"
                lines.setdefault(title, {})[f"classify.{name}"] = new
            else:
                lines[f"--preset {preset}"][knob] = new
    return lines | {
        f"recipe {key}, as published": {f"classify.{k}": v for k, v in changes.items()}
        for key, changes in value["training"].items()
    }


def print_weights(entries: list[StoredWeights], as_json: bool) -> None:
    """Print which weights are on this machine, and which files the other networks need."""
    if as_json:
        print(json.dumps([dataclasses.asdict(e) for e in entries], indent=1, default=str))
        return
    for entry in (e for e in entries if e.path):
        facts = [
            f"{entry.size / 1e6:.0f} MB" if entry.size else "",
            f"supervision: {entry.supervision}",
            f"licence: {entry.licence}" if entry.licence else "",
            f"{entry.place}: {entry.path if entry.place == 'cache' else entry.source}",
        ]
        print(f"{entry.backbone}: {', '.join(fact for fact in facts if fact)}")
    print("not on this machine (backbone: file to bring):")
    for entry in (e for e in entries if not e.path):
        print(f"  {entry.backbone}: {entry.file_name or '-'}")


def _reflowed(text: str) -> str:
    """Each paragraph as one line, for the terminal to wrap; indented ones hold formulas."""
    paragraphs = text.replace("``", "`").split("\n\n")
    return "\n\n".join(p if "\n " in f"\n{p}" else " ".join(p.split()) for p in paragraphs)


def _paragraph(text: str, number: int) -> str:
    paragraphs = text.split("\n\n")
    return " ".join(paragraphs[number].split()) if len(paragraphs) > number else ""


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


def _values(hint: Any) -> str:
    """The type of a knob in words: choices, ``int``, ``numbers,...``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin is tuple:
        return f"{_values(arguments[0])},..."
    if origin in (typing.Union, types.UnionType):
        return "|".join(_values(option) for option in arguments)
    return "on|off" if hint is bool else {"str": "text"}.get(hint.__name__, hint.__name__)


def _texts(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    return {key: {k: _text(v) for k, v in row.items()} for key, row in table.items()}


def _text(value: Any) -> str:
    """A knob's value as ``--set`` takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

"""Command lines of ours, wherever people read them: every word is checked, and nothing runs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from documented import ROOT
from typer.main import get_command

from serving.cli import app as serving_app
from serving.config import ServerConfig
from serving.settings import set_values
from trainer.cli import app as trainer_app
from trainer.commands.fit import options_of
from trainer.errors import ConfigError
from trainer.options import Configs, Options, make_configs
from trainer.progress import Log, set_log

APPS = {"wsss-trainer": trainer_app, "wsss-serving": serving_app}
BENCH = ROOT / "bench"
# In place of an argument that a line lacks.
WORD = "1"
MOST_ARGUMENTS = 4
# The page that tells how to add a method adds this one.
NEW_METHOD = "bright_cam"


def check(line: str) -> None:
    """Fail unless every word of a line is one that our command line, or our program, takes.

    A line may lack arguments: a text often names a command and one option of it.
    """
    script, *words = shlex.split(line, comments=True)
    if script == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[-1]}:", makefile, re.MULTILINE)
    elif script in APPS:
        check_command(script, words)
    else:
        place, *words = words
        further = words_for_fit(ROOT / place, words)
        if further:
            check_command("wsss-trainer", ["fit", "DATA", *further])


def check_command(script: str, words: list[str]) -> None:
    name, command = script, command_of(script)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{name} has no command {words[0]}"
        name, *words = words
        command = command.commands[name]
    own, further = split_at_dashes(words)
    params = parse(command, name, own)
    if name == "fit" and params:
        check_knobs(params)
    elif name == "serve" and params:
        set_values(ServerConfig(), params["set_"] or [])
    else:
        names = {text.partition("=")[0] for text in params.get("settings") or []}
        assert names <= KNOBS
    if further:
        # budget and reproduce hand these on.
        check_command("wsss-trainer", ["fit", "DATA", *further])


def check_knobs(params: Mapping[str, Any]) -> None:
    """Let ``fit`` put its knobs together, as it does before it opens anything else."""
    if params["method"] == NEW_METHOD:
        return
    try:
        make_configs(options_of(params)[0])
    except ConfigError as error:
        # A knob may name a file or a folder, which is not here.
        if not re.search(" is (not a file|no folder)", str(error)):
            raise


def command_of(script: str) -> Any:
    return get_command(APPS[script])


def split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def parse(command: Any, name: str, words: list[str]) -> Mapping[str, Any]:
    """The parameters of a command; none of one that only prints, or that lacks an argument."""
    try:
        params: Mapping[str, Any] = command.make_context(name, words).params
        return params
    except typer.Exit:
        return {}
    except Exception as error:
        # Arguments are missed last, so everything that is there was parsed.
        if words and type(error).__name__ != "MissingParameter":
            raise
        return {}
    finally:
        # An option of the trainer sets it as soon as it is parsed.
        set_log(Log.text)


def knobs() -> set[str]:
    """``section.key`` of every knob that all methods have."""
    configs = make_configs(Options(Path("DATA"), Path("RUN")))
    return {
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Configs)
        for field in dataclasses.fields(getattr(configs, section.name))
    }


KNOBS = knobs()


def program(place: Path) -> Path:
    """The file that Python runs for a path."""
    return place / "__main__.py" if place.is_dir() else place


@contextlib.contextmanager
def opened(place: Path) -> Iterator[ModuleType]:
    """A program as a module, with its own folder first on the import path, as Python has it.

    What it imports from there is forgotten afterwards: tests have modules of the same names.
    """
    # bench/encodings.py is one of Python's own names: there, too, Python's module stands first.
    names = {path.stem for path in BENCH.rglob("*.py")} - sys.stdlib_module_names - {"__main__"}
    path, others = sys.path[:], {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(place.parent))
    name = f"program_{place.stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec
    assert spec.loader
    # Dataclasses look their module up there.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path[:] = path
        for forgotten in (*names, name):
            sys.modules.pop(forgotten, None)
        sys.modules.update({name: other for name, other in others.items() if other})


class ParsedError(Exception):
    """Ends a program as soon as it has parsed its options."""

    def __init__(self, further: list[str]) -> None:
        super().__init__("parsed")
        self.further = further


class OptionsError(Exception):
    """What a program says of wrong options."""


def words_for_fit(place: Path, words: list[str]) -> list[str]:
    """Let a program parse ``words``; returns those that it hands on to ``fit``.

    Raises:
        OptionsError: the program refuses them.
    """
    known = argparse.ArgumentParser.parse_known_args
    depth = 0

    def parse_known(self: Any, args: Any = None, namespace: Any = None) -> Any:
        nonlocal depth
        depth += 1
        try:
            result = known(self, args, namespace)
        finally:
            depth -= 1
        # A subcommand has a parser of its own.
        if depth:
            return result
        raise ParsedError(result[1])

    def parse_all(self: Any, args: Any = None, namespace: Any = None) -> Any:
        _, further = known(self, args, namespace)
        raise OptionsError(f"unknown: {further}") if further else ParsedError([])

    def refuse(self: Any, message: str) -> None:
        raise OptionsError(message)

    file = program(place)
    with opened(file) as module, pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_all)
        patch.setattr(argparse.ArgumentParser, "error", refuse)
        for missing in range(MOST_ARGUMENTS):
            lacking = ["--", *[WORD] * missing] if missing else []
            patch.setattr(sys, "argv", [str(file), *words, *lacking])
            try:
                module.main()
            except ParsedError as parsed:
                return parsed.further
            except OptionsError as error:
                if not str(error).startswith("the following arguments are required"):
                    raise
    raise OptionsError(f"{place} does not end to miss arguments")

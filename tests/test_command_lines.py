"""No page, help text, error or docstring names a command, an option or a knob that is not there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_lines import APPS, BENCH, check, command_of, opened, words_for_fit
from documented import PAGES, ROOT, every_line

INLINE = re.compile(r"`(?:[A-Z_]+=\S+ )?((?:wsss-trainer|wsss-serving|python bench/)[^`\n]*)`")
HELP = re.compile(
    r"(?:^  |Example: )(wsss-(?:trainer|serving) .*?)(?=\n\s*\n|\n\s*wsss-|\Z)",
    re.MULTILINE | re.DOTALL,
)
USAGE = re.compile(r"^    (?:[A-Z_]+=\S+ |\.venv/bin/)?(python (?:bench|docs)/.*)$", re.MULTILINE)
MENTION = re.compile(r"(wsss-trainer|wsss-serving) ([a-z]+)([^;,:]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
# What texts say after the name of a program that is no command of it.
PROSE = {"needs", "on", "that", "wrote"}
OTHERS = {
    "--conf-threshold": "cvat-cli",
    "--conv-mask-to-poly": "cvat-cli",
    "--allow-unmatched-labels": "cvat-cli",
    "--image-url": "cvat-cli",
    "--server-host": "cvat-cli",
    "--auth": "cvat-cli",
    "--disable-usage-stats": "ray",
    "--login": "az",
    "--shm-size": "docker",
    "--signal": "sbatch",
}
"""Options that the pages name of programs that are not ours."""
PROGRAMS = sorted(
    path
    for folder in (BENCH, ROOT / "docs")
    for path in folder.rglob("*.py")
    if re.search("command_line.parser|ArgumentParser\\(", path.read_text(encoding="utf-8"))
    and path.stem != "command_line"
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines_in_text() -> list[str]:
    """What the pages name within a sentence, each once, without the brackets of usage lines."""
    lines = {line for page in PAGES for line in INLINE.findall(page.read_text(encoding="utf-8"))}
    return sorted(re.sub(r"[][]|\.\.\.", "", line) for line in lines if " " in line)


def every_command(script: str) -> dict[str, Any]:
    """Commands of a program by name, those of groups as ``group command``."""

    def walk(prefix: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield prefix, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{prefix} {name}", inner)

    return dict(walk(script, command_of(script)))


COMMANDS = {name: command for script in APPS for name, command in every_command(script).items()}


@pytest.mark.parametrize("line", [*every_line(), *lines_in_text()])
def test_what_the_pages_say_can_be_typed(line: str) -> None:
    check(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_help_can_be_typed(name: str) -> None:
    command = COMMANDS[name]
    for text in (command.help, command.epilog):
        for line in HELP.findall(text or ""):
            # What stands in brackets at the end of an example explains it.
            check(" ".join(line.partition("   (")[0].split()))


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_a_program_starts_as_its_docstring_says(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False)
    lines = USAGE.findall(docstring or "")
    assert lines
    for line in lines:
        check(line)
    with opened(path), pytest.raises(SystemExit) as end:
        words_for_fit(path, ["--help"])
    assert end.value.code == 0


def options_by_command() -> dict[str, set[str]]:
    return {
        name: {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for name, command in COMMANDS.items()
    }


def texts_of(path: Path) -> Iterator[str]:
    """String constants, with a word in place of every value; docstrings are none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    formats = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    others = docs | {id(part) for node in formats for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield "" if id(node) in others else node.value


@pytest.mark.parametrize("package", ["trainer", "serving"])
def test_messages_name_commands_and_options_that_exist(package: str) -> None:
    options, faults = options_by_command(), []
    for path in sorted((ROOT / package).rglob("*.py")):
        for text in texts_of(path):
            for script, word, rest in MENTION.findall(text):
                name = f"{script} {word}"
                # The commands of a group, such as weights, are two words.
                begin = f"{name}{rest} ".replace(".", " ")
                name = max((n for n in options if begin.startswith(f"{n} ")), key=len)
                unknown = set(OPTION.findall(rest)) - options.get(name, set())
                if unknown or (name == script and word not in PROSE):
                    faults.append(f"{name_of(path)}: {script} {word}{rest}")
    assert faults == []


def test_every_option_that_the_pages_name_is_one_of_ours_or_of_a_known_program() -> None:
    ours = set().union(*options_by_command().values()) | set(OTHERS)
    for path in PROGRAMS:
        ours |= set(OPTION.findall(path.read_text(encoding="utf-8")))
    faults = [
        f"{name_of(page)}: {option}"
        for page in PAGES
        for option in re.findall(r"`(--[a-z][a-z-]+)", page.read_text(encoding="utf-8"))
        if option not in ours
    ]
    assert faults == []

"""Stages that another run has done already, with the same key, are taken over and not done again.

Runs that differ in their seed share what does not depend on it. Rows of a table that differ in
their maps share the classifier.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from trainer.files import write_atomic
from trainer.plan import Plan
from trainer.run import Run, is_run

OWN = ("evaluate",)
"""Stages that every run does by itself: its figures name its seed."""


def share(plan: Plan, siblings: Iterable[Path], say: Callable[[str], None]) -> None:
    """Take over the stages of a plan that a run of ``siblings`` has done with the same key.

    Files are hard links where the disk allows it. That is safe because every stage replaces its
    files whole and changes none of them in place.

    Args:
        plan: whose run takes them over.
        siblings: other runs; those that are not there yet are passed over.
        say: is told of each stage that is taken over.

    Raises:
        RunError: a manifest cannot be read.
    """
    run = plan.context.run
    if run.second:
        return
    others = [Run(path) for path in siblings if is_run(path) and path != run.path]
    for stage in plan.stages:
        key = plan.keys[stage.name]
        if stage.name in OWN or run.done(stage.name, key):
            continue
        owner = next((other for other in others if other.done(stage.name, key)), None)
        if owner:
            _take(run, owner, stage.name, stage.folder or stage.name)
            say(f"{stage.name}: taken over from {owner.path}, where it is the same")


def _take(run: Run, owner: Run, name: str, folder: str) -> None:
    entry = owner.manifest["stages"][name]
    target = run.path / folder
    if run.is_stale(name, entry["key"]) and target.exists():
        run.set_aside(name, target)
    # Runs of earlier versions do not list their places.
    for place in entry.get("files") or [folder]:
        source, target = owner.path / place, run.path / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)
        else:
            _link(source, target)
    _take_curves(run, owner, name)
    run.manifest["stages"][name] = {**entry, "taken_from": os.path.relpath(owner.path, run.path)}
    # Last: a copy that is killed half-way is done again.
    run.save()


def _link(source: str | Path, target: str | Path) -> None:
    part = Path(target).with_name(f".{Path(target).name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        # Another disk, or one without hard links.
        shutil.copy2(source, part)
    os.replace(part, target)
    # Where both are the same file already, renaming does nothing.
    part.unlink(missing_ok=True)


def _take_curves(run: Run, owner: Run, name: str) -> None:
    """The rows of a stage in ``metrics.csv``, which the report draws."""
    source, target = owner.path / "metrics.csv", run.path / "metrics.csv"
    if not source.exists():
        return
    with open(source, newline="") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    others: list[list[str]] = []
    if target.exists():
        with open(target, newline="") as file:
            others = [row for row in csv.reader(file) if row[:1] not in ([name], head[:1])]
    own = [row for row in rows if row[:1] == [name]]
    if own:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([head, *others, *own])
        # Whole or not at all: the curves of other stages stand in it too.
        write_atomic(target, text.getvalue().encode())

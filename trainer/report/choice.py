"""The images of a report: the first ones of each list, and the worst ones of each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from trainer.data.dataset import Dataset
from trainer.maps.camfile import cam_path
from trainer.report.facts import Facts

# Stages in the order in which their worst images get places.
_WORST = ("segment", "refined", "cam", "segment_full")


@dataclass(frozen=True)
class Sheet:
    """A titled choice of images of one list."""

    title: str
    list: str
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Worst:
    """Images of one list by their mean IoU at a stage, lowest first."""

    stage: str
    list: str
    entries: tuple[Mapping[str, Any], ...]


def worst_lists(facts: Facts) -> list[Worst]:
    """The worst images of every evaluated stage and list."""
    lists = []
    for stage in _WORST:
        for name in facts.lists:
            worst = facts.evaluation.get(stage, {}).get(name, {}).get("worst") or ()
            entries = tuple(entry for entry in worst if isinstance(entry, Mapping))
            lists += [Worst(stage, name, entries)] if entries else []
    return lists


def choose_sheets(facts: Facts, dataset: Dataset, max_images: int) -> list[Sheet]:
    """At most ``max_images`` images, each once, list after list, val first.

    A third are the first images of the first list, and a third those of another list where only
    that has refined masks. The rest are the worst images, stages and lists taking turns, then more
    of the first ones. Lists without any output are skipped, so a run without val has images too.
    """
    names = [
        n for n in _names(facts, dataset) if next(_outputs(facts.run, dataset, n), None) is not None
    ]
    if max_images < 1 or not names:
        return []
    main, third = names[0], max_images // 3
    other = _refined_elsewhere(facts.run, dataset, names)
    elsewhere = list(islice(_refined(facts.run, dataset, other), third)) if other else []
    places = set(elsewhere)
    others = (i for i in _outputs(facts.run, dataset, main) if i not in places)
    first = list(islice(others, max(third, 1)))
    places.update(first)
    worst: dict[str, list[str]] = {}
    for name, i in _turns(facts):
        exists = name in names and i in dataset.records and _has_output(facts.run, name, i)
        if exists and i not in places and len(places) < max_images:
            places.add(i)
            worst.setdefault(name, []).append(i)
    first += islice(others, max_images - len(places))
    sheets = []
    for name in names:
        begin = first if name == main else elsewhere if name == other else []
        for title, ids in (("First", begin), ("Worst", worst.get(name, []))):
            sheets += [Sheet(f"{title} images of {name}", name, tuple(ids))] if ids else []
    return sheets


def mask_path(run: Path, record_id: str) -> Path:
    """The file of the pseudo mask of an image."""
    return run / "masks" / f"{record_id}.png"


def prediction_path(run: Path, stage: str, list_name: str, record_id: str) -> Path:
    """The file of a segmenter's prediction for an image."""
    return run / stage / "predictions" / list_name / f"{record_id}.png"


def _names(facts: Facts, dataset: Dataset) -> list[str]:
    """Lists, measured ones first, then those like val and train."""
    names = [n for n in dataset.lists if n != "all"] or ["all"]
    return sorted(
        names,
        key=lambda n: (
            n not in facts.lists,
            n != "val",
            not n.startswith("val"),
            not n.startswith("train"),
        ),
    )


def _outputs(run: Path, dataset: Dataset, list_name: str) -> Iterator[str]:
    return (i for i in dataset.lists[list_name] if _has_output(run, list_name, i))


def _refined(run: Path, dataset: Dataset, list_name: str) -> Iterator[str]:
    return (i for i in dataset.lists[list_name] if mask_path(run, i).exists())


def _has_output(run: Path, list_name: str, record_id: str) -> bool:
    predictions = (
        prediction_path(run, stage, list_name, record_id) for stage in ("segment", "segment_full")
    )
    paths = (cam_path(run / "cams", record_id), mask_path(run, record_id), *predictions)
    return any(path.exists() for path in paths)


def _refined_elsewhere(run: Path, dataset: Dataset, names: Sequence[str]) -> str | None:
    """The first list with refined masks, where the first of all has none."""
    first = next((n for n in names if next(_refined(run, dataset, n), None) is not None), None)
    return None if first == names[0] else first


def _turns(facts: Facts) -> Iterator[tuple[str, str]]:
    """``(list, id)`` of the worst image of every stage and list, then of the second worst, ..."""
    # In turns, because the worst images of one stage would otherwise fill all places.
    for rank in zip_longest(
        *([(w.list, str(e.get("id"))) for e in w.entries] for w in worst_lists(facts))
    ):
        yield from (entry for entry in rank if entry is not None)

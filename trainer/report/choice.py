"""Which images a report shows: first ones of a list, and those that each stage does worst on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from trainer.data.dataset import Dataset
from trainer.maps.camfile import cam_path
from trainer.report.facts import Facts

#: Stages in the order in which their worst images get their places.
_WORST = ("segment", "refined", "cam", "segment_full")


@dataclass(frozen=True)
class Sheet:
    """A titled choice of images of one list."""

    title: str
    list: str
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Worst:
    """Images of one list, by the mean IoU that a stage has on each, lowest first."""

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

    A third are the first images of the first list; a third those of another list where only that
    has refined masks; the rest are the worst images, the stages and lists taking turns, then more
    of the first ones. Lists without any output are passed over: a run without val still shows what
    it has.
    """
    names = [
        n for n in _names(facts, dataset) if next(_outputs(facts.run, dataset, n), None) is not None
    ]
    if max_images < 1 or not names:
        return []
    main, third = names[0], max_images // 3
    other = _refined_elsewhere(facts.run, dataset, names)
    elsewhere = list(islice(_refined(facts.run, dataset, other), third)) if other else []
    taken: dict[str, str] = dict.fromkeys(elsewhere, other or "")
    unseen = (i for i in _outputs(facts.run, dataset, main) if i not in taken)
    first = list(islice(unseen, max(third, 1)))
    taken.update(dict.fromkeys(first, main))
    worst: dict[str, list[str]] = {}
    for name, i in _turns(facts):
        known = name in names and i in dataset.records and _has_output(facts.run, name, i)
        if known and i not in taken and len(taken) < max_images:
            taken[i] = name
            worst.setdefault(name, []).append(i)
    first += islice(unseen, max_images - len(taken))
    sheets = []
    for name in names:
        begin = first if name == main else elsewhere if name == other else []
        sheets += [Sheet(f"First images of {name}", name, tuple(begin))] if begin else []
        sheets += (
            [Sheet(f"Worst images of {name}", name, tuple(worst[name]))] if name in worst else []
        )
    return sheets


def mask_path(run: Path, record_id: str) -> Path:
    """Pseudo mask of an image."""
    return run / "masks" / f"{record_id}.png"


def prediction_path(run: Path, stage: str, list_name: str, record_id: str) -> Path:
    """What the segmenter of ``stage`` says about an image."""
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
    """Images of a list that have any output, in its order."""
    return (i for i in dataset.lists[list_name] if _has_output(run, list_name, i))


def _refined(run: Path, dataset: Dataset, list_name: str) -> Iterator[str]:
    """Images of a list that have a refined mask."""
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
    """``(list, id)`` of the worst image of every stage and list, then of the second worst, and so
    on.
    """
    for rank in zip_longest(
        *([(w.list, str(e.get("id"))) for e in w.entries] for w in worst_lists(facts))
    ):
        yield from (entry for entry in rank if entry is not None)

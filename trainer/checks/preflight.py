"""A look at the data before a run: tags, lists, headers, and a sample of the masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.checks.inspection import Problem, inspect_mask, problems_of
from trainer.checks.lists import about_overlap, about_training, tag_counts
from trainer.data.dataset import Dataset, Record, group_count
from trainer.data.pixels import image_size
from trainer.errors import DataError, some

SAMPLE = 200
SAMPLE_PIXELS = 100_000_000
"""At most so many masks, and pixels of them, are decoded before a run."""


@dataclass(frozen=True)
class ListFacts:
    """An image list in numbers.

    Attributes:
        name: of the list.
        images: how many it has.
        negatives: how many of them show no class.
        positives: how many of them have a tag.
        unknown: how many of them may show a class of which nobody said so.
        groups: how many groups they belong to.
        masks: how many have a true mask.
        tags: images of each class.
    """

    name: str
    images: int
    negatives: int
    masks: int
    tags: dict[str, int]
    positives: int = 0
    unknown: int = 0
    groups: int = 0

    @classmethod
    def of(cls, dataset: Dataset, name: str) -> ListFacts:
        """The facts of list ``name``."""
        records = dataset.subset(name)
        return cls(
            name,
            len(records),
            sum(record.is_negative for record in records),
            len(dataset.masked(name)),
            {each: count.present for each, count in tag_counts(dataset, records).items()},
            sum(bool(record.tags) for record in records),
            sum(bool(record.unknown) for record in records),
            group_count(records),
        )

    def line(self) -> str:
        """The numbers in words."""
        parts = [
            f"{self.images} images",
            f"{self.positives} with a tag and {self.negatives} that show no class",
        ]
        parts += [f"{self.unknown} with unknown classes"] if self.unknown else []
        parts += [f"in {self.groups} groups"] if self.groups else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Preflight:
    """What a run trains and measures on, and what is wrong with it.

    Attributes:
        format: of the data set.
        tags_from: the source of the tags.
        masks_from: the source of the true masks; empty without any.
        trained: the training list.
        true_masks: whether a segmenter learns from true masks too.
        measured: lists with true masks that figures are for.
        unused: images of each other list.
        notes: remarks of the reader, such as what is left out.
        problems: errors first.
        scored: lists whose tags the classifier's scores are measured against.
    """

    format: str
    tags_from: str
    masks_from: str
    trained: ListFacts
    true_masks: bool
    measured: tuple[ListFacts, ...]
    unused: dict[str, int]
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]
    scored: tuple[str, ...] = ()

    def report(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A few lines for people."""
        facts = self.trained
        tags = some((f"{name} {count}" for name, count in facts.tags.items()), 20)
        truth = f"; the upper bound on {facts.masks} true masks" if self.true_masks else ""
        figures = [f"{each.name!r} ({each.masks} of {each.images})" for each in self.measured]
        lines = [
            f"trains on {facts.name!r}: {facts.line()}; tags from {self.tags_from}: {tags}{truth}",
            f"measures on images with a true mask: {', '.join(figures)}"
            if figures
            else f"measures {'no masks' if self.scored else 'nothing'}: no image of the training or"
            " validation list has a true mask",
        ]
        others = [each for each in self.measured if each.name != facts.name]
        lines += [f"{each.name!r} has {each.line()}" for each in others]
        if self.scored:
            names = ", ".join(map(repr, self.scored))
            lines.append(f"measures the classifier's scores on the tags of {names}")
        if self.unused:
            lists = some((f"{name} {count}" for name, count in self.unused.items()), 8)
            lines.append(f"does not use the lists: {lists}")
        lines += [f"note: {note}" for note in self.notes]
        for problem in self.problems:
            if problem.severity != "info":
                names = f" ({some(problem.names)})" if problem.names else ""
                hint = f"; {problem.hint}" if problem.hint else ""
                lines.append(f"{problem.severity}: {problem.message}{names}{hint}")
        return lines

    def raise_errors(self) -> None:
        """Stop where something would end the training or spoil its figures.

        Raises:
            DataError: there are errors; it lists all of them.
        """
        errors = [problem for problem in self.problems if problem.severity == "error"]
        if errors:
            texts = (e.message + (f": {some(e.names)}" if e.names else "") for e in errors)
            listing = "\n  ".join(texts)
            hints = dict.fromkeys(error.hint for error in errors if error.hint)
            raise DataError(
                f"the data cannot be used as they are:\n  {listing}",
                "masks and tags that fit",
                "; ".join(hints) or "wsss-trainer check DATA shows everything",
            )


def preflight(
    dataset: Dataset,
    train_list: str,
    measured: Sequence[str],
    true_masks: bool,
    masks_used: bool,
    scored: Sequence[str] = (),
) -> Preflight:
    """Look at what a run is going to use.

    Args:
        dataset: the data set.
        train_list: list to train on.
        measured: lists with true masks to measure on.
        true_masks: whether a segmenter learns from true masks.
        masks_used: whether the run measures, or trains on true masks, so that bad masks stop it.
        scored: lists whose tags the classifier's scores are measured against.
    """
    lists = {name: len(ids) for name, ids in dataset.lists.items() if name != "all"}
    reported = list(dict.fromkeys((*measured, *scored)))
    problems = [
        *about_training(dataset, train_list, true_masks),
        *about_overlap(dataset, train_list, reported),
    ]
    if masks_used:
        names = [*measured, train_list] if true_masks else measured
        records = {record.id: record for name in names for record in dataset.masked(name)}
        problems += about_masks(dataset, list(records.values()))
    problems.sort(key=lambda problem: ("error", "warning", "info").index(problem.severity))
    return Preflight(
        dataset.format,
        dataset.tags_from,
        dataset.masks_from,
        ListFacts.of(dataset, train_list),
        true_masks,
        tuple(ListFacts.of(dataset, name) for name in measured),
        {name: n for name, n in lists.items() if name not in (train_list, *reported)},
        dataset.notes,
        tuple(problems),
        tuple(scored),
    )


def data_entry(dataset: Dataset, look: Preflight) -> dict[str, Any]:
    """What ``manifest.json`` says about the data of a run."""
    return {
        "path": str(dataset.root.resolve()),
        "format": dataset.format,
        "fingerprint": dataset.fingerprint(),
        "classes": list(dataset.classes),
        "lists": {name: len(ids) for name, ids in dataset.lists.items()},
        "tags_from": dataset.tags_from,
        "used": look.report(),
    }


def about_masks(dataset: Dataset, records: Sequence[Record]) -> Iterator[Problem]:
    """Masks that cannot be used: of all of them the size in the header, of a sample the values."""
    traits: dict[str, list[tuple[str, str]]] = defaultdict(list)
    step, pixels = max(1, len(records) // SAMPLE), 0
    for number, record in enumerate(records):
        try:
            size = image_size(record.image)
        except DataError:
            continue  # The images are checked by themselves.
        if number % step == 0 and pixels < SAMPLE_PIXELS:
            pixels += size[0] * size[1]
            details = inspect_mask(dataset, record, size)
        else:
            details = _inspect_header(dataset, record, size)
        for kind, detail in details:
            traits[kind].append((record.id, detail))
    yield from problems_of(traits)


def _inspect_header(
    dataset: Dataset, record: Record, size: tuple[int, int]
) -> Iterator[tuple[str, str]]:
    """Traits of a mask by its header, for an image of ``size``."""
    try:
        mask = dataset.mask_size(record) or size
    except DataError as error:
        yield "mask-unreadable", error.found
        return
    if mask != size:
        yield "mask-size", f"{mask[1]}x{mask[0]} for an image of {size[1]}x{size[0]}"

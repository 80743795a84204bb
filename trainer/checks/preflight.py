"""What is known about a data set without decoding its images: from tags, lists, headers, and a
sample of the masks. ``fit`` looks at it and prints it before it starts; ``check`` goes further.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.checks.inspection import KINDS, SHOWS, Problem, inspect_mask
from trainer.data.dataset import Dataset, Record
from trainer.data.pixels import image_size
from trainer.errors import DataError, some

Traits = Mapping[str, Sequence[tuple[str, str]]]
"""By key of ``KINDS``: names of images, masks or files, each with a detail in words or ""."""
SAMPLE = 200
SAMPLE_PIXELS = 100_000_000
"""How many masks are decoded before a training, and how many pixels of them."""
BINARY_HINT = (
    "255 is 'ignore': where it is the object, --set data.masks=binary reads it so, for one class or"
    " images with one tag; else save masks with the values 1 to K"
)


@dataclass(frozen=True)
class ListFacts:
    """An image list, in numbers.

    Attributes:
        name: of the list.
        images: how many it has.
        negatives: those without any tag.
        masks: those with a true mask.
        tags: images of each class.
    """

    name: str
    images: int
    negatives: int
    masks: int
    tags: dict[str, int]

    @classmethod
    def of(cls, dataset: Dataset, name: str) -> ListFacts:
        """The facts of list ``name``."""
        records = dataset.subset(name)
        counts = dataset.tag_matrix(records).sum(axis=0).astype(int).tolist()
        return cls(
            name,
            len(records),
            sum(not record.tags for record in records),
            len(dataset.masked(name)),
            dict(zip(dataset.classes, counts, strict=True)),
        )


@dataclass(frozen=True)
class Preflight:
    """What a run trains and measures on, and what is wrong with it.

    Attributes:
        format: of the data set.
        tags_from: where tags come from.
        masks_from: where true masks come from; empty without any.
        trained: the training list.
        true_masks: whether a segmenter learns from true masks too.
        measured: lists with true masks that figures are given for.
        unused: images of each other list.
        notes: what was left out, and other remarks of the reader.
        problems: errors first.
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

    def report(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A few lines for people."""
        facts = self.trained
        tags = some((f"{name} {count}" for name, count in facts.tags.items()), 20)
        truth = f"; the upper bound on {facts.masks} true masks" if self.true_masks else ""
        lines = [
            f"trains on {facts.name!r}: {facts.images} images, {facts.negatives} of them without"
            f" a tag; tags from {self.tags_from}: {tags}{truth}"
        ]
        figures = [f"{each.name!r} ({each.masks} of {each.images})" for each in self.measured]
        lines.append(
            f"measures on images with a true mask: {', '.join(figures)}"
            if figures
            else "measures nothing: no image of the training or validation list has a true mask"
        )
        if self.unused:
            lists = some((f"{name} {count}" for name, count in self.unused.items()), 8)
            lines.append(f"does not use the lists: {lists}")
        lines += [f"note: {note}" for note in self.notes]
        lines += [
            f"{problem.severity}: {problem.message}"
            + (f" ({some(problem.names)})" if problem.names else "")
            + (f"; {problem.hint}" if problem.hint else "")
            for problem in self.problems
            if problem.severity != "info"
        ]
        return lines

    def raise_errors(self) -> None:
        """Stop where something would end the training or spoil its figures.

        Raises:
            DataError: all of it.
        """
        errors = [problem for problem in self.problems if problem.severity == "error"]
        if errors:
            listed = "\n  ".join(
                f"{error.message}" + (f": {some(error.names)}" if error.names else "")
                for error in errors
            )
            hints = dict.fromkeys(error.hint for error in errors if error.hint)
            raise DataError(
                f"the data cannot be used as they are:\n  {listed}",
                "masks and tags that fit",
                "; ".join(hints) or "wsss-trainer check DATA shows everything",
            )


def preflight(
    dataset: Dataset, train_list: str, measured: Sequence[str], true_masks: bool, masks_used: bool
) -> Preflight:
    """Look at what a run is going to use.

    Args:
        dataset: the data set.
        train_list: list to train on.
        measured: lists with true masks to measure on.
        true_masks: whether a segmenter learns from true masks.
        masks_used: whether the run measures, or trains on true masks, so that bad masks stop it.
    """
    lists = {name: len(ids) for name, ids in dataset.lists.items() if name != "all"}
    problems = [*about_training(dataset, train_list), *about_overlap(dataset, train_list, measured)]
    if masks_used:
        used = {r.id: r for name in measured for r in dataset.masked(name)}
        if true_masks:
            used |= {record.id: record for record in dataset.masked(train_list)}
        problems += about_masks(dataset, list(used.values()))
    problems.sort(key=lambda problem: ("error", "warning", "info").index(problem.severity))
    return Preflight(
        dataset.format,
        dataset.tags_from,
        dataset.masks_from,
        ListFacts.of(dataset, train_list),
        true_masks,
        tuple(ListFacts.of(dataset, name) for name in measured),
        {name: n for name, n in lists.items() if name not in (train_list, *measured)},
        dataset.notes,
        tuple(problems),
    )


def data_entry(dataset: Dataset, used: Preflight) -> dict[str, Any]:
    """What ``manifest.json`` says of the data of a run."""
    return {
        "path": str(dataset.root.resolve()),
        "format": dataset.format,
        "fingerprint": dataset.fingerprint(),
        "classes": list(dataset.classes),
        "lists": {name: len(ids) for name, ids in dataset.lists.items()},
        "tags_from": dataset.tags_from,
        "used": used.report(),
    }


def about_training(dataset: Dataset, name: str) -> Iterator[Problem]:
    """What a classifier cannot learn from the list ``name``."""
    records = dataset.subset(name)
    counts = dataset.tag_matrix(records).sum(axis=0)
    none, single = (
        tuple(c for c, count in zip(dataset.classes, counts, strict=True) if count == wanted)
        for wanted in (0, 1)
    )
    if len(none) == len(dataset.classes):
        return  # Without any tag there is no training.
    if none:
        message = f"classes without any image in list {name!r}: {len(none)}"
        hint = "nothing can be learnt of them: take them out of the class table, or add images"
        yield Problem("warning", "class-unlisted", message, none, hint)
    if single and len(records) > 1:
        message = f"classes with one image only in list {name!r}: {len(single)}"
        hint = "add images: nothing general can be learnt from one"
        yield Problem("warning", "class-single", message, single, hint)
    yield from about_negatives(dataset, name)


def about_negatives(dataset: Dataset, name: str) -> Iterator[Problem]:
    """Classes that the list ``name`` shows no image without."""
    records = dataset.subset(name)
    counts = dataset.tag_matrix(records).sum(axis=0)
    everywhere = tuple(c for c, n in zip(dataset.classes, counts, strict=True) if n == len(records))
    if everywhere and records:
        message = f"classes that every image of list {name!r} has: {len(everywhere)}"
        hint = (
            "a classifier learns nothing where there is nothing to tell apart: add images without"
            " the class, with an empty tag"
        )
        yield Problem("warning", "no-negatives", message, everywhere, hint)


def about_overlap(dataset: Dataset, train_list: str, measured: Iterable[str]) -> Iterator[Problem]:
    """Images of the training list in a list that is measured as if it were another one."""
    trained = set(dataset.lists[train_list])
    for name in measured:
        both = tuple(i for i in dataset.lists[name] if i in trained)
        if both and name not in (train_list, "train"):
            message = f"images of {name!r} that are in {train_list!r} too: {len(both)}"
            hint = f"figures of {name!r} will be too good"
            yield Problem("warning", "overlap", message, both, hint)


def about_masks(dataset: Dataset, records: Sequence[Record]) -> Iterator[Problem]:
    """Masks that cannot be used: the size of every file by its header, the values of a sample."""
    traits = defaultdict[str, list[tuple[str, str]]](list)
    step, pixels = max(1, len(records) // SAMPLE), 0
    for number, record in enumerate(records):
        try:
            size = image_size(record.image)
        except DataError:
            continue  # Images are looked at by themselves.
        if number % step == 0 and pixels < SAMPLE_PIXELS:
            pixels += size[0] * size[1]
            found = inspect_mask(dataset, record, size)
        else:
            found = _header(dataset, record, size)
        for kind, detail in found:
            traits[kind].append((record.id, detail))
    yield from problems_of(traits)
    yield from about_ignored(traits)


def _header(dataset: Dataset, record: Record, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """What the stated size of a mask tells against it, for an image of ``size``."""
    try:
        mask = dataset.mask_size(record) or size
    except DataError as error:
        yield "mask-unreadable", error.found
        return
    if mask != size:
        yield "mask-size", f"{mask[1]}x{mask[0]} for an image of {size[1]}x{size[0]}"


def problems_of(traits: Traits) -> Iterator[Problem]:
    """One problem for each kind of ``KINDS`` that occurs."""
    for kind, (severity, words, hint) in KINDS.items():
        if traits.get(kind):
            names = tuple(name for name, _ in traits[kind])
            detail = traits[kind][0][1]
            message = f"{words}: {len(names)}" + (f" (first: {detail})" if detail else "")
            yield Problem(severity, kind, message, names, hint)


def about_ignored(traits: Traits) -> Iterator[Problem]:
    """Whether 255 stands where classes should: some masks hold it, and none shows a class."""
    names = tuple(name for name, _ in traits.get("mask-ignored", ()))
    if names and not traits.get(SHOWS):
        message = f"masks that hold 0 and 255 only, and no mask shows a class: {len(names)}"
        yield Problem("error", "mask-binary", message, names, BINARY_HINT)

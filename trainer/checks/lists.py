"""What is wrong with the classes and lists of a data set, told from its tags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from trainer.checks.inspection import Problem
from trainer.data.dataset import Dataset, Record


def classes_with(count: int, dataset: Dataset, records: Sequence[Record]) -> tuple[str, ...]:
    """Names of the classes that ``count`` of ``records`` show."""
    counts = dataset.tag_matrix(records).sum(axis=0)
    return tuple(name for name, n in zip(dataset.classes, counts, strict=True) if n == count)


def about_training(dataset: Dataset, name: str) -> Iterator[Problem]:
    """Classes that a classifier cannot learn from the list ``name``."""
    records = dataset.subset(name)
    none = classes_with(0, dataset, records)
    if len(none) == len(dataset.classes):
        return  # Without any tag there is no training.
    if none:
        message = f"classes without any image in list {name!r}: {len(none)}"
        hint = "nothing can be learnt of them: take them out of the class table, or add images"
        yield Problem("warning", "class-unlisted", message, none, hint)
    if len(records) > 1:
        yield from about_single_images(dataset, records, f"list {name!r}")
    yield from about_negatives(dataset, name)


def about_single_images(
    dataset: Dataset, records: Sequence[Record], where: str
) -> Iterator[Problem]:
    """Classes that only one of ``records`` shows."""
    if single := classes_with(1, dataset, records):
        message = f"classes with one image only in {where}: {len(single)}"
        hint = "add images: nothing general can be learnt from one"
        yield Problem("warning", "class-single", message, single, hint)


def about_negatives(dataset: Dataset, name: str) -> Iterator[Problem]:
    """Classes that every image of the list ``name`` shows."""
    records = dataset.subset(name)
    if records and (everywhere := classes_with(len(records), dataset, records)):
        message = f"classes that every image of list {name!r} has: {len(everywhere)}"
        hint = (
            "a classifier learns nothing where there is nothing to tell apart: add images without"
            " the class, with an empty tag"
        )
        yield Problem("warning", "no-negatives", message, everywhere, hint)


def about_overlap(dataset: Dataset, train_list: str, lists: Iterable[str]) -> Iterator[Problem]:
    """Images of the training list in one of ``lists``, which are measured as other images."""
    ids = set(dataset.lists[train_list])
    for name in lists:
        both = tuple(i for i in dataset.lists[name] if i in ids)
        if both and name not in (train_list, "train"):
            message = f"images of {name!r} that are in {train_list!r} too: {len(both)}"
            yield Problem(
                "warning", "overlap", message, both, f"figures of {name!r} will be too good"
            )

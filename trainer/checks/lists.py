"""What is wrong with the classes and lists of a data set, told from its tags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from trainer.checks.inspection import Finding, Problem
from trainer.checks.near_duplicates import near_pairs
from trainer.data.dataset import Dataset, Record


@dataclass(frozen=True)
class TagCounts:
    """How many images show a class, do not show it, and may show it."""

    present: int
    absent: int
    unknown: int


def tag_counts(dataset: Dataset, records: Sequence[Record]) -> dict[str, TagCounts]:
    """Counts of every class over ``records``."""
    tags = dataset.tag_matrix(records)
    counts = zip(*((tags == 1).sum(0), (tags == 0).sum(0), np.isnan(tags).sum(0)), strict=True)
    return {
        name: TagCounts(*map(int, of_class))
        for name, of_class in zip(dataset.classes, counts, strict=True)
    }


def classes_with(count: int, dataset: Dataset, records: Sequence[Record]) -> tuple[str, ...]:
    """Names of the classes that ``count`` of ``records`` show."""
    counts = tag_counts(dataset, records)
    return tuple(name for name, of_class in counts.items() if of_class.present == count)


def about_training(dataset: Dataset, name: str, true_masks: bool) -> Iterator[Problem]:
    """Classes that a classifier cannot learn from the list ``name``.

    Args:
        dataset: the data set.
        name: of the training list.
        true_masks: whether a segmenter learns from true masks, which needs no tags.
    """
    records = dataset.subset(name)
    none = classes_with(0, dataset, records)
    if len(none) == len(dataset.classes):
        for problem in about_all_negative(dataset, records, f"list {name!r}"):
            yield replace(problem, severity="warning" if true_masks else "error")
        return
    if none:
        message = f"classes without any image in list {name!r}: {len(none)}"
        hint = "nothing can be learnt of them: take them out of the class table, or add images"
        yield Problem("warning", "class-unlisted", message, none, hint)
    if len(records) > 1:
        yield from about_single_images(dataset, records, f"list {name!r}")
    yield from about_negatives(dataset, name)


def _other_lists(dataset: Dataset) -> str:
    """What to do where only other lists than the training list show classes; else empty."""
    for name in dataset.lists:
        if name != "all" and any(record.tags for record in dataset.subset(name)):
            return (
                f"images of list {name!r} show classes: wsss-trainer split {dataset.root} --val 0.2"
                " divides all images anew, and --train-list trains on another list"
            )
    return ""


def about_all_negative(
    dataset: Dataset, records: Sequence[Record], where: str
) -> Iterator[Problem]:
    """Whether no image shows a class."""
    if records and not any(record.tags for record in records):
        negatives = sum(record.is_negative for record in records)
        others = "" if negatives == len(records) else " or have unknown classes"
        message = f"all {len(records)} images of {where} show none of the classes{others}"
        hint = "name the class that an image shows in its row, for some images of each class"
        yield Problem("error", "all-negative", message, (), _other_lists(dataset) or hint)


def about_single_images(
    dataset: Dataset, records: Sequence[Record], where: str
) -> Iterator[Problem]:
    """Classes that only one of ``records`` shows."""
    if single := classes_with(1, dataset, records):
        message = f"classes with one image only in {where}: {len(single)}"
        hint = "add images: nothing general can be learnt from one"
        yield Problem("warning", "class-single", message, single, hint)


def about_negatives(dataset: Dataset, name: str) -> Iterator[Problem]:
    """Classes that no image of the list ``name`` is known to lack."""
    counts = tag_counts(dataset, dataset.subset(name))
    everywhere = tuple(n for n, count in counts.items() if count.present and not count.absent)
    if everywhere:
        may = " has or may have" if any(counts[n].unknown for n in everywhere) else " has"
        message = f"classes that every image of list {name!r}{may}: {len(everywhere)}"
        hint = "a classifier learns nothing where there is nothing to tell apart: "
        hint += (
            "tag images that show none of the classes with background, write 0 in columns of 0/1,"
            " or --set data.missing=absent where every class that an image shows is named"
            if dataset.config.missing == "unknown"
            else "add images without the class, with an empty tag"
        )
        yield Problem("warning", "no-negatives", message, everywhere, hint)


def about_overlap(dataset: Dataset, train_list: str, lists: Iterable[str]) -> Iterator[Problem]:
    """Images and groups of the training list in one of ``lists``, which are measured as others."""
    ids = set(dataset.lists[train_list])
    for name in lists:
        both = tuple(i for i in dataset.lists[name] if i in ids)
        if both and name not in (train_list, "train"):
            message = f"images of {name!r} that are in {train_list!r} too: {len(both)}"
            yield Problem(
                "warning", "overlap", message, both, f"figures of {name!r} will be too good"
            )
        if name not in (train_list, "train"):
            # Not an error here: somebody who knows better must be able to train.
            for problem in about_groups(
                dataset, ids, repr(train_list), dataset.lists[name], repr(name)
            ):
                yield replace(problem, severity="warning")


def about_groups(
    dataset: Dataset, ids: Iterable[str], name: str, others: Iterable[str], other: str
) -> Iterator[Problem]:
    """Groups of which images are in two lists.

    Args:
        dataset: the data set.
        ids: images of one list.
        name: of that list.
        others: images of another list.
        other: its name.
    """
    first, second = ({dataset.records[i].group for i in each} - {""} for each in (ids, others))
    if shared := tuple(sorted(first & second)):
        message = f"groups with images both in {name} and in {other}: {len(shared)}"
        hint = (
            "figures will be too good: wsss-trainer split DATA --val 0.2 keeps groups together; if"
            " the column means something else, --set data.group=none"
        )
        yield Problem("error", "group-shared", message, shared, hint)


def about_near_duplicates(dataset: Dataset, findings: Mapping[str, Finding]) -> Iterator[Problem]:
    """Pairs of images that look nearly the same, in lists of different use.

    Args:
        dataset: the data set.
        findings: of its images, by id.
    """
    looks = {key: finding for key, finding in findings.items() if finding.likeness is not None}
    for (name, ids), (other, others) in combinations(uses(dataset).items(), 2):
        # An image in both lists, a copy, and a group in both lists are told elsewhere.
        keys = [sorted(each & looks.keys() - (ids & others)) for each in (ids, others)]
        hashes = [np.array([looks[i].likeness for i in each], np.uint64) for each in keys]
        pairs = [(keys[0][m], keys[1][n]) for m, n in near_pairs(*hashes)]
        names = tuple(
            f"{a} = {b}"
            for a, b in pairs
            if looks[a].digest != looks[b].digest and not _same_group(dataset, a, b)
        )
        if names:
            yield Problem(
                "warning",
                "near-duplicate",
                f"pairs of images that look nearly the same, one in a {name} list and one in a"
                f" {other} list: {len(names)}",
                names,
                "figures will be too good where they show the same thing: give both one group"
                " (column group), or keep them together by wsss-trainer split DATA --alike",
            )


def _same_group(dataset: Dataset, a: str, b: str) -> bool:
    return bool(dataset.records[a].group) and dataset.records[a].group == dataset.records[b].group


def uses(dataset: Dataset) -> dict[str, set[str]]:
    """Ids by what lists are for by their names: training, validation, test."""
    # "trainval" is meant for both uses and says nothing.
    names = {
        "training": [n for n in dataset.lists if n.startswith("train") and "val" not in n],
        "validation": [n for n in dataset.lists if n.startswith("val")],
        "test": [n for n in dataset.lists if n.startswith("test")],
    }
    return {use: {i for n in of_use for i in dataset.lists[n]} for use, of_use in names.items()}

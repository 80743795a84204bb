"""Divide images into lists that share no group and have every class in the same proportion.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label
data", ECML PKDD 2011), with whole groups in the place of single images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record
from trainer.data.formats.writing import GROUP, csv_table, is_grouped
from trainer.errors import ConfigError, DataError

Counts = npt.NDArray[np.int64]
REST = "train"
"""The list that gets what the other lists leave."""


@dataclass(frozen=True)
class Split:
    """New lists of a data set.

    Attributes:
        dataset: the data set.
        lists: records of each list, in the order of the data set.
        seed: of the ties.
    """

    dataset: Dataset
    lists: dict[str, list[Record]]
    seed: int

    @property
    def groups(self) -> bool:
        """Whether images belong to groups."""
        return is_grouped(self.dataset.records.values())

    def facts(self) -> dict[str, dict[str, Any]]:
        """By list: numbers of images, groups, negatives, images with unknown classes, and images
        of each class.
        """
        names = self.dataset.classes
        return {
            name: {
                "images": len(records),
                "groups": len(_by_group(records)),
                "negatives": sum(record.is_negative for record in records),
                "unknown": sum(bool(record.unknown) for record in records),
                "classes": {
                    c: sum(k in record.tags for record in records) for k, c in enumerate(names)
                },
            }
            for name, records in self.lists.items()
        }

    def warnings(self) -> list[str]:
        """Classes that a list lacks though the data have them."""
        facts = self.facts()
        texts = []
        for name in self.dataset.classes:
            lacking = [each for each, entry in facts.items() if not entry["classes"][name]]
            if lacking and len(lacking) < len(facts):
                owners = [r for records in self.lists.values() for r in records]
                k = self.dataset.classes.index(name)
                groups = len(_by_group([r for r in owners if k in r.tags]))
                texts.append(
                    f"no image of {' and '.join(map(repr, lacking))} shows {name!r}: its images"
                    f" belong to {groups} group{'s' * (groups != 1)}"
                )
        return texts

    def table(self) -> bytes:
        """A CSV file of image and list that ``data.lists`` reads, with groups where there are
        any.
        """
        root, rows = self.dataset.root, []
        members: dict[str, list[str]] = {}
        for name, records in self.lists.items():
            for record in records:
                members.setdefault(record.id, []).append(name)
        extra = [GROUP] if self.groups else []
        for key, names in sorted(members.items()):
            record = self.dataset.records[key]
            inside = record.image.is_relative_to(root)
            image = record.image.relative_to(root).as_posix() if inside else key
            rows.append([image, ";".join(names), *([record.group] if extra else [])])
        return csv_table(["image", "list", *extra], rows)


def split(
    dataset: Dataset, shares: Mapping[str, float], seed: int = 0, source: str = "all"
) -> Split:
    """Divide the images of a list.

    Args:
        dataset: the data set.
        shares: of each new list besides ``train``, which gets the rest.
        seed: of the ties.
        source: the list to divide. Lists that share no image with it stay, unless a new list has
            their name.

    Raises:
        ConfigError: shares that are not between 0 and 1, or leave nothing for ``train``.
        DataError: no such list, or fewer groups than lists.
    """
    portions = _portions(shares)
    records = dataset.subset(source)
    groups = list(_by_group(records).values())
    if len(groups) < len(portions):
        raise DataError(
            f"the {len(records)} images of list {source!r} belong to {len(groups)} groups",
            f"at least one group for each of {len(portions)} lists",
            "--set data.group=none divides single images",
        )
    owners = _assign(_counts(groups, len(dataset.classes)), list(portions.values()), seed)
    places = {r.id: owner for group, owner in zip(groups, owners, strict=True) for r in group}
    lists = {name: [r for r in records if places[r.id] == n] for n, name in enumerate(portions)}
    for name, ids in dataset.lists.items():
        if name not in (*portions, "all", source) and not places.keys() & set(ids):
            lists[name] = dataset.subset(name)
    return Split(dataset, lists, seed)


def _portions(shares: Mapping[str, float]) -> dict[str, float]:
    """The share of every list that gets one."""
    portions = {name: share for name, share in shares.items() if share}
    rest = 1 - sum(portions.values())
    if not portions or min(*portions.values(), rest) <= 0:
        listing = " ".join(f"--{name} {share:g}" for name, share in shares.items())
        raise ConfigError(
            f"{listing} leaves no share for a list",
            "shares above 0 whose sum is below 1",
            "--val 0.2",
        )
    return {REST: rest, **portions}


def default_file(dataset: Dataset) -> Path:
    """Where the lists of a data set go unless the user says so: never into the data."""
    return Path(f"{dataset.root.resolve().name}-lists.csv")


def _by_group(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        # An image without a group is one of its own. The pair keeps ids apart from names of groups.
        groups.setdefault(record.unit, []).append(record)
    return groups


def _counts(groups: Sequence[Sequence[Record]], classes: int) -> Counts:
    """``int64 [G,K+2]``: images of each class, negatives, and images of every group."""
    counts = np.zeros((len(groups), classes + 2), np.int64)
    for row, records in zip(counts, groups, strict=True):
        for record in records:
            row[list(record.tags)] += 1
            row[-2] += record.is_negative
        row[-1] = len(records)
    return counts


def _assign(counts: Counts, shares: Sequence[float], seed: int) -> npt.NDArray[np.int64]:
    """The list of every group, ``int64 [G]``.

    The rarest class goes first, because later there would be too few groups to balance it; within
    a class, the largest group does. Each group goes to the list that lacks most images of it.
    """
    rng = np.random.default_rng(seed)
    needs = np.outer(shares, counts.sum(0))
    holdings = np.zeros(needs.shape, np.int64)
    owners = np.full(len(counts), -1)
    while (free := owners < 0).any():
        candidates = (counts[free] > 0).sum(0)
        column = int(np.where(candidates > 0, candidates, len(counts) + 1).argmin())
        groups = np.flatnonzero(free & (counts[:, column] > 0))
        groups = rng.permutation(groups)
        groups = groups[np.argsort(-counts[groups, column], kind="stable")]
        for place, group in enumerate(groups):
            bare = np.flatnonzero(holdings[:, column] == 0)
            # The last groups of a class go to the lists that have none of it.
            choices = bare if 0 < len(groups) - place <= len(bare) else np.arange(len(shares))
            # lexsort goes by its last key first: images of the class, then images of any kind.
            order = np.lexsort((needs[choices, -1], needs[choices, column]))
            owner = choices[order[-1]]
            owners[group] = owner
            needs[owner] -= counts[group]
            holdings[owner] += counts[group]
    return owners

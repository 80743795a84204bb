"""One class table for all files of a COCO data set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.classes import check_classes
from trainer.data.coco.fields import Key
from trainer.data.coco.table import CocoTable
from trainer.data.dataset import IGNORE
from trainer.data.names import BACKGROUND_NAMES, IGNORE_NAMES, folded
from trainer.data.remarks import Remarks
from trainer.errors import DataError, some


@dataclass(frozen=True)
class Categories:
    """Classes, and what each category becomes in label maps.

    Attributes:
        names: of the classes, in the order of the category ids.
        labels: by folded name of a category: 0 background, k+1 class k, 255 ignore. Categories that
            are left out are absent.
    """

    names: tuple[str, ...]
    labels: dict[str, int]

    def labels_of(self, table: CocoTable) -> dict[Key, int | None]:
        """Label by category id of one file; None for those that are left out."""
        return {
            key: self.labels.get(folded(category.name))
            for key, category in table.categories.items()
        }


def unite(tables: Sequence[CocoTable], remarks: Remarks) -> tuple[Categories, list[CocoTable]]:
    """The categories of all files together, and the files that fit them.

    Files are matched by the names of their categories. The file with the most classes decides; the
    others may have some of them. These are no classes: ``background``; ``ignore``, which is 255;
    and a group, which other categories name as their ``supercategory`` and no annotation has.

    Args:
        tables: the files.
        remarks: gets files with other classes, which are left out.

    Raises:
        DataError: no class, or too many.
    """
    in_use = {name for table in tables for name in table.used}
    groups = _groups(tables) - in_use
    special = BACKGROUND_NAMES | IGNORE_NAMES | groups
    candidates = [
        list(dict.fromkeys(n for n in _folded_names(table) if n not in special)) for table in tables
    ]
    longest = max(
        range(len(tables)),
        key=lambda n: (len(in_use.intersection(candidates[n])), len(candidates[n])),
    )
    classes, base = candidates[longest], tables[longest]
    fitting, unused = [], set()
    for table, names in zip(tables, candidates, strict=True):
        extra = [name for name in names if name not in classes]
        if set(extra) & table.used:
            remarks.add(_disagreement(table, names, base, classes))
            continue
        unused |= set(extra)
        fitting.append(table)
    spelling = _spellings(tables)
    names = [spelling[name][0] for name in classes]
    check_classes(names, base.path)
    labels = {name: k for k, name in enumerate(classes, 1)}
    labels |= dict.fromkeys(BACKGROUND_NAMES, 0) | dict.fromkeys(IGNORE_NAMES, IGNORE)
    remarks.notes += [*_notes(tables, groups, spelling, unused), *_gaps(base, classes)]
    return Categories(tuple(names), labels), fitting


def _folded_names(table: CocoTable) -> list[str]:
    return [folded(category.name) for category in table.categories.values()]


def _groups(tables: Sequence[CocoTable]) -> set[str]:
    """Folded names that other categories give as their group."""
    pairs = {
        (folded(category.name), folded(category.group))
        for table in tables
        for category in table.categories.values()
    }
    return {group for name, group in pairs if group != name}


def _spellings(tables: Sequence[CocoTable]) -> dict[str, list[str]]:
    """Spellings by folded name; one that a file has for several categories is repeated."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for table in tables:
        again = defaultdict(list)
        for category in table.categories.values():
            again[folded(category.name)].append(category.name)
        for name, here in again.items():
            others = spellings[name]
            others += here if not others or len(here) > len(others) else set(here) - set(others)
    return spellings


def _notes(
    tables: Sequence[CocoTable], groups: set[str], spelling: dict[str, list[str]], unused: set[str]
) -> list[str]:
    present = {name for table in tables for name in _folded_names(table)}
    same = [" = ".join(spelling[n]) for n in sorted(present) if len(spelling[n]) > 1]
    texts = (
        (present & BACKGROUND_NAMES, "is background, not a class"),
        (present & IGNORE_NAMES, f"is ignored ({IGNORE}), not a class"),
        (present & groups, "is only a group of others, without annotations, and left out"),
        (unused, "is in one file only, without annotations, and left out"),
    )
    notes = [
        f"category {some(repr(spelling[name][0]) for name in sorted(names))} {text}"
        for names, text in texts
        if names
    ]
    if same:
        notes.append(
            f"categories that differ only in letter case or Unicode form are one class:"
            f" {some(same)}"
        )
    return notes


def _gaps(base: CocoTable, classes: Sequence[str]) -> list[str]:
    ids = [key for key, category in base.categories.items() if folded(category.name) in classes]
    if ids == list(range(1, len(ids) + 1)):
        return []
    return [
        f"category ids run from {ids[0]} to {ids[-1]} with gaps: masks hold 1 to {len(classes)}, in"
        " their order"
    ]


def _disagreement(
    table: CocoTable, names: Sequence[str], base: CocoTable, classes: Sequence[str]
) -> DataError:
    def only(these: Sequence[str], others: Sequence[str], path: Path) -> str:
        lacking = [repr(name) for name in these if name not in others]
        return f"only {path.name} has {some(lacking)}" if lacking else ""

    differences = (only(names, classes, table.path), only(classes, names, base.path))
    listing = "; ".join(filter(None, differences))
    return DataError(
        f"{table.path} has other categories than {base.path}: {listing}",
        "the same categories in every file, or some of them",
        "give them the same names, or add the category to both files",
    )

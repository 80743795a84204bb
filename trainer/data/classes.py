"""Class tables: the names of the classes, and which spelling of a tag means which class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.colours import Colour
from trainer.data.names import composed, folded, in_order, is_one_line, one_spelling
from trainer.data.remarks import Remarks
from trainer.errors import DataError, some

MAX_CLASSES = 254
"""Label maps have 8 bits, of which 0 is background and 255 is ignored."""


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set.

    Attributes:
        names: of the classes.
        values: the value of each class in mask files.
        index: position in ``names`` of each spelling of a tag.
        colours: label of each colour, for masks in colours of their own.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    index: dict[str, int] = field(default_factory=dict)
    colours: dict[Colour, int] = field(default_factory=dict)

    def positions(self, tags: Iterable[str]) -> tuple[int, ...]:
        """Positions of ``tags`` in ``names``, ascending; tags of no class are left out."""
        return tuple(sorted({self.index[tag] for tag in tags if tag in self.index}))

    def complement(self, positions: Iterable[int]) -> tuple[int, ...]:
        """Positions of all other classes, ascending."""
        return complement(positions, len(self.names))


def complement(positions: Iterable[int], count: int) -> tuple[int, ...]:
    """The numbers below ``count`` that are not among ``positions``, ascending."""
    without = set(positions)
    return tuple(k for k in range(count) if k not in without)


def table_of_tags(counts: Counter[str], where: Path, remarks: Remarks) -> ClassTable:
    """The class table of a data set that lists no classes: the spellings of its tags, sorted.

    Args:
        counts: how often each spelling occurs.
        where: the file or folder that the tags come from.
        remarks: gets the spellings that are taken together.

    Raises:
        DataError: no tag; or see ``check_classes``.
    """
    if not counts:
        raise DataError(
            f"no image of {where} shows a class: every one is a negative",
            "images of one class at least",
            "tag what an image shows, for some images of each class",
        )
    spellings = one_spelling(counts)
    names, values = in_order(set(spellings.values()))
    check_classes(names, where)
    index = {spelling: names.index(name) for spelling, name in spellings.items()}
    note_spellings(index, names, remarks)
    return ClassTable(names, values, index)


def positions_of(tags: Iterable[str], names: Sequence[str]) -> dict[str, int]:
    """Position in ``names`` of every tag that is one of them, or that differs from exactly one of
    them by letter case, blanks or Unicode form. Other tags are left out.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        alike[folded(name)].append(position)
    exact = {name: position for position, name in enumerate(names)}
    index = {}
    for tag in tags:
        same = [exact[tag]] if tag in exact else alike[folded(tag)]
        # A tag that could be two classes is none of them.
        if len(same) == 1:
            index[tag] = same[0]
    return index


def note_spellings(index: dict[str, int], names: Sequence[str], remarks: Remarks) -> None:
    """Name the tags that are spelled otherwise than their class."""
    pairs = sorted(
        f"{tag!r} = {names[k]!r}" for tag, k in index.items() if composed(tag) != names[k]
    )
    if pairs:
        remarks.note(
            f"tags that differ only by letter case or spaces are one class: {', '.join(pairs)}"
        )


def check_classes(names: Sequence[str], where: Path) -> None:
    """Check that a class table fits into 8-bit label maps.

    Raises:
        DataError: no class, too many, a name twice, or a name without letters or with control
            characters.
    """
    repeats = sorted(name for name, count in Counter(names).items() if count > 1)
    strange = [ascii(name) for name in names if not folded(name) or not is_one_line(name)]
    if repeats:
        fault = f"repeats {some(repeats)}"
    elif strange:
        fault = f"has names without letters, or with control characters: {some(strange)}"
    elif not 0 < len(names) <= MAX_CLASSES:
        fault = f"has {len(names)} classes"
    else:
        return
    raise DataError(
        f"the class table of {where} {fault}", f"1 to {MAX_CLASSES} different class names"
    )

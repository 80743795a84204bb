"""Names of classes and files as people and tools write them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

BACKGROUND_NAMES = frozenset(("background", "_background_", "__background__"))
"""Folded names that tools give to what is no object."""
IGNORE_NAMES = frozenset(("ignore", "_ignore_", "__ignore__"))
"""Folded names that tools give to pixels that do not count."""


NUMBER = re.compile(r"([0-9]{1,9})(\.0)?")
HIGHEST = 254
"""The highest mask value of a class: 255 is ignored."""


def composed(name: str) -> str:
    """``name`` in Unicode's composed form (NFC): macOS writes file names decomposed (NFD)."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """``name`` without what people do not see: letter case, Unicode form (``é`` is one character
    or two), invisible characters and the number of blanks.
    """
    seen = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return composed(" ".join(composed(seen).casefold().split()))


def is_one_line(name: str) -> bool:
    """Whether ``name`` can stand in a text file: no control characters (line breaks), and UTF-8."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)


def is_background(name: str) -> bool:
    """Whether ``name`` is one that tools give to what is no class."""
    return folded(name) in BACKGROUND_NAMES | IGNORE_NAMES


def one_spelling(counts: Counter[str]) -> dict[str, str]:
    """For every name, the most frequent one of those that ``folded`` finds equal."""
    best: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        best.setdefault(folded(name), composed(name))
    return {name: best[folded(name)] for name in counts}


def spelling_notes(spellings: dict[str, str]) -> list[str]:
    """What ``one_spelling`` made one, for the user, where it can be seen."""
    pairs = [
        f"{name!r} = {taken!r}" for name, taken in spellings.items() if composed(name) != taken
    ]
    if not pairs:
        return []
    return [
        f"tags that differ by letter case or spaces only are one class: {', '.join(sorted(pairs))}"
    ]


def in_order(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Class names sorted, and their mask values 1 to K; names that are numbers are sorted as
    numbers, and are the mask values where these can be.
    """
    classes = sorted(names)
    numbers = {name: int(m[1]) for name in classes if (m := NUMBER.fullmatch(name))}
    if classes and len(numbers) == len(classes):
        classes.sort(key=lambda name: (numbers[name], name))
        values = tuple(numbers[name] for name in classes)
        if values[0] > 0 and values[-1] <= HIGHEST and len(set(values)) == len(values):
            return tuple(classes), values
    return tuple(classes), tuple(range(1, len(classes) + 1))

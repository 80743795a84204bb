"""Names of classes and files as people and tools write them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

BACKGROUND_NAMES = frozenset(("background", "_background_", "__background__"))
"""What tools call the background, as ``folded`` returns it."""
IGNORE_NAMES = frozenset(("ignore", "_ignore_", "__ignore__"))
"""What tools call pixels that do not count, as ``folded`` returns it."""
NUMBER = re.compile(r"([0-9]{1,9})(\.0)?")
LIST = re.compile(r"(train|val|test)([^a-z].*|aug|ing|set|val|id|idation)?", re.DOTALL)
"""What usual lists are called."""
HIGHEST = 254
"""The highest mask value of a class; 255 is ignored."""


def composed(name: str) -> str:
    """``name`` in Unicode's composed form, NFC."""
    # macOS writes file names decomposed (NFD), most tables are composed.
    return unicodedata.normalize("NFC", name)


@lru_cache(maxsize=100_000)
def folded(name: str) -> str:
    """``name`` without what people do not see: letter case, Unicode form (``é`` is one character
    or two), invisible characters and the number of blanks.
    """
    visible = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return composed(" ".join(composed(visible).casefold().split()))


def is_one_line(name: str) -> bool:
    """Whether ``name`` is valid UTF-8 without control characters such as line breaks."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)


def is_background(name: str) -> bool:
    """Whether tools use ``name`` for the background or for pixels to ignore."""
    return folded(name) in BACKGROUND_NAMES | IGNORE_NAMES


def list_name(name: str) -> str:
    """``name``, in small letters if it is the name of a usual list: ``Train``, ``Test2017``."""
    return name.lower() if is_list_name(name) else name


def is_list_name(name: str) -> bool:
    """Whether ``name`` is ``train``, ``validation``, ``Testing``, ``val2017`` or the like."""
    return LIST.fullmatch(name.lower()) is not None


def one_spelling(counts: Counter[str]) -> dict[str, str]:
    """For every name, the most frequent of the names that ``folded`` makes equal to it."""
    best: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        best.setdefault(folded(name), composed(name))
    return {name: best[folded(name)] for name in counts}


def in_order(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Class names in order, and their mask values.

    Names are sorted as text and have the values 1 to K. If all are numbers, they are sorted as
    numbers, and are the mask values themselves where these are different and from 1 to 254.
    """
    classes = sorted(names)
    numbers = {name: int(m[1]) for name in classes if (m := NUMBER.fullmatch(name))}
    if classes and len(numbers) == len(classes):
        classes.sort(key=lambda name: (numbers[name], name))
        values = tuple(numbers[name] for name in classes)
        if values[0] > 0 and values[-1] <= HIGHEST and len(set(values)) == len(values):
            return tuple(classes), values
    return tuple(classes), tuple(range(1, len(classes) + 1))

"""What stands in the cells of a table: tags, and names of lists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from trainer.data.dataset import some
from trainer.data.names import folded
from trainer.errors import DataError

NO_TAG = ("nan", "none", "null", "n/a")
LIST = re.compile(r"(train|val|test)([^a-z].*|aug|ing|val|id|idation)?", re.DOTALL)
QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


def list_name(name: str) -> str:
    """``name`` in small letters where it is one that trains or measures by default: ``Train``,
    ``VAL``, ``Test2017``.
    """
    return name.lower() if is_list_name(name) else name


def is_list_name(name: str) -> bool:
    """Whether ``name`` is ``train``, ``validation``, ``Testing``, ``val2017`` or the like."""
    return LIST.fullmatch(name.lower()) is not None


def lists_of(cell: str) -> list[str]:
    """The lists in a cell such as ``Train;train_aug``."""
    parts = (part.strip() for part in re.split(r"[;|,]", cell))
    return list(dict.fromkeys(list_name(p) for p in parts if p and p.lower() not in NO_TAG))


def tags_of(cells: Sequence[str], known: Collection[str] = ()) -> list[list[str]]:
    """Tags in each of the cells of a column.

    Several are written as ``cat;dog``, ``cat|dog``, ``['cat', 'dog']``, or ``cat, dog`` where cat
    and dog are classes by themselves.

    Args:
        cells: the column.
        known: class names, where a file gives them.

    Raises:
        DataError: a comma stands between names of which some are classes and others not.
    """
    split = [_parts(cell, known) for cell in cells]
    alone = {folded(tag) for tags in split for tag in tags if "," not in tag}
    listed = {folded(name) for name in known}
    seen = Counter(
        part
        for tag in {tag for tags in split for tag in tags if "," in tag}
        for part in {folded(part) for part in _commas(tag)}
    )
    classes = listed or alone | {part for part, count in seen.items() if count > 1}
    unclear = []
    for tags in split:
        for tag in [tag for tag in tags if "," in tag and folded(tag) not in listed]:
            parts = _commas(tag)
            there = [folded(part) in classes for part in parts]
            if all(there):
                at = tags.index(tag)
                tags[at : at + 1] = parts
            elif any(there):
                unclear.append(tag)
    if unclear:
        count = len(set(unclear))
        raise DataError(
            f"{count} tags with a comma hold a class and something else:"
            f" {some(map(repr, dict.fromkeys(unclear)))}",
            "';' between the tags of an image",
            "put ; between them, or the names that hold a comma into classes.txt, one a line",
        )
    return [list(dict.fromkeys(tags)) for tags in split]


def _parts(cell: str, known: Collection[str]) -> list[str]:
    """Tags of a cell whose separators are clear."""
    if cell in known:
        return [cell]
    if cell[:1] + cell[-1:] in ("[]", "()", "{}"):
        inner = cell[1:-1]
        if not QUOTED.sub("", inner).strip(" ,\t\r\n"):
            parts = [one or other for one, other in QUOTED.findall(inner)]
        else:
            parts = re.split(r"[,;|]", inner)
    else:
        parts = re.split(r"[;|]", cell)
    stripped = (part.strip() for part in parts)
    return [part for part in stripped if part and part.casefold() not in NO_TAG]


def _commas(tag: str) -> list[str]:
    return [part.strip() for part in tag.split(",") if part.strip()]

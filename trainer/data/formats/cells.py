"""What stands in the cells of a table: tags, and names of lists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from trainer.data.dataset import some
from trainer.data.names import NUMBER, folded
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
    _split_commas(split, known)
    if not known and all(NUMBER.fullmatch(tag) for tags in split for tag in tags):
        # pandas writes 2 as 2.0 where a cell of the column is blank.
        split = [[tag.removesuffix(".0") for tag in tags] for tags in split]
    return [list(dict.fromkeys(tags)) for tags in split]


def _split_commas(split: list[list[str]], known: Collection[str]) -> None:
    """Put two classes in the place of a tag such as ``cat, dog``."""
    alone = {folded(tag) for tags in split for tag in tags if "," not in tag}
    listed = {folded(name) for name in known}
    joined = {tag for tags in split for tag in tags if "," in tag and folded(tag) not in listed}
    seen = Counter(part for tag in joined for part in {folded(part) for part in _commas(tag)})
    classes = listed or alone | {part for part, count in seen.items() if count > 1}
    classes_in = {tag: [folded(part) in classes for part in _commas(tag)] for tag in joined}
    unclear = [tag for tag in sorted(joined) if any(classes_in[tag]) and not all(classes_in[tag])]
    if unclear:
        raise DataError(
            f"{len(unclear)} tags with a comma hold a class and something else:"
            f" {some(map(repr, unclear))}",
            "';' between the tags of an image",
            "put ; between them, or the names that hold a comma into classes.txt, one a line",
        )
    for tags in split:
        tags[:] = [
            part
            for tag in tags
            for part in (_commas(tag) if tag in joined and all(classes_in[tag]) else [tag])
        ]


def _parts(cell: str, known: Collection[str]) -> list[str]:
    """Tags of a cell whose separators are clear."""
    if cell in known:
        return [cell]
    ends, inner = cell[:1] + cell[-1:], cell[1:-1]
    if ends == "[]" or (ends in ("()", "{}") and (set(inner) & set(",'\"") or not inner.strip())):
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

"""The cells of a table: tags, and names of lists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from trainer.data.names import NUMBER, folded, list_name
from trainer.data.tables.reading import EMPTY
from trainer.errors import DataError, some

NO_TAG = (*EMPTY, "-", "--", "–", "—")
"""How people and tools write that an image has no tag, in small letters."""
QUOTES = re.compile(r"(?s)^([\"'`“„«])(.+)[\"'`”“»]$")
OBJECT = re.compile(r"\{\s*['\"][^'\"]*['\"]\s*:")
"""The beginning of an object of JSON or Python."""
JOINT = re.compile(r"[\s/+#&、，；]+")
OPEN = "?"
"""As a tag: every class that is not named is unknown. Before a tag: this class is unknown."""
QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


def lists_of(cell: str) -> list[str]:
    """The lists in a cell such as ``Train;train_aug``."""
    parts = (part.strip() for part in re.split(r"[;|,]", cell))
    return list(dict.fromkeys(list_name(p) for p in parts if p and p.casefold() not in NO_TAG))


def tags_of(cells: Sequence[str], classes: Collection[str] = ()) -> list[list[str]]:
    """The tags in each cell of a column.

    Several tags are written as ``cat;dog``, ``cat|dog``, ``['cat', 'dog']``, or ``cat, dog`` where
    cat and dog are classes by themselves. ``?dog`` and ``?`` stay as they are: see ``OPEN``.

    Args:
        cells: the column.
        classes: their names, where a file gives them.

    Raises:
        DataError: commas between names of which some are classes and others are not; or
            names that are all classes between blanks and the like.
    """
    split = [_parts(cell, classes) for cell in cells]
    _split_commas(split, classes)
    if not classes:
        _check_joints(split)
    if not classes and all(NUMBER.fullmatch(tag) for tags in split for tag in tags):
        # pandas writes 2 as 2.0 where a cell of the column is blank.
        split = [[tag.removesuffix(".0") for tag in tags] for tags in split]
    return [list(dict.fromkeys(tags)) for tags in split]


def _split_commas(split: list[list[str]], classes: Collection[str]) -> None:
    """Put two tags in the place of one such as ``cat, dog`` if both are classes."""
    alone = {_class_key(tag) for tags in split for tag in tags if "," not in tag}
    names = {folded(name) for name in classes}
    pairs = {tag for tags in split for tag in tags if "," in tag and folded(tag) not in names}
    counts = Counter(part for tag in pairs for part in {_class_key(part) for part in _commas(tag)})
    # Without a list of classes, a part that stands alone or in several pairs is one.
    names = (names or alone | {part for part, count in counts.items() if count > 1}) | {""}
    verdicts = {tag: [_class_key(part) in names for part in _commas(tag)] for tag in pairs}
    unclear = [tag for tag in sorted(pairs) if any(verdicts[tag]) and not all(verdicts[tag])]
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
            for part in (_commas(tag) if tag in pairs and all(verdicts[tag]) else [tag])
        ]


def _check_joints(split: Iterable[Sequence[str]]) -> None:
    """Refuse a tag such as ``cat dog`` or ``cat+dog`` beside the tags cat and dog, which may be one
    class or two.

    Raises:
        DataError: there is such a tag.
    """
    tags = {tag for tags in split for tag in tags}
    keys = set(map(_class_key, tags))
    parts = {tag: list(filter(None, JOINT.split(tag))) for tag in sorted(tags)}
    joint = [t for t, each in parts.items() if len(each) > 1 and keys.issuperset(map(folded, each))]
    if joint:
        raise DataError(
            f"{len(joint)} tags consist of other tags: {some(map(repr, joint))}",
            "';' between the tags of an image",
            f"put ; between them; or, where {joint[0]!r} is one class, list all classes in"
            " classes.txt, one a line",
        )


def _parts(cell: str, classes: Collection[str]) -> list[str]:
    """The tags of a cell, commas left as they are."""
    if cell in classes:
        return [cell]
    ends, inner = cell[:1] + cell[-1:], cell[1:-1]
    if OBJECT.search(cell):
        raise DataError(
            f"a cell of tags holds objects: {cell[:60]}",
            "names of classes",
            "write the name alone, several as a list or with ; between them",
        )
    if ends == "[]" or (ends in ("()", "{}") and (set(inner) & set(",'\"") or not inner.strip())):
        if not QUOTED.sub("", inner).strip(" ,\t\r\n"):
            parts = [one or other for one, other in QUOTED.findall(inner)]
        else:
            parts = re.split(r"[,;|]", inner)
    else:
        parts = re.split(r"[;|]", cell)
    texts = (QUOTES.sub(r"\2", part.strip().strip(",").strip()) for part in parts)
    return [part for part in texts if part in classes or not is_no_tag(part)]


def is_no_tag(text: str) -> bool:
    """Whether a tag is blank, or written as ``nan``, ``NA`` or a dash."""
    return not text or text.casefold() in NO_TAG


def _commas(tag: str) -> list[str]:
    return [part.strip() for part in tag.split(",") if part.strip()]


def _class_key(tag: str) -> str:
    """The class of a tag that may be unknown (``?dog``); empty for ``?`` alone."""
    return folded(tag.removeprefix(OPEN))

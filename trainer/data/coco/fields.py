"""Values of a COCO JSON as tools write them: ids, sides, yes or no."""

from __future__ import annotations

from trainer.data.coco.outlines import whole

Key = int | str
"""Id of a category or an image."""
FLAGS = {"0": False, "1": True, "false": False, "true": True, "none": False, "": False}


def key_of(value: object) -> Key | None:
    """An id as a number where it is one (``1``, ``1.0``, ``"1"``), else as text (``007`` too); None
    for anything else.
    """
    number = whole(value)
    if not isinstance(value, str):
        return number
    text = printable(value).strip()
    # "007" stays text, because as a number it would be the id of another entry.
    return number if text.removesuffix(".0") == str(number) else text or None


def printable(text: str) -> str:
    """Text without lone surrogates, which JSON can hold and no terminal can print."""
    return text.encode("utf-8", "replace").decode()


def side_of(value: object) -> int | None:
    """Height or width; 0 where it is not stated; None where it is no size."""
    if value is None:
        return 0
    number = whole(value)
    return number if number is not None and number >= 0 else None


def keys_of(value: object) -> frozenset[Key] | None:
    """Ids of categories; empty where there are none; None where it is no list of ids."""
    if value is None:
        return frozenset()
    keys = [key_of(each) for each in value] if isinstance(value, list) else [None]
    return None if None in keys else frozenset(key for key in keys if key is not None)


def flag_of(value: object) -> bool | None:
    """Yes or no, None for anything else."""
    if isinstance(value, float) and value in (0.0, 1.0):
        return bool(value)
    return FLAGS.get(str(value).strip().lower())

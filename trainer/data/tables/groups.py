"""What images belong to: the column of a table, or the field of a JSON, that names their group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.data.remarks import Remarks
from trainer.data.tables.reading import column_key
from trainer.errors import DataError, nearest

GROUP_COLUMNS = ("group", "patient", "slide", "scene", "tile")
"""Names of such columns, also with ``_id`` at their end, in the order in which they are taken."""


def group_column(names: Sequence[str], choice: str, where: str, remarks: Remarks) -> int | None:
    """Index of the name that holds groups; None without one.

    Args:
        names: of columns or fields, without those that hold something else.
        choice: ``data.group``: a name, ``auto``, or ``none``.
        where: the file, for messages.
        remarks: gets a note where a column is taken that is not called ``group``.

    Raises:
        DataError: ``choice`` is none of ``names``.
    """
    keys = [column_key(name) for name in names]
    if choice not in ("auto", "none"):
        if column_key(choice) in keys:
            return keys.index(column_key(choice))
        raise DataError(
            f"{where} has no column {choice!r} for data.group",
            nearest(choice, names) if names else "a column that names the group of each image",
            "--set data.group=none reads no groups",
        )
    if choice == "auto":
        for name in GROUP_COLUMNS:
            for key in (name, f"{name}id"):
                if key in keys:
                    place = keys.index(key)
                    if key != "group":
                        remarks.note(
                            f"column {names[place]!r} of {where} is taken as the group of each"
                            " image (--set data.group=none leaves it out)"
                        )
                    return place
    return None


def group_field(images: Sequence[Any], choice: str, path: Path, remarks: Remarks) -> str | None:
    """The field of COCO's images that names their groups; None without one.

    Raises:
        DataError: no image has the field that ``choice`` names.
    """
    names = list(dict.fromkeys(key for entry in images if isinstance(entry, dict) for key in entry))
    place = group_column(names, choice, path.name, remarks)
    return None if place is None else names[place]

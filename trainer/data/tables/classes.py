"""The class table of a folder with tags: the lines of ``classes.txt``, or its tags in order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from trainer.data.classes import (
    ClassTable,
    check_classes,
    note_spellings,
    positions_of,
    table_of_tags,
)
from trainer.data.image_files import entries
from trainer.data.knobs import DataConfig
from trainer.data.names import is_background
from trainer.data.remarks import Remarks
from trainer.data.tables.reading import read_text
from trainer.errors import DataError, nearest, some


def class_lines(root: Path) -> list[str]:
    """The classes in ``classes.txt``, one a line; none without that file. The first line may be
    background.

    Raises:
        DataError: unreadable, or background after a class.
    """
    path = next((p for p in entries(root) if p.name.lower() == "classes.txt"), None)
    if path is None or not path.is_file():
        return []
    lines = [line.strip() for line in read_text(path)[0].splitlines()]
    names = [line for line in lines if line]
    classes = [name for name in names if not is_background(name)]
    # Background has the mask value 0, so it can only stand before the first class.
    if classes != names[len(names) - len(classes) :]:
        raise DataError(
            f"{path} has background after a class",
            "the classes only: background has the mask value 0",
            "take it out, and make sure that the first class has the value 1 in the masks",
        )
    check_classes(classes, path)
    return classes


def class_table(
    path: Path, counts: Counter[str], class_names: list[str], config: DataConfig, remarks: Remarks
) -> ClassTable:
    """The classes of a table.

    Args:
        path: of the table.
        counts: how often it has each tag.
        class_names: the classes in ``classes.txt``; empty without it.
        config: says which tags mean "shows no class".
        remarks: gets tags that are no class, and spellings that are taken together.

    Raises:
        DataError: no class.
    """
    if negative := sorted(filter(config.is_negative, counts)):
        remarks.note(f"{some(map(repr, negative))} is no class and is left out")
    counts = Counter({name: n for name, n in counts.items() if name not in negative})
    if not class_names:
        return table_of_tags(counts, path, remarks)
    # A line that is no class keeps its value in the masks.
    values = {name: n for n, name in enumerate(class_names, 1) if not config.is_negative(name)}
    names = tuple(values)
    index = positions_of(counts, names)
    if strangers := sorted(counts.keys() - index.keys()):
        remarks.problem(
            f"{path.name} has tags that classes.txt lacks: {some(map(repr, strangers))}",
            nearest(strangers[0], names),
            f"correct them, or add them to {path.with_name('classes.txt')}",
        )
    note_spellings(index, names, remarks)
    return ClassTable(names, tuple(values.values()), index)

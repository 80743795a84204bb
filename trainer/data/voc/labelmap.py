"""``labelmap.txt``: the class table that CVAT and Datumaro write beside masks in colours."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.data.classes import ClassTable, check_classes
from trainer.data.colours import VOC_COLOURS, Colour
from trainer.data.dataset import IGNORE
from trainer.data.names import BACKGROUND_NAMES, IGNORE_NAMES, folded
from trainer.errors import DataError, some

NAME = "labelmap.txt"
SHAPE = "# label:color_rgb:parts:actions, then lines such as cat:128,0,0::"
VOID_NAMES = IGNORE_NAMES | {"ignored", "void"}
BORDER = next(colour for colour, value in VOC_COLOURS.items() if value == IGNORE)
"""VOC's colour of object borders."""
LINE = re.compile(r"(.+?):\s*(?:(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3}))?\s*(?::.*)?")


def read_labelmap(path: Path) -> ClassTable:
    """Classes in file order, and the label of each colour: 0, 1 to K, 255.

    Black and the label ``background`` are 0. The labels ``ignored`` and ``void`` are 255, and so is
    VOC's colour of borders if no class has it.

    Raises:
        DataError: unreadable, a damaged line, a class without a colour, or a colour twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", SHAPE) from error
    classes: list[str] = []
    colours: dict[Colour, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        values = [int(value) for value in match.groups()[1:] if value] if match else []
        if match is None or len(values) != 3 or max(values) > 255:
            raise DataError(f"{path} line {number}: {line[:80]!r}", SHAPE)
        name, colour = match[1].strip(), (values[0], values[1], values[2])
        label = _label(name, len(classes) + 1)
        if label not in (0, IGNORE):
            classes.append(name)
        if colours.setdefault(colour, label) != label or (colour == (0, 0, 0) and label):
            raise DataError(
                f"{path} line {number}: {name!r} has the colour {some(values)} of another label,"
                " or of the background",
                "a colour of its own for each label; black is background",
            )
    check_classes(classes, path)
    colours.setdefault((0, 0, 0), 0)
    colours.setdefault(BORDER, IGNORE)
    return ClassTable(tuple(classes), tuple(range(1, len(classes) + 1)), colours=colours)


def _label(name: str, following: int) -> int:
    if folded(name) in BACKGROUND_NAMES:
        return 0
    return IGNORE if folded(name) in VOID_NAMES else following

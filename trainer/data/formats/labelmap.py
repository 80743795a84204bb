"""``labelmap.txt``: the class table that CVAT and Datumaro put beside masks in colours."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.data.colours import VOC_COLOURS, Colour
from trainer.data.dataset import IGNORE, check_classes, some
from trainer.data.names import BACKGROUND_NAMES, IGNORE_NAMES, folded
from trainer.errors import DataError

NAME = "labelmap.txt"
SHAPE = "# label:color_rgb:parts:actions, then lines such as cat:128,0,0::"
VOID_NAMES = IGNORE_NAMES | {"ignored", "void"}
BORDER = next(colour for colour, value in VOC_COLOURS.items() if value == IGNORE)
"""The colour that VOC gives to outlines."""
LINE = re.compile(r"(.+?):\s*(?:(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3}))?\s*(?::.*)?")


def read_labelmap(path: Path) -> tuple[tuple[str, ...], dict[Colour, int]]:
    """Class names in file order, and the label of each colour: 0, 1 to K, 255.

    Black is background, whether a line says so or not, and so is what is called ``background``.
    What is called ``ignored`` or ``void``, and VOC's colour of outlines if no class has it, is 255.

    Raises:
        DataError: a line that is none, a class without a colour, or a colour twice.
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
    return tuple(classes), colours


def _label(name: str, following: int) -> int:
    if folded(name) in BACKGROUND_NAMES:
        return 0
    return IGNORE if folded(name) in VOID_NAMES else following

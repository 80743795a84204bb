"""The names that masks have in annotation tools, and their values here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data.classes import positions_of
from trainer.data.dataset import IGNORE
from trainer.data.names import BACKGROUND_NAMES, IGNORE_NAMES, folded
from trainer.data.palette import voc_palette
from trainer.errors import DataError, nearest

IGNORED = "ignore"
"""What tools call pixels that do not count: they know no value 255. No class has this name."""
BACKGROUND = "background"
Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Labels:
    """The class table of a review.

    Attributes:
        classes: K class names; ``classes[k]`` has the value k+1 in masks.
    """

    classes: tuple[str, ...]

    @property
    def names(self) -> dict[str, int]:
        """Value of each name that a person can paint: the classes and ``ignore``."""
        return {**{name: k + 1 for k, name in enumerate(self.classes)}, IGNORED: IGNORE}

    def colour(self, value: int) -> Colour:
        """The VOC colour of a value."""
        red, green, blue = voc_palette()[value].tolist()
        return red, green, blue

    def value(self, name: str, where: str) -> int:
        """The value of a name in a tool's file.

        Raises:
            DataError: it is no class, nor background or ignore.
        """
        if folded(name) in BACKGROUND_NAMES:
            return 0
        if folded(name) in IGNORE_NAMES:
            return IGNORE
        position = positions_of([name], self.classes).get(name)
        if position is None:
            raise DataError(
                f"{where} has the label {name!r}, which is no class of this run",
                nearest(name, (*self.classes, BACKGROUND, IGNORED)),
                "rename the label in the tool, and export again",
            )
        return position + 1

    def check_values(self, mask: Pixels, where: str) -> None:
        """Check that a mask holds values of this table only.

        Raises:
            DataError: it holds others.
        """
        strange = sorted(set(np.unique(mask).tolist()) - {0, *self.names.values()})
        if strange:
            raise DataError(
                f"{where} holds the values {strange}",
                f"0, 1 to {len(self.classes)} in the order of the classes, and {IGNORE}",
            )

    def changes(self, before: Pixels, after: Pixels) -> dict[str, int]:
        """Pixels that each name gains, or loses where negative; names that do neither left out."""
        old, new = (np.bincount(mask.ravel(), minlength=256) for mask in (before, after))
        changes = {name: int(new[value] - old[value]) for name, value in self.names.items()}
        return {name: change for name, change in changes.items() if change}

"""What runs a graph. One module an inference library; each has an ``Engine`` and imports its library when loaded."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from serving.errors import OutputError
from serving.repository import OUTPUTS, Card

Outputs = dict[str, npt.NDArray[np.generic]]


class Engine(Protocol):
    """A loaded graph. ``run`` may be called from several threads at once and releases the GIL."""

    description: str

    def run(self, image: npt.NDArray[np.uint8]) -> Outputs:
        """From uint8 [N,H,W,3] RGB to the outputs of ``repository.OUTPUTS``, by name."""
        ...


def plan_threads(cpus: int) -> tuple[int, int]:
    """How many runs at once, and threads for each: one a run on small machines, where that gives the most in all."""
    workers = min(cpus, 4)
    return workers, max(1, cpus // workers)


def check_outputs(card: Card, outputs: Outputs, batch: int, height: int, width: int) -> None:
    """Compare what a graph returned with what its kind promises.

    Raises:
        OutputError: an output is missing, or of another type or shape; or a map has no cell.
    """
    classes = len(card.classes)
    shapes: dict[str, tuple[int | None, ...]] = {
        "mask": (batch, height, width),
        "confidence": (batch, height, width),
        "scores": (batch, classes),
        "cam": (batch, classes, None, None),
    }
    for name, (dtype, _) in OUTPUTS[card.kind].items():
        if name not in outputs:
            raise OutputError(f"the graph of {card.name} has no output {name!r}", f"{', '.join(OUTPUTS[card.kind])}")
        found, wanted = outputs[name], shapes[name]
        same = len(found.shape) == len(wanted) and all(
            size > 0 and expected in (None, size) for size, expected in zip(found.shape, wanted)
        )
        if str(found.dtype) != dtype or not same:
            raise OutputError(
                f"output {name!r} of {card.name} is {found.dtype} {list(found.shape)}", f"{dtype} {list(wanted)}"
            )

"""What runs a graph: one module per inference library, each imported when it is used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serving.card import Card
from serving.errors import OutputError

Inputs = Mapping[str, npt.NDArray[np.generic]]
Outputs = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype and shape of an input or output; -1 is a free axis, and the first is the
    batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class Stopped(Exception):
    """A run was ended by its :class:`Stop`."""


class Stop:
    """Ends one run from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end: Callable[[], None] | None = None
        self.requested = False

    def request(self) -> None:
        """End the run, or prevent it."""
        with self._lock:
            self.requested = True
            if self._end:
                self._end()

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """For engines: calling ``end`` ends the run inside the block.

        Raises:
            Stopped: the request came before the block, or an error in the block followed it.
        """
        with self._lock:
            if self.requested:
                raise Stopped
            self._end = end
        try:
            yield
        except Exception as error:
            # The library reports an ended run as some error of its own. The request tells it apart
            # from a real failure.
            if self.requested:
                raise Stopped from error
            raise
        finally:
            with self._lock:
                self._end = None


@dataclass(frozen=True)
class Plan:
    """How an engine will be used.

    Attributes:
        workers: parallel runs.
        threads: per run.
        max_batch: largest first axis of the inputs.
        sizes: heights and widths that most images have, the most frequent first.
    """

    workers: int = 1
    threads: int = 1
    max_batch: int = 1
    sizes: tuple[tuple[int, int], ...] = ()


class Engine(Protocol):
    """A loaded graph.

    Attributes:
        description: library, version and device, for provenance.
    """

    description: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, inputs: Inputs, stop: Stop | None = None) -> Outputs:
        """Every output by name. Thread-safe; releases the GIL.

        Raises:
            Stopped: ``stop`` was requested before the end.
        """
        ...

    def close(self) -> None:
        """Free everything. Nothing may run afterwards."""
        ...


def plan_threads(cpus: int) -> tuple[int, int]:
    """Parallel runs and threads per run. Small machines get one thread per run, for the highest
    total.
    """
    # Each parallel run needs memory; processors beyond four become threads of a run.
    workers = min(cpus, 4)
    return workers, max(1, cpus // workers)


def check_outputs(card: Card, outputs: Outputs, batch: int, height: int, width: int) -> None:
    """Check the outputs of a segmenter or CAM model against the promise of its kind.

    Raises:
        OutputError: an output is missing, or has another type or shape, or a map has no cell.
    """
    classes = len(card.classes)
    shapes: dict[str, tuple[int | None, ...]] = {
        "mask": (batch, height, width),
        "confidence": (batch, height, width),
        "scores": (batch, classes),
        "cam": (batch, classes, None, None),
        "doubt": (batch, 1),
    }
    for name, (dtype, _) in card.outputs.items():
        if name not in outputs:
            raise OutputError(
                f"the graph of {card.name} has no output {name!r}",
                f"{', '.join(card.outputs)}",
            )
        array, shape = outputs[name], shapes[name]
        same = len(array.shape) == len(shape) and all(
            size > 0 and length in (None, size) for size, length in zip(array.shape, shape)
        )
        if str(array.dtype) != dtype or not same:
            raise OutputError(
                f"output {name!r} of {card.name} is {array.dtype} {list(array.shape)}",
                f"{dtype} {list(shape)}",
            )

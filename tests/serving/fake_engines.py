"""Engines whose runs begin and end when a test says so."""

from __future__ import annotations

import threading

import numpy as np

from serving.engines import Stopped, TensorSpec


class Gate:
    """Doubles its input ``x`` of int64 [N,w], row by row; a run ends once the gate is open.

    Attributes:
        open: the gate.
        begun: first values of the rows of every run, in the order in which the runs began.
        poison: a run with this value in it raises.
        stopped: runs that were stopped.
    """

    description = "gate"
    inputs = (TensorSpec("x", "int64", (-1, -1)),)
    outputs = (TensorSpec("y", "int64", (-1, -1)),)

    def __init__(self, poison: int | None = None, error: BaseException | None = None) -> None:
        self.open = threading.Event()
        self.begun: list[list[int]] = []
        self.poison, self.error = poison, error or RuntimeError("poison")
        self.stopped = self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def run(self, inputs, stop=None):
        values = inputs["x"]
        with self.lock:
            self.begun.append(values[:, 0].tolist())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.wait(stop)
            if self.poison is not None and (values == self.poison).any():
                raise self.error
            return {"y": 2 * values}
        finally:
            with self.lock:
                self.at_once -= 1

    def wait(self, stop):
        woken = threading.Event()
        watcher = threading.Thread(target=lambda: (self.open.wait(20), woken.set()))
        watcher.start()
        try:
            with stop.ending(woken.set):
                woken.wait(20)
                if stop.requested:
                    raise Stopped
        except Stopped:
            self.stopped += 1
            raise

    def close(self):
        self.open.set()


def rows(*values: int, width: int = 1) -> dict[str, np.ndarray]:
    """Inputs of a gate: one row a value."""
    return {"x": np.repeat(np.array(values, np.int64)[:, None], width, axis=1)}

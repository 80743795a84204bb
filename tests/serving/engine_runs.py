"""Runs of an engine, whichever it is."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tiny_models

from serving.engines import Engine, Inputs, Stop, Stopped


def image(height=24, width=40, count=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def wrong_runs(engine: Engine, steps: int) -> list[int]:
    """Of four threads that run at the same time: the seed of one for each of its runs that gave
    another image's mask.
    """
    wrong = []

    def work(seed):
        for step in range(steps):
            batch = image(16 + 8 * (step % 3), 40, seed=seed * 10 + step)
            if not np.array_equal(
                engine.run({"image": batch})["mask"][0], tiny_models.expected_mask(batch[0])
            ):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return wrong


def assert_stops(engine: Engine, inputs: Inputs) -> None:
    """A run that would take long is stopped, and so is one that begins after the stop."""
    stop = Stop()
    ender = threading.Timer(0.1, stop.request)
    ender.start()
    with pytest.raises(Stopped):
        engine.run(inputs, stop)
    ender.join()
    with pytest.raises(Stopped):
        engine.run(inputs, stop)

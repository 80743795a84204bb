"""The queue before an engine: bounded, first come first served, and never running what nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.engines import Engine, Outputs
from serving.errors import DeadlineMissed, Overloaded


@dataclass(frozen=True)
class Ran:
    """The outputs of a run, and the seconds before and in it."""

    outputs: Outputs
    queued: float
    ran: float


class Batcher:
    """Runs one model's engine in ``workers`` threads of its own.

    Args:
        engine: to run.
        workers: runs at once.
        capacity: requests admitted and not answered yet, those that run included; one more is refused.
    """

    def __init__(self, engine: Engine, workers: int, capacity: int) -> None:
        self._engine = engine
        self._workers = workers
        self._capacity = capacity
        self._admitted = 0
        self._mean_run = 0.0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="engine")

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Hold a place in the queue. Taken before the image is decoded, so that memory is bounded too.

        Raises:
            Overloaded: every place is taken; ``retry_after`` is the time in which one should fall free.
        """
        if self._admitted >= self._capacity:
            retry_after = max(0.05, self._mean_run * self._admitted / self._workers)
            raise Overloaded(
                f"{self._admitted} requests are waiting already",
                f"at most {self._capacity}",
                f"again in {retry_after:.2f} s",
                retry_after=retry_after,
            )
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def run(self, image: npt.NDArray[np.uint8], deadline: float | None = None) -> Ran:
        """Wait for a thread and run the engine on uint8 [N,H,W,3].

        A cancelled caller, or one whose ``deadline`` (of ``time.monotonic``) passed, costs no run.

        Raises:
            DeadlineMissed: the deadline passed while the image waited.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._run, image, time.monotonic(), deadline
        )

    def close(self) -> None:
        """End the threads once they are idle."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run(self, image: npt.NDArray[np.uint8], submitted: float, deadline: float | None) -> Ran:
        started = time.monotonic()
        if deadline is not None and started >= deadline:
            raise DeadlineMissed("the deadline passed before the engine was free", hint="a longer deadline, or later")
        outputs = self._engine.run(image)
        ran = time.monotonic() - started
        with self._lock:
            self._mean_run = ran if not self._mean_run else 0.9 * self._mean_run + 0.1 * ran
        return Ran(outputs, started - submitted, ran)

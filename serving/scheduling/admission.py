"""Admission to the queue of an engine: at most so many requests, and none that would miss its
deadline by the measured times.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import DeadlineMissed, Overloaded

SMOOTHING = 0.1
SHORTEST_RETRY = 0.05


class Admission:
    """Places before one engine, counted exactly, and running means of the time that its runs take.

    Args:
        capacity: places; a request holds one from before its image is decoded until its reply is
            made.
        workers: runs at once.

    Attributes:
        admitted: places taken now.
        refused: requests that were not let in.
        run_seconds: mean time of a run.
    """

    def __init__(self, capacity: int, workers: int) -> None:
        self._capacity, self._workers = capacity, workers
        self._lock = threading.Lock()
        self._priorities: Counter[int] = Counter()
        self._request_seconds = 0.0
        self.admitted = self.refused = 0
        self.run_seconds = 0.0

    @contextmanager
    def hold(self, deadline: float | None, priority: int) -> Iterator[None]:
        """See :meth:`serving.scheduling.batcher.Batcher.admission`."""
        with self._lock:
            try:
                self._check(deadline, priority)
            except (Overloaded, DeadlineMissed):
                self.refused += 1
                raise
            self.admitted += 1
            self._priorities[priority] += 1
        try:
            yield
        finally:
            with self._lock:
                self.admitted -= 1
                self._priorities[priority] -= 1
                if not self._priorities[priority]:
                    del self._priorities[priority]

    def measure(self, seconds: float, requests: int) -> None:
        """Take note of a run of some requests."""
        with self._lock:
            self.run_seconds = _smooth(self.run_seconds, seconds)
            self._request_seconds = _smooth(self._request_seconds, seconds / requests)

    def _check(self, deadline: float | None, priority: int) -> None:
        if self.admitted >= self._capacity:
            retry_after = max(SHORTEST_RETRY, self._request_seconds * self.admitted / self._workers)
            raise Overloaded(
                f"{self.admitted} requests are waiting already",
                f"at most {self._capacity}",
                f"again in {retry_after:.2f} s",
                retry_after=retry_after,
            )
        if deadline is None:
            return
        before = sum(count for level, count in self._priorities.items() if level >= priority)
        wait = max(0, before + 1 - self._workers) * self._request_seconds / self._workers
        # Where nobody is before it, a request is let in whatever was measured: it may be the one
        # that measures anew.
        seconds = wait + self.run_seconds if self.admitted else 0.0
        left = deadline - time.monotonic()
        if left <= seconds:
            raise DeadlineMissed(
                f"the answer would take about {seconds:.2f} s and {max(0.0, left):.2f} s are left",
                hint="a longer deadline, or later",
            )


def _smooth(mean: float, value: float) -> float:
    return mean + SMOOTHING * (value - mean) if mean else value

"""Admission to an engine's queue: a limited number of requests, and none that would be too late."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import DeadlineMissed, Overloaded

# Weight of the newest run in the running means: about the last ten runs count.
SMOOTHING = 0.1
# Seconds. Callers who return sooner would only be refused again.
SHORTEST_RETRY = 0.05


class Admission:
    """Places before one engine, and running means of the time that its runs take.

    Args:
        capacity: places; a request holds one from before its decoding until its reply is made.
        workers: parallel runs.

    Attributes:
        admitted: places taken now.
        refused: requests refused until now.
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
        """Record a run with this many requests."""
        with self._lock:
            self.run_seconds = _smooth(self.run_seconds, seconds)
            self._request_seconds = _smooth(self._request_seconds, seconds / requests)

    def _check(self, deadline: float | None, priority: int) -> None:
        if self.admitted >= self._capacity:
            retry_after = max(SHORTEST_RETRY, self._request_seconds * self.admitted / self._workers)
            raise Overloaded(
                f"{self.admitted} requests of this model wait or run already",
                f"at most {self._capacity}",
                f"again in {retry_after:.2f} s",
                retry_after=retry_after,
            )
        if deadline is None:
            return
        # Requests of a lower priority will be overtaken.
        before = sum(count for level, count in self._priorities.items() if level >= priority)
        wait = max(0, before + 1 - self._workers) * self._request_seconds / self._workers
        # With nobody before it a request is always admitted: after one slow run, only another run
        # can correct the mean.
        seconds = wait + self.run_seconds if self.admitted else 0.0
        left = deadline - time.monotonic()
        if left <= seconds:
            raise DeadlineMissed(
                f"the answer would take about {seconds:.2f} s, {max(0.0, left):.2f} s are left",
                hint="a longer deadline, or again later",
            )


def _smooth(mean: float, value: float) -> float:
    return mean + SMOOTHING * (value - mean) if mean else value

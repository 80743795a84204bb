"""The queue before an engine: bounded, first come first served, and never running what nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from serving.engines import Engine, Inputs, Outputs
from serving.errors import DeadlineMissed, Overloaded


@dataclass(frozen=True)
class Ran:
    """One request's share of a run.

    Attributes:
        outputs: of this request alone, by name.
        queued, ran: seconds before the run and in it.
        batch: sum of the first axes of all requests in the run.
    """

    outputs: Outputs
    queued: float
    ran: float
    batch: int


@dataclass
class BatchStatistics:
    """Runs of one batch size, and the seconds that they took in all."""

    executions: int = 0
    seconds: float = 0.0


@dataclass
class Statistics:
    """What a batcher does now, and did since it was made; seconds are sums over requests.

    Attributes:
        admitted: requests that hold a place now, those included that are not queued yet or any more.
        waiting, running: requests in the queue and in a run now.
        requests: answered.
        failures: whose run failed.
        dropped: whose caller left, or whose deadline passed, before they were run.
        refused: not admitted.
        queue_seconds, run_seconds: of the requests answered.
        failure_seconds: of those that failed, queue and run together.
        batches: of every run, by batch size.
        last_run: time of the latest run as seconds since 1970, 0 before the first.
    """

    admitted: int = 0
    waiting: int = 0
    running: int = 0
    requests: int = 0
    failures: int = 0
    dropped: int = 0
    refused: int = 0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    failure_seconds: float = 0.0
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    last_run: float = 0.0

    @property
    def executions(self) -> int:
        """Runs of the engine."""
        return sum(batch.executions for batch in self.batches.values())

    @property
    def inferences(self) -> int:
        """Images or tensors in all runs."""
        return sum(size * batch.executions for size, batch in self.batches.items())


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
        self._mean_run = 0.0
        self._counts = Statistics()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="engine")

    @contextmanager
    def admission(self, deadline: float | None = None, priority: int = 0) -> Iterator[None]:
        """Hold a place in the queue. Taken before the image is decoded, so that memory is bounded too.

        Args:
            deadline: of ``time.monotonic``, when the answer is of no use any more.
            priority: a larger one runs first.

        Raises:
            Overloaded: every place is taken; ``retry_after`` is the time in which one should fall free.
            DeadlineMissed: the deadline has passed.
        """
        admitted = self._counts.admitted
        if admitted >= self._capacity:
            self._counts.refused += 1
            retry_after = max(0.05, self._mean_run * admitted / self._workers)
            raise Overloaded(
                f"{admitted} requests are waiting already",
                f"at most {self._capacity}",
                f"again in {retry_after:.2f} s",
                retry_after=retry_after,
            )
        self._counts.admitted += 1
        try:
            yield
        finally:
            self._counts.admitted -= 1

    async def run(self, inputs: Inputs, deadline: float | None = None, priority: int = 0) -> Ran:
        """Wait for a thread and run the engine on ``inputs``, whose first axes are this request's share of the batch.

        A cancelled caller, or one whose ``deadline`` (of ``time.monotonic``) passed, costs no run.

        Raises:
            DeadlineMissed: the deadline passed while the request waited.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._run, inputs, time.monotonic(), deadline
        )

    def statistics(self) -> Statistics:
        """A copy of the counters."""
        with self._lock:
            batches = {size: replace(batch) for size, batch in self._counts.batches.items()}
            return replace(self._counts, batches=batches)

    def close(self) -> None:
        """End the threads once they are idle."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run(self, inputs: Inputs, submitted: float, deadline: float | None) -> Ran:
        started = time.monotonic()
        if deadline is not None and started >= deadline:
            with self._lock:
                self._counts.dropped += 1
            raise DeadlineMissed("the deadline passed before the engine was free", hint="a longer deadline, or later")
        size = len(next(iter(inputs.values())))
        try:
            outputs = self._engine.run(inputs)
        except Exception:
            with self._lock:
                self._counts.failures += 1
                self._counts.failure_seconds += time.monotonic() - submitted
            raise
        ran = time.monotonic() - started
        with self._lock:
            self._mean_run = ran if not self._mean_run else 0.9 * self._mean_run + 0.1 * ran
            self._counts.requests += 1
            self._counts.queue_seconds += started - submitted
            self._counts.run_seconds += ran
            self._counts.last_run = time.time()
            batch = self._counts.batches.setdefault(size, BatchStatistics())
            batch.executions += 1
            batch.seconds += ran
        return Ran(outputs, started - submitted, ran, size)

"""The counters of a batcher, for metrics and for the statistics of the Open Inference Protocol."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class BatchStatistics:
    """Runs of one batch size, and their total time."""

    executions: int = 0
    seconds: float = 0.0


@dataclass
class Statistics:
    """State and counters of a batcher; seconds are sums over requests.

    Attributes:
        admitted: requests that hold a place now, in the queue or not.
        waiting, running: requests in the queue, and in a run, now.
        requests: answered.
        failures: whose run failed.
        dropped: whose caller left, or whose deadline passed, before the answer.
        refused: not admitted.
        queue_seconds, run_seconds: of answered requests.
        failure_seconds: of failed requests, queue and run together.
        batches: of successful runs, by batch size.
        last_run: time of the last successful run in seconds since 1970, 0 before the first.
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

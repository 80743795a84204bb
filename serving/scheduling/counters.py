"""What a batcher counts, for metrics and the statistics of the Open Inference Protocol."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class BatchStatistics:
    """Runs of one batch size, and the seconds that they took in all."""

    executions: int = 0
    seconds: float = 0.0


@dataclass
class Statistics:
    """What a batcher does now, and did since it was made; seconds are sums over requests.

    Attributes:
        admitted: requests that hold a place now, those included that are not queued yet or any
            more.
        waiting, running: requests in the queue and in a run now.
        requests: answered.
        failures: whose run failed.
        dropped: whose caller left, or whose deadline passed, before they were answered.
        refused: not admitted.
        queue_seconds, run_seconds: of the requests answered.
        failure_seconds: of those that failed, queue and run together.
        batches: of every run that ended well, by batch size.
        last_run: time of the latest such run as seconds since 1970, 0 before the first.
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

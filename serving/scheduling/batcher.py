"""From requests to runs of one model: a bounded queue before engine threads.

A request is admitted before its image is decoded. Then it waits until a thread is free and its
batch is full or due (:mod:`serving.scheduling.schedule`). Requests that nobody waits for any more
are skipped. All times are ``time.monotonic``.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import cast

import numpy as np

from serving.engines import Engine, Inputs, Outputs, Stop, Stopped
from serving.errors import DeadlineMissed, FieldError, OutputError, ServerUnavailable
from serving.scheduling.admission import Admission
from serving.scheduling.counters import BatchStatistics, Statistics
from serving.scheduling.job import Job, Ran, Run
from serving.scheduling.schedule import Queue


class Batcher:
    """Runs one model's engine in ``workers`` threads of its own.

    Args:
        workers: parallel runs.
        capacity: requests admitted and not answered, running ones included; the next is refused.
        max_batch: images per run; a single larger request runs alone.
        max_delay: seconds that a free worker waits for more requests of the same shape.
    """

    def __init__(
        self,
        engine: Engine,
        workers: int,
        capacity: int,
        max_batch: int = 1,
        max_delay: float = 0.0,
    ) -> None:
        self.workers, self.capacity = workers, capacity
        self.max_batch, self.max_delay = max_batch, max_delay
        self._engine = engine
        self._queue: Queue[Job] = Queue(max_batch)
        self._counts = Statistics()
        self._admission = Admission(capacity, workers)
        self._runs: set[Run] = set()
        self._closed = False
        self._changed = threading.Condition()
        # Daemons: an engine that hangs must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def admission(
        self, deadline: float | None = None, priority: int = 0
    ) -> AbstractContextManager[None]:
        """Hold a place in the queue. Enter it before the image is decoded, so that memory is
        bounded, too.

        Args:
            deadline: after which the answer is useless.
            priority: a larger one runs first.

        Raises:
            Overloaded: every place is taken; ``retry_after`` estimates when one is free.
            DeadlineMissed: the deadline has passed, or will pass, by the measured time of earlier
                requests and of a run.
        """
        return self._admission.hold(deadline, priority)

    async def run(self, inputs: Inputs, deadline: float | None = None, priority: int = 0) -> Ran:
        """Wait for a worker and run the engine on ``inputs``, this request's share of a batch.

        A caller who leaves, or whose ``deadline`` passes, costs no run that has not begun; a run
        that everybody left is stopped. A failed batch is repeated request by request, so that one
        bad request does not fail its neighbours.

        Raises:
            DeadlineMissed: the deadline passed first.
            ServerUnavailable: the batcher was closed.
            Exception: whatever the engine raised.
        """
        now = time.monotonic()
        job = self._job(inputs, now, math.inf if deadline is None else deadline, priority)
        with self._changed:
            if self._closed:
                raise _closed()
            self._queue.add(job)
            self._changed.notify()
        try:
            async with asyncio.timeout(
                None if deadline is None else max(0.0, deadline - now)
            ) as timer:
                return await job.answer
        except TimeoutError:
            # A timeout of the engine itself is not the caller's deadline.
            if not timer.expired():
                raise
            raise _missed() from None
        finally:
            self._leave(job)

    def statistics(self) -> Statistics:
        """A copy of the counters."""
        with self._changed:
            return replace(
                self._counts,
                batches={size: replace(batch) for size, batch in self._counts.batches.items()},
                waiting=len(self._queue),
                admitted=self._admission.admitted,
                refused=self._admission.refused,
            )

    def close(self, seconds: float = 10.0) -> None:
        """Fail what waits, stop what runs, and join the threads; one that hangs is abandoned."""
        with self._changed:
            self._closed = True
            for run in self._runs:
                run.stop.request()
            self._drop(self._queue.expire(math.inf), _closed)
            self._changed.notify_all()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _job(self, inputs: Inputs, now: float, deadline: float, priority: int) -> Job:
        sizes = sorted({len(values) for values in inputs.values()})
        if len(sizes) != 1:
            raise FieldError(f"inputs with first axes of {sizes}", "one batch size", field="inputs")
        # Waiting for other requests may use half of the spare time at most.
        spare = max(0.0, deadline - now - self._admission.run_seconds) / 2
        axes = ((name, values.dtype.str, values.shape[1:]) for name, values in inputs.items())
        return Job(
            bucket=tuple(sorted(axes)),
            size=sizes[0],
            arrived=now,
            due=now + min(self.max_delay, spare),
            deadline=deadline,
            priority=priority,
            inputs=inputs,
            answer=asyncio.get_running_loop().create_future(),
        )

    def _leave(self, job: Job) -> None:
        """The caller no longer waits: forget the job, and stop its run if it was the last of it."""
        with self._changed:
            if job.over:
                return
            job.over = True
            self._counts.dropped += 1
            if job.run is None:
                self._queue.discard(job)
                return
            job.run.waiting -= 1
            left = job.run.waiting == 0
        if left:
            # Outside of the lock: ending a run may call into the library.
            job.run.stop.request()

    def _work(self) -> None:
        while jobs := self._next():
            self._execute(jobs)

    def _next(self) -> list[Job]:
        """Wait for the next batch; empty once the batcher is closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                self._drop(self._queue.expire(now), _missed)
                if jobs := self._queue.take(now):
                    self._begin(jobs)
                    # This worker may have been the one that watched the due time of the rest.
                    if len(self._queue):
                        self._changed.notify()
                    return jobs
                due = self._queue.due()
                self._changed.wait(None if due == math.inf else due - now)
            return []

    def _execute(self, jobs: Sequence[Job]) -> None:
        run = cast(Run, jobs[0].run)
        began = time.monotonic()
        try:
            # Without the lock: requests arrive and leave while the engine runs.
            outputs = self._call(jobs, run.stop)
        # A worker must survive whatever a library raises.
        except BaseException as error:
            for job in self._failed(jobs, error):
                self._execute([job])
            return
        ran = time.monotonic() - began
        total = sum(job.size for job in jobs)
        self._admission.measure(ran, len(jobs))
        with self._changed:
            self._end(jobs)
            batch = self._counts.batches.setdefault(total, BatchStatistics())
            batch.executions += 1
            batch.seconds += ran
            self._counts.last_run = time.time()
            live = [job for job in jobs if not job.over]
            for job in live:
                job.over = True
                self._counts.requests += 1
                self._counts.queue_seconds += began - job.arrived
                self._counts.run_seconds += ran
        first = 0
        for job in jobs:
            # Views: a batch is split without copying.
            share = {name: values[first : first + job.size] for name, values in outputs.items()}
            first += job.size
            if job in live:
                job.finish(Ran(share, began - job.arrived, ran, total))

    def _call(self, jobs: Sequence[Job], stop: Stop) -> Outputs:
        if stop.requested:
            raise Stopped
        inputs = jobs[0].inputs
        if len(jobs) > 1:
            inputs = {name: np.concatenate([job.inputs[name] for job in jobs]) for name in inputs}
        outputs = self._engine.run(inputs, stop)
        total = sum(job.size for job in jobs)
        for name, values in outputs.items():
            if values.shape[:1] != (total,):
                raise OutputError(
                    f"output {name!r} is {list(values.shape)} for a batch of {total}",
                    f"[{total}, ...]",
                )
        return outputs

    def _failed(self, jobs: Sequence[Job], error: BaseException) -> list[Job]:
        """Fail a job that ran alone, or return the jobs of a batch, each begun again alone."""
        with self._changed:
            self._end(jobs)
            live = [job for job in jobs if not job.over]
            if len(jobs) > 1 and not self._closed and not isinstance(error, Stopped):
                for job in live:
                    self._begin([job])
                return live
            for job in live:
                job.over = True
                self._counts.failures += 1
                self._counts.failure_seconds += time.monotonic() - job.arrived
                job.finish(_closed() if self._closed else _exception(error))
        return []

    def _drop(self, jobs: Sequence[Job], error: Callable[[], Exception]) -> None:
        for job in jobs:
            job.over = True
            self._counts.dropped += 1
            job.finish(error())

    def _begin(self, jobs: Sequence[Job]) -> None:
        run = Run(len(jobs))
        self._runs.add(run)
        self._counts.running += len(jobs)
        for job in jobs:
            job.run = run

    def _end(self, jobs: Sequence[Job]) -> None:
        self._runs.discard(cast(Run, jobs[0].run))
        self._counts.running -= len(jobs)


def _exception(error: BaseException) -> Exception:
    """The error as one that a future accepts and that ends a single request."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    fault = RuntimeError(f"the engine raised {type(error).__name__}")
    fault.__cause__ = error
    return fault


def _missed() -> DeadlineMissed:
    return DeadlineMissed(
        "the deadline passed before the answer was ready", hint="a longer deadline, or again later"
    )


def _closed() -> ServerUnavailable:
    return ServerUnavailable("the model is being unloaded", hint="again soon")

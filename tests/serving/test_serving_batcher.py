from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from serving.batcher import Batcher
from serving.cpus import available_cpus
from serving.engines import plan_threads
from serving.errors import DeadlineMissed, Overloaded

INPUTS = {"image": np.zeros((1, 8, 8, 3), np.uint8)}


class Gate:
    """An engine that runs only while its gate is open, and counts."""

    description = "gate"

    def __init__(self) -> None:
        self.open = threading.Event()
        self.runs = 0
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()

    def run(self, inputs, stop=None):
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.open.wait(10)
        with self.lock:
            self.runs += 1
            self.at_once -= 1
        return {"sum": inputs["image"]}


def test_runs_go_on_in_as_many_threads_as_asked():
    async def work():
        gate = Gate()
        batcher = Batcher(gate, workers=2, capacity=10)
        tasks = [asyncio.ensure_future(batcher.run(INPUTS)) for _ in range(5)]
        while gate.at_once < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        gate.open.set()
        results = await asyncio.gather(*tasks)
        batcher.close()
        assert gate.most_at_once == 2
        assert gate.runs == 5
        assert all(result.outputs["sum"] is INPUTS["image"] for result in results)
        assert results[-1].queued >= 0.05
        counts = batcher.statistics()
        assert (counts.requests, counts.batches[1].executions, counts.failures) == (5, 5, 0)
        assert counts.queue_seconds == pytest.approx(sum(result.queued for result in results))

    asyncio.run(work())


def test_cancelled_and_expired_requests_cost_no_run():
    async def work():
        gate = Gate()
        batcher = Batcher(gate, workers=1, capacity=10)
        first = asyncio.ensure_future(batcher.run(INPUTS))
        await asyncio.sleep(0.02)
        cancelled = asyncio.ensure_future(batcher.run(INPUTS))
        expired = asyncio.ensure_future(batcher.run(INPUTS, time.monotonic() + 0.01))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        # Delivered at the loop's next turn; the engine must not be let go before.
        await asyncio.gather(cancelled, return_exceptions=True)
        gate.open.set()
        await first
        with pytest.raises(DeadlineMissed):
            await expired
        batcher.close()
        assert gate.runs == 1

    asyncio.run(work())


def test_one_more_than_the_capacity_is_refused_and_places_fall_free():
    gate = Gate()
    batcher = Batcher(gate, workers=1, capacity=2)
    with batcher.admission():
        with batcher.admission(), pytest.raises(Overloaded) as caught, batcher.admission():
            raise AssertionError("admitted beyond the capacity")
        assert caught.value.retry_after > 0
        with batcher.admission():
            assert gate.runs == 0
    batcher.close()


def test_the_quota_of_a_container_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert available_cpus(tmp_path) == 16
    (tmp_path / "cpu.max").write_text("350000 100000\n")
    assert available_cpus(tmp_path) == 3
    (tmp_path / "cpu.max").write_text("20000 100000\n")
    assert available_cpus(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cpus(tmp_path) == 16
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("200000")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert available_cpus(tmp_path) == 2


def test_thread_plans():
    assert [plan_threads(cpus) for cpus in (1, 2, 4, 16)] == [(1, 1), (2, 1), (4, 1), (4, 4)]

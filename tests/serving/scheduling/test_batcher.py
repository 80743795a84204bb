"""Threads and tasks around the queue; runs begin and end when the tests say so."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
from fake_engines import Gate, rows

from serving.engines import plan_threads
from serving.errors import DeadlineMissed, FieldError, OutputError, Overloaded, ServerUnavailable
from serving.scheduling.batcher import Batcher
from serving.scheduling.cpus import available_cpus


async def until(condition) -> None:
    """Let the event loop turn until something is so."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def batching(engine, **options):
    batcher = Batcher(engine, **{"workers": 1, "capacity": 100} | options)
    try:
        yield batcher
    finally:
        engine.close()
        batcher.close()


def start(batcher, *values, width=1, **options):
    return asyncio.ensure_future(batcher.run(rows(*values, width=width), **options))


async def occupied(batcher, engine, value=99):
    """Keep one worker busy; its task."""
    runs = len(engine.begun)
    task = start(batcher, value)
    await until(lambda: len(engine.begun) > runs)
    return task


async def queued(batcher, *starts):
    """Start calls one after the other, each in the queue before the next."""
    tasks = []
    for arguments, options in starts:
        waiting = batcher.statistics().waiting
        tasks.append(start(batcher, *arguments, **options))
        await until(lambda waiting=waiting: batcher.statistics().waiting > waiting)
    return tasks


def test_runs_go_on_in_as_many_threads_as_asked():
    async def work():
        gate = Gate()
        async with batching(gate, workers=2) as batcher:
            tasks = [start(batcher, value) for value in range(5)]
            await until(lambda: gate.at_once == 2)
            gate.open.set()
            results = await asyncio.gather(*tasks)
            assert gate.most_at_once == 2
            assert [result.outputs["y"].tolist() for result in results] == [
                [[2 * value]] for value in range(5)
            ]
            counts = batcher.statistics()
        assert (counts.requests, counts.batches[1].executions, counts.failures, counts.dropped) == (
            5,
            5,
            0,
            0,
        )
        assert counts.queue_seconds == pytest.approx(sum(result.queued for result in results))
        assert counts.run_seconds == pytest.approx(sum(result.ran for result in results))

    asyncio.run(work())


def test_order_is_by_priority_then_deadline_then_arrival():
    async def work():
        gate, far = Gate(), time.monotonic() + 1000
        async with batching(gate) as batcher:
            first = await occupied(batcher, gate)
            tasks = await queued(
                batcher,
                ([1], {}),
                ([2], {}),
                ([3], {"deadline": far + 5}),
                ([4], {"deadline": far}),
                ([5], {"priority": 1}),
                ([6], {"priority": -1, "deadline": far - 5}),
            )
            gate.open.set()
            await asyncio.gather(first, *tasks)
        assert gate.begun == [[99], [5], [4], [3], [1], [2], [6]]

    asyncio.run(work())


def test_batches_form_from_what_waits_in_equal_shapes_and_everybody_gets_his_own():
    async def work():
        gate = Gate()
        async with batching(gate, max_batch=4) as batcher:
            first = await occupied(batcher, gate)
            calls = [([1], 1), ([2], 2), ([3, 4], 1), ([5], 2), ([6], 1), ([7, 8], 1)]
            tasks = await queued(batcher, *((values, {"width": width}) for values, width in calls))
            gate.open.set()
            results = await asyncio.gather(*tasks)
            await first
            counts = batcher.statistics()
        assert gate.begun == [[99], [1, 3, 4, 6], [2, 5], [7, 8]]
        for (values, width), result in zip(calls, results):
            np.testing.assert_array_equal(result.outputs["y"], 2 * rows(*values, width=width)["x"])
        assert [result.batch for result in results] == [4, 2, 4, 2, 4, 2]
        assert {size: batch.executions for size, batch in counts.batches.items()} == {
            1: 1,
            2: 2,
            4: 1,
        }
        assert counts.requests == 7

    asyncio.run(work())


def test_a_free_worker_waits_for_the_delay_at_most():
    async def work():
        gate = Gate()
        gate.open.set()
        async with batching(gate, max_batch=3, max_delay=0.02) as batcher:
            assert (await batcher.run(rows(1))).batch == 1
        async with batching(gate, workers=2, max_batch=3, max_delay=1000) as batcher:
            results = await asyncio.gather(*(batcher.run(rows(value)) for value in (1, 2, 3)))
            assert [result.batch for result in results] == [3, 3, 3]
            hasty = await batcher.run(rows(4), deadline=time.monotonic() + 0.2)
            assert hasty.batch == 1, "a request is run before its deadline, whatever the delay"

    asyncio.run(work())


def test_the_delay_of_a_second_bucket_is_kept_while_the_first_one_runs():
    async def work():
        gate = Gate()
        async with batching(gate, workers=2, max_batch=3, max_delay=0.02) as batcher:
            tasks = [start(batcher, 1, width=1), start(batcher, 2, width=2)]
            await until(lambda: len(gate.begun) == 2)
            gate.open.set()
            await asyncio.gather(*tasks)

    asyncio.run(work())


def test_cancelled_and_expired_requests_cost_no_run():
    async def work():
        gate = Gate()
        async with batching(gate) as batcher:
            first = await occupied(batcher, gate)
            cancelled, expired = await queued(
                batcher, ([1], {}), ([2], {"deadline": time.monotonic() + 0.02})
            )
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            with pytest.raises(DeadlineMissed):
                await expired
            with pytest.raises(DeadlineMissed):
                await batcher.run(rows(3), deadline=time.monotonic() - 1)
            assert batcher.statistics().waiting == 0
            gate.open.set()
            await first
            counts = batcher.statistics()
        assert gate.begun == [[99]]
        assert (counts.requests, counts.dropped, counts.running) == (1, 3, 0)

    asyncio.run(work())


def test_a_run_is_stopped_when_the_last_of_its_callers_has_left():
    async def work():
        gate = Gate()
        async with batching(gate, max_batch=4) as batcher:
            first = await occupied(batcher, gate)
            tasks = await queued(batcher, ([1], {}), ([2], {"deadline": time.monotonic() + 0.05}))
            first.cancel()
            await until(lambda: gate.stopped == 1)
            await until(lambda: gate.begun[-1] == [2, 1])
            with pytest.raises(DeadlineMissed):
                await tasks[1]
            assert gate.stopped == 1, "one caller waits still"
            tasks[0].cancel()
            await until(lambda: gate.stopped == 2)
            await until(lambda: batcher.statistics().running == 0)
            counts = batcher.statistics()
        assert (counts.requests, counts.failures, counts.dropped) == (0, 0, 3)

    asyncio.run(work())


def test_a_hanging_engine_is_left_at_the_deadline_and_the_next_request_is_run():
    async def work():
        gate = Gate()
        async with batching(gate) as batcher:
            with pytest.raises(DeadlineMissed):
                await batcher.run(rows(1), deadline=time.monotonic() + 0.05)
            await until(lambda: gate.stopped == 1)
            gate.open.set()
            assert (await batcher.run(rows(2))).outputs["y"].tolist() == [[4]]

    asyncio.run(work())


@pytest.mark.parametrize("error", [RuntimeError("poison"), KeyboardInterrupt(), StopIteration()])
def test_one_poisonous_request_does_not_fail_its_neighbours(error):
    async def work():
        gate = Gate(poison=2, error=error)
        async with batching(gate, max_batch=4) as batcher:
            first = await occupied(batcher, gate)
            tasks = await queued(batcher, *(([value], {}) for value in (1, 2, 3)))
            gate.open.set()
            results = await asyncio.gather(first, *tasks, return_exceptions=True)
            counts = batcher.statistics()
            assert (await batcher.run(rows(7))).batch == 1, "the worker outlived it"
        assert gate.begun[:5] == [[99], [1, 2, 3], [1], [2], [3]]
        assert isinstance(results[2], RuntimeError)
        assert [result.outputs["y"].tolist() for result in (results[1], results[3])] == [
            [[2]],
            [[6]],
        ]
        assert (counts.requests, counts.failures) == (3, 1)
        assert counts.failure_seconds > 0

    asyncio.run(work())


def test_a_caller_who_leaves_between_the_batch_and_his_own_run_is_not_run():
    async def work():
        gate = Gate(poison=1)
        async with batching(gate, max_batch=4) as batcher:
            first = await occupied(batcher, gate)
            tasks = await queued(batcher, *(([value], {}) for value in (1, 2, 3)))

            def fail(stop, original=gate.wait):
                original(stop)
                if gate.begun[-1] == [1]:
                    # The batch has failed by now, and the first one runs alone.
                    tasks[2].get_loop().call_soon_threadsafe(tasks[2].cancel)
                    while not tasks[2].done():
                        time.sleep(0.001)

            gate.wait = fail
            gate.open.set()
            results = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert isinstance(results[3], asyncio.CancelledError)
        assert gate.begun == [[99], [1, 2, 3], [1], [2]]

    asyncio.run(work())


@pytest.mark.parametrize("output", [np.zeros((2, 1)), np.zeros(()), np.zeros((0, 1))])
def test_outputs_that_are_no_batch_are_a_fault_of_the_model(output):
    class Liar(Gate):
        def run(self, inputs, stop=None):
            return {"y": output}

    async def work():
        async with batching(Liar()) as batcher:
            with pytest.raises(OutputError, match="'y' is"):
                await batcher.run(rows(1))

    asyncio.run(work())


def test_inputs_of_unequal_batches_are_refused():
    async def work():
        async with batching(Gate()) as batcher:
            with pytest.raises(FieldError, match=r"first axes of \[1, 2\]"):
                await batcher.run(rows(1) | {"z": np.zeros((2, 1))})

    asyncio.run(work())


def test_closing_fails_what_waits_and_stops_what_runs():
    async def work():
        gate = Gate()
        async with batching(gate) as batcher:
            running = await occupied(batcher, gate)
            (waiting,) = await queued(batcher, ([1], {}))
            await asyncio.to_thread(batcher.close)
            for task in (running, waiting):
                with pytest.raises(ServerUnavailable, match="unloaded"):
                    await task
            assert gate.stopped == 1
            with pytest.raises(ServerUnavailable):
                await batcher.run(rows(2))
            batcher.close()
        assert gate.begun == [[99]]

    asyncio.run(work())


def test_closing_does_not_wait_for_an_engine_that_hears_nothing():
    class Deaf(Gate):
        def wait(self, stop):
            self.open.wait(20)

    async def work():
        gate = Deaf()
        async with batching(gate) as batcher:
            task = await occupied(batcher, gate)
            await asyncio.to_thread(batcher.close, 0.05)
            assert gate.at_once == 1
            gate.open.set()
            assert (await task).outputs["y"].tolist() == [[198]], (
                "what it made all the same is handed over"
            )

    asyncio.run(work())


def test_one_more_than_the_capacity_is_refused_and_places_fall_free():
    gate = Gate()
    batcher = Batcher(gate, workers=1, capacity=2)
    with batcher.admission():
        with batcher.admission(), pytest.raises(Overloaded) as caught, batcher.admission():
            raise AssertionError("admitted beyond the capacity")
        assert caught.value.retry_after > 0
        with batcher.admission():
            assert batcher.statistics().admitted == 2
    counts = batcher.statistics()
    assert (counts.admitted, counts.refused, gate.begun) == (0, 1, [])
    batcher.close()


class Timed(Gate):
    """An engine whose runs take a second of the test's clock."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def run(self, inputs, stop=None):
        self.clock.now += 1.0
        return {"y": inputs["x"]}


class Clock:
    """Replaces ``time.monotonic`` of the modules that decide."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        for module in ("serving.scheduling.batcher", "serving.scheduling.admission"):
            monkeypatch.setattr(f"{module}.time", self)

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


def test_admission_knows_what_a_run_takes(monkeypatch):
    clock = Clock(monkeypatch)

    async def work():
        async with batching(Timed(clock), workers=2, capacity=6) as batcher:
            with batcher.admission(clock.now + 0.001):
                await batcher.run(rows(1))
            with batcher.admission(), batcher.admission():
                # Two run; the third begins in half a second and ends a second later.
                told = r"about 1\.50 s, 1\.49 s are left"
                with pytest.raises(DeadlineMissed, match=told), batcher.admission(clock.now + 1.49):
                    raise AssertionError("admitted, and would have missed its deadline")
                with (
                    batcher.admission(clock.now + 1.51),
                    batcher.admission(clock.now + 1.1, priority=1),
                ):
                    pass
                with (
                    batcher.admission(),
                    batcher.admission(),
                    batcher.admission(),
                    batcher.admission(),
                ):
                    with pytest.raises(Overloaded) as caught, batcher.admission():
                        raise AssertionError("admitted beyond the capacity")
                    assert caught.value.retry_after == 3.0
            with pytest.raises(DeadlineMissed), batcher.admission(clock.now):
                raise AssertionError("admitted after its deadline")
            with batcher.admission(clock.now + 0.001):
                assert batcher.statistics().refused == 3, (
                    "an idle engine takes whatever comes in time"
                )

    asyncio.run(work())


def test_jumps_of_the_wall_clock_change_nothing(monkeypatch):
    jumps = random.Random(3)
    monkeypatch.setattr("time.time", lambda: jumps.choice([0.0, -1e9, 4e9, float("nan")]))

    async def work():
        gate = Gate()
        gate.open.set()
        async with batching(gate, max_batch=4, max_delay=0.001) as batcher:
            calls = (
                batcher.run(rows(value), deadline=time.monotonic() + 30) for value in range(50)
            )
            results = await asyncio.gather(*calls)
            assert [int(result.outputs["y"][0, 0]) for result in results] == [
                2 * value for value in range(50)
            ]
            assert all(0 <= result.queued < 30 and 0 <= result.ran < 30 for result in results)

    asyncio.run(work())


def test_thousands_of_random_requests_each_get_their_own_answer():
    """Callers of all shapes, some of whom leave; every other one is answered rightly and nothing is
    left behind.
    """
    rng = random.Random(11)

    async def work():
        gate = Gate()
        gate.open.set()
        gate.wait = lambda stop: None
        async with batching(gate, workers=3, max_batch=5, max_delay=0.0005, capacity=64) as batcher:
            answered = left = refused = 0

            async def call(value):
                nonlocal answered, left, refused
                count, width = rng.choice([1, 1, 2, 7]), rng.choice([1, 2, 3])
                inputs = rows(*range(value, value + count), width=width)
                try:
                    with batcher.admission(priority=rng.choice([0, 1])):
                        patience = rng.choice([None, 20, 20, 20, 0.0003])
                        async with asyncio.timeout(patience):
                            result = await batcher.run(inputs, priority=rng.choice([0, 1]))
                except TimeoutError:
                    left += 1
                except Overloaded:
                    refused += 1
                else:
                    np.testing.assert_array_equal(result.outputs["y"], 2 * inputs["x"])
                    answered += 1

            for block in range(100):
                await asyncio.gather(
                    *(call(1000 * block + 10 * number) for number in range(rng.randint(1, 80)))
                )
            await until(lambda: batcher.statistics().running == 0)
            counts = batcher.statistics()
        assert counts.requests >= answered > 1000
        assert (counts.admitted, counts.waiting, counts.failures) == (0, 0, 0)
        assert counts.refused == refused > 0
        # One who left at the moment of the answer counts as answered here.
        assert counts.requests + counts.dropped == answered + left

    asyncio.run(work())


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

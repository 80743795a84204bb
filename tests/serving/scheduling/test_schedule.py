"""The decisions of the queue, in a time that the tests make."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.scheduling.schedule import Queue, Waiting


def waiting(arrived=0.0, bucket="a", size=1, delay=0.0, deadline=math.inf, priority=0) -> Waiting:
    return Waiting(
        bucket=bucket,
        size=size,
        arrived=arrived,
        due=arrived + delay,
        deadline=deadline,
        priority=priority,
    )


def filled(max_batch, *requests) -> Queue:
    queue = Queue(max_batch)
    for request in requests:
        queue.add(request)
    return queue


def test_priority_goes_before_deadline_and_deadline_before_arrival():
    late = waiting(3.0, priority=1)
    urgent, soon = waiting(2.0, deadline=5.0), waiting(1.0, deadline=9.0)
    first, second = waiting(0.0), waiting(0.5)
    queue = filled(1, second, first, soon, urgent, late)
    assert [queue.take(4.0) for _ in range(6)] == [[late], [urgent], [soon], [first], [second], []]


def test_equals_go_in_the_order_in_which_they_were_added():
    requests = [waiting(1.0) for _ in range(20)]
    queue = filled(1, *requests)
    assert [queue.take(1.0)[0] for _ in requests] == requests


def test_a_batch_is_filled_from_its_own_bucket_only_and_up_to_its_size():
    a = [waiting(float(i), "a") for i in range(5)]
    b = [waiting(0.5, "b"), waiting(0.6, "b")]
    queue = filled(3, *a, *b)
    assert queue.take(9.0) == a[:3]
    assert queue.take(9.0) == b
    assert queue.take(9.0) == a[3:]
    assert len(queue) == 0


def test_a_request_larger_than_a_batch_runs_alone_and_none_is_split():
    small, large, other = waiting(0.0), waiting(1.0, size=9), waiting(2.0, size=3)
    queue = filled(4, small, large, other)
    assert [queue.take(5.0) for _ in range(3)] == [[small], [large], [other]]


def test_a_group_waits_for_its_delay_and_not_longer():
    queue = filled(4, waiting(1.0, delay=0.5), waiting(1.2, "b", delay=0.5))
    assert queue.take(1.49) == []
    assert queue.due() == 1.5
    assert [request.bucket for request in queue.take(1.5)] == ["a"]
    assert queue.due() == 1.7
    assert Queue(4).due() == math.inf


def test_a_full_batch_does_not_wait():
    queue = filled(4, waiting(1.0, size=2, delay=60), waiting(1.1, size=1, delay=60))
    assert queue.take(1.2) == []
    queue.add(waiting(1.2, size=1, delay=60))
    assert len(queue.take(1.2)) == 3


def test_one_that_must_go_early_takes_its_bucket_along():
    patient, hasty = waiting(1.0, delay=60), waiting(1.25, delay=0.25)
    assert filled(4, patient, hasty).take(1.5) == [patient, hasty]


def test_what_may_run_is_not_held_up_by_what_may_not_yet():
    urgent, due = waiting(1.0, "a", delay=9, priority=5), waiting(0.0, "b")
    queue = filled(4, urgent, due)
    assert queue.take(1.0) == [due]
    assert queue.take(1.0) == []


def test_expired_requests_are_taken_out():
    gone, kept = waiting(0.0, deadline=2.0), waiting(0.0, deadline=2.1)
    queue = filled(8, gone, kept)
    assert queue.expire(1.9) == []
    assert queue.expire(2.0) == [gone]
    assert queue.take(2.0) == [kept]


def test_discarding():
    one, two = waiting(0.0), waiting(0.0)
    queue = filled(8, one, two)
    assert queue.discard(one)
    assert not queue.discard(one)
    assert not queue.discard(waiting(0.0, "never seen"))
    assert queue.take(0.0) == [two]


requests = st.builds(
    waiting,
    arrived=st.integers(0, 20).map(float),
    bucket=st.sampled_from("abc"),
    size=st.integers(1, 5),
    delay=st.sampled_from([0.0, 2.0, 7.0]),
    deadline=st.sampled_from([math.inf, 10.0, 30.0]),
    priority=st.integers(-1, 1),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(requests, max_size=25), st.integers(1, 4), st.data())
def test_nothing_is_lost_and_every_batch_is_as_promised(arrivals, max_batch, data):
    queue: Queue = Queue(max_batch)
    out: list[Waiting] = []
    now = 0.0
    for request in sorted(arrivals, key=lambda request: request.arrived):
        now = max(now, request.arrived)
        queue.add(request)
        if data.draw(st.booleans()):
            now += data.draw(st.sampled_from([0.0, 0.5, 3.0]))
            out += check_take(queue, now, max_batch)
    gone = queue.expire(now)
    assert all(request.deadline <= now for request in gone)
    out += gone
    while len(queue):
        now = max(now, queue.due())
        taken = check_take(queue, now, max_batch)
        assert taken, "something is due and nothing was taken"
        out += taken
    assert sorted(map(id, out)) == sorted(map(id, arrivals))


def check_take(queue, now, max_batch):
    before = [request for group in queue._groups.values() for request in group]
    due = queue.due()
    batch = queue.take(now)
    if not batch:
        assert due > now, "a free worker was left idle while a request was due"
        return batch
    total = sum(request.size for request in batch)
    assert len({request.bucket for request in batch}) == 1
    assert total <= max_batch or len(batch) == 1
    mates = [request for request in before if request.bucket == batch[0].bucket]
    assert (
        min(request.due for request in mates) <= now
        or sum(request.size for request in mates) >= max_batch
    )
    left = [request for request in mates if request not in batch]
    assert all(a.order <= b.order for a in batch for b in left)
    assert not left or total + min(left, key=lambda r: r.order).size > max_batch, (
        "there was room for the next one"
    )
    return batch


class Simulation:
    """Workers that take from a queue; ``idle`` are the spans in which one of them had nothing to
    do.
    """

    def __init__(self, queue: Queue, workers: int, service) -> None:
        self.queue, self.service = queue, service
        self.now, self.free = 0.0, workers
        self.ends: list[tuple[float, int, list[Waiting]]] = []
        self.started: dict[Waiting, float] = {}
        self.idle: list[tuple[float, float]] = []
        self.longest = 0.0

    def run(self, arrivals, answered=lambda batch, now: []) -> None:
        """``arrivals`` are requests; ``answered`` may give more of them for every batch that
        ends.
        """
        coming = [(request.arrived, number, request) for number, request in enumerate(arrivals)]
        heapq.heapify(coming)
        count = len(coming)
        while coming or self.ends or len(self.queue):
            due = self.queue.due() if self.free else math.inf
            upcoming = [events[0][0] for events in (coming, self.ends) if events]
            then = max(self.now, min([due, *upcoming]))
            if self.free and then > self.now:
                self.idle.append((self.now, then))
            self.now = then
            while coming and coming[0][0] <= self.now:
                self.queue.add(heapq.heappop(coming)[2])
            while self.ends and self.ends[0][0] <= self.now:
                _, _, batch = heapq.heappop(self.ends)
                self.free += 1
                for request in answered(batch, self.now):
                    count += 1
                    heapq.heappush(coming, (request.arrived, count, request))
            self.start()

    def start(self) -> None:
        while self.free and (batch := self.queue.take(self.now)):
            self.free -= 1
            took = self.service(batch)
            self.longest = max(self.longest, took)
            heapq.heappush(self.ends, (self.now + took, id(batch), batch))
            for request in batch:
                self.started[request] = self.now


@pytest.mark.parametrize(
    ("workers", "max_batch", "delay"), [(1, 1, 0.0), (2, 4, 0.0), (1, 8, 0.004), (3, 8, 0.02)]
)
def test_no_request_waits_beyond_its_delay_while_a_worker_is_idle(workers, max_batch, delay):
    """Ten thousand requests of random times, shapes, priorities and run times."""
    rng = random.Random(5)
    now, arrivals = 0.0, []
    for _ in range(10_000):
        now += rng.expovariate(150)
        arrivals.append(
            waiting(
                now,
                rng.choice("abcdef"),
                rng.choice([1, 1, 1, 2]),
                delay,
                priority=rng.choice([0, 1]),
            )
        )
    simulation = Simulation(Queue(max_batch), workers, lambda batch: rng.uniform(0.002, 0.012))
    simulation.run(arrivals)
    assert len(simulation.started) == 10_000
    spans = iter(simulation.idle)
    span = next(spans, (math.inf, math.inf))
    for request in sorted(arrivals, key=lambda request: request.due):
        while span[1] <= request.due:
            span = next(spans, (math.inf, math.inf))
        assert simulation.started[request] <= max(request.due, span[0]), (
            "a worker was idle while a request was due"
        )


@pytest.mark.parametrize("delay", [0.0, 0.003])
def test_no_request_waits_longer_than_its_delay_and_one_execution(delay):
    """Ten thousand requests of callers who each send the next one after an answer and some
    thought.
    """
    rng = random.Random(6)

    def answered(batch, now):
        return [waiting(now + rng.choice([0.0, rng.expovariate(200)]), delay=delay) for _ in batch]

    simulation = Simulation(Queue(8), 1, lambda batch: rng.uniform(0.002, 0.012))

    def until_enough(batch, now):
        return answered(batch, now) if len(simulation.started) < 10_000 else []

    simulation.run([waiting(0.0, delay=delay) for _ in range(8)], until_enough)
    assert len(simulation.started) >= 10_000
    longest = max(start - request.arrived for request, start in simulation.started.items())
    assert longest <= delay + simulation.longest + 1e-9

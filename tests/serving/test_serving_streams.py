from __future__ import annotations

import asyncio

import pytest

from serving.streams import in_order


async def numbers(count):
    for number in range(count):
        yield number


def test_results_come_in_order_while_the_work_is_side_by_side():
    active, most = 0, 0

    async def work(number):
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.01 if number % 3 == 0 else 0)
        active -= 1
        return number

    async def run():
        return [result async for result in in_order(numbers(20), work, 4)]

    assert asyncio.run(run()) == list(range(20))
    assert 2 <= most <= 4


def test_a_caller_that_leaves_cancels_what_is_at_work():
    cancelled = []

    async def work(number):
        if number:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(number)
                raise
        return number

    async def run():
        results = in_order(numbers(5), work, 3)
        assert await anext(results) == 0
        await asyncio.sleep(0.01)
        await results.aclose()

    asyncio.run(run())
    assert sorted(cancelled) == [1, 2, 3]


def test_a_failing_source_ends_the_results_with_its_error():
    async def broken():
        yield 1
        raise RuntimeError("lost")

    async def work(number):
        return number

    async def run():
        results = in_order(broken(), work, 2)
        assert await anext(results) == 1
        with pytest.raises(RuntimeError, match="lost"):
            await anext(results)

    asyncio.run(run())

from __future__ import annotations

import asyncio

import pytest

from serving.rpc.streams import side_by_side


def numbers(count):
    left = iter(range(count))

    async def pull():
        return next(left, None)

    return pull


@pytest.mark.parametrize("in_order", [True, False])
def test_work_is_side_by_side_and_bounded(in_order):
    active, most = 0, 0

    async def work(number):
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.01 if number % 3 == 0 else 0)
        active -= 1
        return number

    async def run():
        return [result async for result in side_by_side(numbers(20), work, 4, in_order)]

    found = asyncio.run(run())
    assert sorted(found) == list(range(20))
    assert (found == sorted(found)) == in_order
    assert 2 <= most <= 4


def test_nothing_is_pulled_while_too_many_wait_to_be_taken():
    pulled = []

    async def pull():
        pulled.append(len(pulled))
        return pulled[-1] if len(pulled) < 9 else None

    async def work(number):
        return number

    async def run():
        results = side_by_side(pull, work, 3, in_order=False)
        assert await anext(results) == 0
        await asyncio.sleep(0.02)
        assert len(pulled) == 3
        assert [result async for result in results] == list(range(1, 8))

    asyncio.run(run())


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
        results = side_by_side(numbers(5), work, 3, in_order=True)
        assert await anext(results) == 0
        await asyncio.sleep(0.01)
        await results.aclose()

    asyncio.run(run())
    assert sorted(cancelled) == [1, 2]


def test_the_end_is_waited_for_with_what_was_taken():
    async def run():
        ending, waiting = asyncio.Event(), asyncio.Event()

        async def pull():
            if waiting.is_set():
                await asyncio.sleep(60)
            waiting.set()
            return 1

        async def work(number):
            await asyncio.sleep(0.02)
            return number

        results = side_by_side(pull, work, 3, True, ending)
        asyncio.get_running_loop().call_later(0.01, ending.set)
        return [result async for result in results]

    assert asyncio.run(asyncio.wait_for(run(), 5)) == [1]


def test_a_failing_source_ends_the_results_with_its_error():
    source = iter([1])

    async def pull():
        try:
            return next(source)
        except StopIteration:
            raise RuntimeError("lost") from None

    async def work(number):
        return number

    async def run():
        results = side_by_side(pull, work, 2, in_order=True)
        assert await anext(results) == 1
        with pytest.raises(RuntimeError, match="lost"):
            await anext(results)

    asyncio.run(run())

"""Batches, without a captioner: what is computed together, when, and for whom."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from src.service.batching import Batcher, Full


class Slow:
    """Doubles numbers while it may; notes its batches and threads."""

    def __init__(self) -> None:
        self.batches, self.threads, self.go = [], set(), threading.Event()

    def __call__(self, items):
        assert self.go.wait(20)
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        if -1 in items:
            raise ValueError("a bad one")
        return [2 * item for item in items]


def batched(work, size=4, wait=0.0, most=100):
    """Run `work(batcher, slow)` and return what was computed."""
    slow = Slow()

    async def run():
        async with Batcher(slow, size, wait, most) as batcher:
            await asyncio.wait_for(work(batcher, slow), 20)
            assert batcher.taken == batcher.coming == 0 and not batcher.waiting

    with ThreadPoolExecutor(1) as thread:  # in this one Playwright's loop may still run
        thread.submit(asyncio.run, run()).result()
    assert len(slow.threads) <= 1
    return slow.batches


async def ask(batcher, *items):
    with batcher.places(len(items)) as places:
        return await asyncio.gather(*(places.add(item) for item in items))


def test_what_waits_is_computed_together_in_order():
    async def work(batcher, slow):
        asked = [asyncio.create_task(ask(batcher, number)) for number in range(11)]
        await asyncio.sleep(0)
        slow.go.set()
        assert await asyncio.gather(*asked) == [[2 * number] for number in range(11)]

    assert batched(work) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_a_request_alone_does_not_wait():
    async def work(batcher, slow):
        slow.go.set()
        begun = time.monotonic()
        for number in range(3):
            assert await ask(batcher, number) == [2 * number]
        assert time.monotonic() - begun < 5

    assert batched(work, wait=60) == [[0], [1], [2]]


def test_a_batch_waits_for_what_is_on_its_way_and_no_longer():
    async def later(batcher, slow):
        slow.go.set()
        with batcher.places(2) as places:
            places.expect(2)
            first = places.add(1)
            await asyncio.sleep(0.05)
            assert not first.done()
            assert await asyncio.gather(first, places.add(2)) == [2, 4]

    assert batched(later, wait=60) == [[1, 2]]

    async def never(batcher, slow):
        slow.go.set()
        with batcher.places(2) as places:
            places.expect(2)
            assert await places.add(1) == 2

    assert batched(never, wait=0.05) == [[1]]

    async def gone(batcher, slow):
        slow.go.set()
        with batcher.places(2) as places:
            places.expect(2)
            first = places.add(1)
            await asyncio.sleep(0.05)
            places.expect(-1)  # could not be decoded
            assert await first == 2

    assert batched(gone, wait=60) == [[1]]


def test_what_nobody_waits_for_is_not_computed():
    async def work(batcher, slow):
        asked = [asyncio.create_task(ask(batcher, number)) for number in range(6)]
        await asyncio.sleep(0.05)  # 0 to 3 are with the computing thread
        asked[1].cancel()
        asked[4].cancel()
        await asyncio.sleep(0)
        slow.go.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [answer for answer in answers if not isinstance(answer, BaseException)] == [[0], [4], [6], [10]]
        assert all(isinstance(answers[i], asyncio.CancelledError) for i in (1, 4))

    assert batched(work) == [[0, 1, 2, 3], [5]]


def test_ones_trouble_is_not_anothers():
    async def work(batcher, slow):
        asked = [asyncio.create_task(ask(batcher, number)) for number in (5, -1, 6)]
        await asyncio.sleep(0)
        slow.go.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[0] == [10] and answers[2] == [12] and str(answers[1]) == "a bad one"
        assert await ask(batcher, 7) == [14], "and it goes on"

    assert batched(work) == [[5, -1, 6], [5], [-1], [6], [7]]


def test_there_are_so_many_places():
    async def work(batcher, slow):
        slow.go.set()
        with batcher.places(2), batcher.places(2):
            with pytest.raises(Full):
                batcher.places(2)
            with batcher.places(1), pytest.raises(Full):
                batcher.places(1)
        assert await ask(batcher, 1, 2, 3, 4, 5) == [2, 4, 6, 8, 10]

    batched(work, most=5)

"""Dynamic batching: what requests ask for at the same time is computed together, by one thread."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Full(Exception):
    """As much as may wait is waiting."""


class Job(NamedTuple, Generic[Item, Result]):
    item: Item
    answer: "asyncio.Future[Result]"


class Batcher(Generic[Item, Result]):
    """Takes what waits, `size` items at most, whenever the thread that computes is free. Then only where more is known
    to be coming (pictures that are being decoded) does it wait for that, `wait` seconds at most: a request alone is
    computed at once. Items whose request has gone are dropped before they are computed.

    Args:
        compute: items → their results, in order; called in one thread only. Where it fails, each item is tried alone,
            so that one request's trouble is not another's.
        size: items of a batch, at most.
        wait: seconds.
        most: places: items that have been admitted and not answered yet.
        computed: told of each batch's size.
    """

    def __init__(
        self,
        compute: Callable[[list[Item]], Sequence[Result]],
        size: int,
        wait: float,
        most: int,
        computed: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.compute, self.size, self.wait, self.most, self.computed = compute, size, wait, most, computed
        self.waiting: deque[Job[Item, Result]] = deque()
        self.taken = self.coming = 0
        self.changed = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, "compute")
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.thread.shutdown(wait=False, cancel_futures=True)  # what is computed now, nobody waits for

    async def run(self) -> None:
        """Answer what waits, for ever."""
        while True:
            batch = [job for job in await self.batch() if not job.answer.done()]
            if not batch:
                continue
            self.computed(len(batch))
            results = await asyncio.get_running_loop().run_in_executor(
                self.thread, self.results, [job.item for job in batch]
            )
            for job, result in zip(batch, results, strict=True):
                if job.answer.done():  # its request went while it was computed
                    continue
                if isinstance(result, Exception):
                    job.answer.set_exception(result)
                else:
                    job.answer.set_result(result)

    async def batch(self) -> list[Job[Item, Result]]:
        """The next jobs, one at least."""
        loop = asyncio.get_running_loop()
        batch: list[Job[Item, Result]] = []
        until: float | None = None
        while len(batch) < self.size:
            if self.waiting:
                job = self.waiting.popleft()
                if not job.answer.done():
                    batch.append(job)
                continue
            if batch and until is None:
                until = loop.time() + self.wait
            if batch and (not self.coming or loop.time() >= (until or 0)):
                break
            self.changed.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self.changed.wait()
            except TimeoutError:
                break
        return batch

    def results(self, items: list[Item]) -> Sequence[Result | Exception]:
        """Each item's result, or what went wrong with it."""
        try:
            return self.compute(items)
        except Exception as error:
            return [error] if len(items) == 1 else [one for item in items for one in self.results([item])]

    def places(self, count: int) -> "Places[Item, Result]":
        """Room for so many items, to be entered before there is anything to compute.

        Raises:
            Full: there is none.
        """
        if self.taken + count > self.most:
            raise Full
        return Places(self, count)


class Places(Generic[Item, Result]):
    """Places of a Batcher, held while this context is entered. Leaving it drops what is not computed yet."""

    def __init__(self, batcher: Batcher[Item, Result], count: int) -> None:
        self.batcher, self.count, self.coming = batcher, count, 0
        self.jobs: list[Job[Item, Result]] = []
        batcher.taken += count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self.jobs:
            job.answer.cancel()
        self.expect(-self.coming)
        self.batcher.taken -= self.count

    def expect(self, count: int) -> None:
        """So many items more will be added before long; negative: fewer."""
        self.coming += count
        self.batcher.coming += count
        self.batcher.changed.set()

    def add(self, item: Item) -> "asyncio.Future[Result]":
        """An item's result, that is to come."""
        self.expect(-min(1, self.coming))
        job: Job[Item, Result] = Job(item, asyncio.get_running_loop().create_future())
        self.jobs.append(job)
        self.batcher.waiting.append(job)
        return job.answer

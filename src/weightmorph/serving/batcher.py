"""Requests that come at about the same time answered together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..errors import RequestError
from .limits import Limits
from .request import Asked

__all__ = ["Batcher", "full", "late"]

Answers = Callable[[Sequence[Asked]], "list[Any | Exception]"]


def full(limits: Limits) -> RequestError:
    """Too many wait."""
    return RequestError(f"{limits.queue} requests wait already; try again later", 503)


def late(limits: Limits) -> RequestError:
    """It took too long."""
    return RequestError(f"no answer within {limits.timeout:g} s; the server is too busy", 504)


@dataclass
class _Waiting:
    asked: Asked
    result: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """One loop that takes what waits, and one thread that runs the network on it.

    While the network runs, requests gather; they are the next batch. So batches are large when there is much to do and
    a lone request waits for `limits.wait` at most.

    Args:
        answers: called in the thread with up to `limits.batch` requests; gives an output or an error for each.
        limits: see [`Limits`][weightmorph.serving.Limits].
        watch: told of each batch: how many requests it had, and the seconds it took.
    """

    def __init__(self, answers: Answers, limits: Limits, watch: Callable[[int, float], None]) -> None:
        self.answers, self.limits, self.watch = answers, limits, watch
        self.queue: asyncio.Queue[_Waiting | None] = asyncio.Queue(limits.queue)  # None is the last
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="weightmorph-serve")
        self.task: asyncio.Task[None] | None = None
        self.stopping = False

    @property
    def healthy(self) -> bool:
        """Is the loop there to answer?"""
        return self.task is not None and not self.task.done() and not self.stopping

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self.queue.qsize()

    def start(self) -> None:
        """Begin to answer; called in the event loop."""
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Answer what waits, take nothing new, and end."""
        self.stopping = True
        if self.task is not None:
            await self.queue.put(None)
            await asyncio.gather(self.task, return_exceptions=True)
        self.thread.shutdown(wait=True)

    async def ask(self, asked: Asked, until: float) -> Any:
        """The output for one request.

        Args:
            asked: the request.
            until: when to give up, as `time.monotonic()` counts.

        Raises:
            RequestError: with status 503 if too many wait or the server stops, 504 if it took too long.
            Exception: whatever the network raised.
        """
        if not self.healthy:
            raise RequestError("the server is stopping; try another", 503)
        waiting = _Waiting(asked)
        try:
            self.queue.put_nowait(waiting)
        except asyncio.QueueFull:
            raise full(self.limits) from None
        try:
            return await asyncio.wait_for(waiting.result, max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError:  # which has been the built-in one since Python 3.11
            raise late(self.limits) from None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        last = False
        while not last:
            batch, last = await self._gather()
            batch = [one for one in batch if not one.result.done()]  # of the others nobody waits any more
            if not batch:
                continue
            start = time.perf_counter()
            results: list[Any | Exception]
            try:
                results = await loop.run_in_executor(self.thread, self.answers, [one.asked for one in batch])
            except Exception as error:  # the loop must live on, whatever it was
                results = [error] * len(batch)
            self.watch(len(batch), time.perf_counter() - start)
            for one, result in zip(batch, results, strict=True):
                if one.result.done():  # given up meanwhile
                    continue
                if isinstance(result, Exception):
                    one.result.set_exception(result)
                else:
                    one.result.set_result(result)

    async def _gather(self) -> tuple[list[_Waiting], bool]:
        """The first that comes, and those that come before the wait is over or the batch is full; is it the end?"""
        batch: list[_Waiting] = []
        over = 0.0
        while len(batch) < self.limits.batch:
            try:
                one = self.queue.get_nowait()
            except asyncio.QueueEmpty:
                left = over - time.monotonic()
                if batch and left <= 0:
                    break
                try:
                    one = await (asyncio.wait_for(self.queue.get(), left) if batch else self.queue.get())
                except asyncio.TimeoutError:
                    break
            if one is None:
                return batch, True
            over = over or time.monotonic() + self.limits.wait
            batch.append(one)
        return batch, False

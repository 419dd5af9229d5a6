"""Gather requests that come at about the same time, and answer them together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..errors import RequestError
from .inputs import PredictRequest
from .limits import Limits

__all__ = ["Batcher"]

Answers = Callable[[Sequence[PredictRequest]], "list[Any | Exception]"]


@dataclass
class _Waiting:
    request: PredictRequest
    result: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """One loop that gathers waiting requests, and one thread that runs the network on them.

    The requests that come while the network runs are the next batch. So batches are large under load, and a lone
    request waits for `limits.wait` at most.

    Args:
        answers: called in the thread with up to `limits.batch` requests; returns an output or an error for each.
        limits: see [`Limits`][weightmorph.serving.Limits].
        observe: called after each batch with its number of requests and its seconds.

    Example:
        >>> import numpy as np
        >>> async def main():
        ...     batcher = Batcher(lambda batch: [r.theta["n"] for r in batch], Limits(), lambda size, seconds: None)
        ...     batcher.start()
        ...     answer = await batcher.ask(PredictRequest(np.zeros(1), {"n": 7.0}), time.monotonic() + 10)
        ...     await batcher.stop()
        ...     return answer
        >>> asyncio.run(main())
        7.0
    """

    def __init__(self, answers: Answers, limits: Limits, observe: Callable[[int, float], None]) -> None:
        self.answers, self.limits, self.observe = answers, limits, observe
        self.queue: asyncio.Queue[_Waiting | None] = asyncio.Queue(limits.queue)  # None is the last
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="weightmorph-serve")
        self.task: asyncio.Task[None] | None = None
        self.stopping = False

    @property
    def healthy(self) -> bool:
        """Whether requests are answered."""
        return self.task is not None and not self.task.done() and not self.stopping

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return self.queue.qsize()

    def start(self) -> None:
        """Begin to answer; called in the event loop."""
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Answer the requests that wait, take no new ones, and end."""
        self.stopping = True
        if self.task is not None:
            await self.queue.put(None)
            await asyncio.gather(self.task, return_exceptions=True)
        self.thread.shutdown(wait=True)

    async def ask(self, request: PredictRequest, until: float) -> Any:
        """The output for one request.

        Args:
            request: what to answer.
            until: when to give up, on the clock of `time.monotonic()`.

        Raises:
            RequestError: with status 503 if too many wait or the server stops, 504 if it took too long.
            Exception: whatever the network raised.
        """
        if not self.healthy:
            raise RequestError("the server is stopping; try another", 503)
        waiting = _Waiting(request)
        try:
            self.queue.put_nowait(waiting)
        except asyncio.QueueFull:
            raise RequestError(f"{self.limits.queue} requests wait already; try again later", 503) from None
        try:
            return await asyncio.wait_for(waiting.result, max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError:  # which has been the built-in one since Python 3.11
            text = f"no answer within {self.limits.timeout:g} s; the server is too busy"
            raise RequestError(text, 504) from None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        last = False
        while not last:
            batch, last = await self._gather()
            batch = [one for one in batch if not one.result.done()]  # nobody waits for the others any more
            if not batch:
                continue
            start = time.perf_counter()
            results: list[Any | Exception]
            try:
                results = await loop.run_in_executor(self.thread, self.answers, [one.request for one in batch])
            except Exception as error:  # the loop must survive any error
                results = [error] * len(batch)
            self.observe(len(batch), time.perf_counter() - start)
            for one, result in zip(batch, results, strict=True):
                if one.result.done():  # given up meanwhile
                    continue
                if isinstance(result, Exception):
                    one.result.set_exception(result)
                else:
                    one.result.set_result(result)

    async def _gather(self) -> tuple[list[_Waiting], bool]:
        """Wait for a first request, then for more until the time is over or the batch is full; and whether to end."""
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

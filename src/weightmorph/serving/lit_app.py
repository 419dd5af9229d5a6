"""The parts of the server on LitServe: what its worker runs, and the endpoints before it.

The one file that imports LitServe; [`lit_api`][weightmorph.serving.lit_api] imports it when it is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import HTTPException
from litserve import LitAPI
from litserve.loops.simple_loops import BatchedLoop
from litserve.server import RegularRequestHandler
from litserve.specs.base import LitSpec

from ..errors import RequestError
from ..model import Conditioned
from .backend import Backend, answer, failure
from .batcher import full, late
from .endpoints import Endpoints
from .limits import Limits
from .request import Asked, Inputs

__all__ = ["ConditionedAPI", "Door", "ends_with_parent"]

logger = logging.getLogger("weightmorph.serving")


@dataclass(frozen=True)
class Answer:
    """What comes back from a worker.

    Attributes:
        output: arrays in the nesting of the network's, or why there are none.
        batch: requests and seconds of the call; of one request of a batch, so that it is counted once.
    """

    output: Any
    batch: tuple[int, float] | None


class Door(LitSpec):
    """The endpoints in LitServe's process for HTTP: a request is read and checked here, before it joins a batch.

    Its place as a spec is LitServe's for endpoints of one's own. Without one, LitServe reads the body itself, answers
    500 where it is not JSON, and an error in one request is the answer to all of its batch.
    """

    def __init__(self, endpoints: Endpoints, path: str) -> None:
        super().__init__()
        self.api_path = path
        self.inside = endpoints
        endpoints.queue = self
        self.flying: set[asyncio.Task[Answer]] = set()
        self.add_endpoint(path, endpoints.predict, ["POST"])
        self.add_endpoint("/metrics", endpoints.read_metrics, ["GET"])

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs, which is the path alone."""
        return {**vars(LitSpec()), "api_path": self.api_path}

    def pre_setup(self, lit_api: LitAPI) -> None:
        self.api = lit_api

    healthy = True
    """While LitServe takes requests; its own `/health` looks at the workers."""

    @property
    def waiting(self) -> int:
        """How many wait or are being answered, which LitServe does not tell apart."""
        return len(self.flying)

    async def ask(self, asked: Asked, until: float) -> Any:
        """The output for one request, as [`Batcher.ask`][weightmorph.serving.batcher.Batcher.ask] gives it."""
        limits = self.inside.limits
        if self.waiting >= limits.queue + limits.batch:
            raise full(limits)
        # Never cancelled: it takes the answer out of LitServe's buffer, in which it would stay otherwise.
        task = asyncio.ensure_future(RegularRequestHandler(self.api, self._server).handle_request(asked, Asked))
        self.flying.add(task)
        task.add_done_callback(self._landed)
        try:
            answer: Answer = await asyncio.wait_for(asyncio.shield(task), max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError:
            raise late(limits) from None
        except HTTPException as error:
            raise late(limits) if error.status_code == 504 else RequestError(error.detail, error.status_code) from None
        if isinstance(answer.output, Exception):
            raise answer.output
        return answer.output

    def _landed(self, task: asyncio.Task[Answer]) -> None:
        self.flying.discard(task)
        if not task.cancelled() and task.exception() is None and (batch := task.result().batch):
            self.inside.metrics.batch(*batch)


class ConditionedAPI(LitAPI):
    """What a worker runs: the requests of a batch, each with its own θ, in one call.

    Args:
        make: gives the model, in the worker.
        answering: makes of it what answers a batch.
        inputs: what one sample looks like.
        limits: `batch` and `wait` are for the loop, the rest is for the door.
        door: the endpoints.
    """

    def __init__(
        self,
        make: Callable[[], Conditioned],
        answering: Callable[[Conditioned], Backend],
        inputs: Inputs,
        limits: Limits,
        door: Door,
    ) -> None:
        # The loop by name, for with a batch of 1 LitServe would take one that hands over no list; and a wait, for
        # without one an idle worker would never sleep.
        wait = max(limits.wait, 0.001)
        super().__init__(max_batch_size=limits.batch, batch_timeout=wait, loop=BatchedLoop(), spec=door)
        self.make, self.answering, self.inputs = make, answering, inputs

    def setup(self, device: str) -> None:
        """Load the model, in a worker of its own."""
        if multiprocessing.parent_process() is not None:
            ends_with_parent()
            with contextlib.suppress(ValueError):  # Ctrl-C is for the server, which then ends its workers
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.backend = self.answering(self.make().to(torch.device(device)))

    def decode_request(self, request: Asked) -> Asked:
        """Nothing: it was read and checked at the door."""
        return request

    def predict(self, x: list[Asked]) -> list[Answer]:
        """An answer for each request."""
        start = time.perf_counter()
        outputs = [_told(output) for output in answer(self.backend, x, self.inputs)]
        batch = len(x), time.perf_counter() - start
        return [Answer(output, None if number else batch) for number, output in enumerate(outputs)]

    def encode_response(self, output: Answer) -> Answer:
        """Nothing: the door writes it as the client asked for."""
        return output


def ends_with_parent(*_: Any) -> None:
    """A server that is killed cannot end its processes, which would hold its port and its memory."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _told(output: Any) -> Any:
    """An error as the client is told it; the network's own may not pass between processes."""
    if not isinstance(output, Exception) or isinstance(output, RequestError):
        return output
    logger.error("the network failed on a request that had passed every check", exc_info=output)
    return failure(output)

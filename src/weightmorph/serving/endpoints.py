"""What the endpoints do, whichever server they belong to: `/predict`, `/health`, `/metrics`, and what a model takes.

Imports Starlette, on which LitServe stands as well, so it is imported where a server is made.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from typing import Any, Protocol

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from torch.utils import _pytree as pytree

from ..errors import RequestError
from ..parameters import ParameterSpace
from .backend import failure
from .limits import Limits
from .metrics import Metrics
from .request import JSON, NPY, Asked, Inputs, from_json, from_npy

__all__ = ["Endpoints", "Queue", "as_json"]

logger = logging.getLogger("weightmorph.serving")


class Queue(Protocol):
    """Where requests wait for their turn."""

    @property
    def healthy(self) -> bool:
        """Is somebody there to answer?"""

    @property
    def waiting(self) -> int:
        """How many wait."""

    async def ask(self, asked: Asked, until: float) -> Any:
        """The output for one request; see [`Batcher.ask`][weightmorph.serving.batcher.Batcher.ask]."""


class Endpoints:
    """What the endpoints share.

    Args:
        space: the model's parameters.
        inputs: what one sample looks like.
        limits: see [`Limits`][weightmorph.serving.Limits].
        about: what is told of the model besides.
    """

    queue: Queue | None = None

    def __init__(self, space: ParameterSpace, inputs: Inputs, limits: Limits, about: dict[str, Any]) -> None:
        self.space, self.inputs, self.limits = space, inputs, limits
        self.about = about | {
            "input": {"shape": list(inputs.shape), "dtype": inputs.dtype},
            "theta": {name: _described(space, name) for name in space},
            "limits": {"body_bytes": limits.body, "batch": limits.batch, "timeout_seconds": limits.timeout},
        }
        self.metrics = Metrics(lambda: self.queue.waiting if self.queue is not None else 0)

    async def predict(self, request: Request) -> Response:
        """One sample in, its output out; every error with its text."""
        start = time.monotonic()
        try:
            response = await self._answered(request, start + self.limits.timeout)
        except RequestError as error:
            response = as_json({"error": str(error)}, error.status)
        except ClientDisconnect:
            response = as_json({"error": "the client left"}, 400)  # which nobody reads, but the metrics count it
        except Exception as error:  # of the user's network
            logger.exception("the network failed on a request that had passed every check")
            response = as_json({"error": str(failure(error))}, 500)
        self.metrics.request(response.status_code, time.monotonic() - start)
        return response

    async def _answered(self, request: Request, until: float) -> Response:
        kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if kind not in (JSON, NPY, "application/octet-stream"):
            raise RequestError(f"expected a body of {JSON} or {NPY}, got {kind[:60]!r}", 415)
        assert self.queue is not None
        body = await self._body(request, until)
        asked: Asked
        if kind == JSON:
            asked = from_json(body, self.space, self.inputs)
        else:
            asked = from_npy(body, request.query_params.multi_items(), self.space, self.inputs)
        output = await self.queue.ask(asked, until)
        if NPY in request.headers.get("accept", ""):
            return _npy(output)
        return as_json({"output": pytree.tree_map(_plain, output)})

    async def _body(self, request: Request, until: float) -> bytes:
        """The body, no more of it than the limit allows, and not for longer."""
        too_large = RequestError(f"the body is larger than {self.limits.body:,} bytes", 413)
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self.limits.body:
            raise too_large

        async def read() -> bytes:
            chunks = bytearray()
            async for chunk in request.stream():
                chunks += chunk
                if len(chunks) > self.limits.body:
                    raise too_large
            return bytes(chunks)

        try:
            return await asyncio.wait_for(read(), max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError:
            raise RequestError(f"the body did not come within {self.limits.timeout:g} s", 408) from None

    async def health(self, request: Request) -> Response:
        """200 while requests are answered, 503 while the server stops."""
        healthy = self.queue is not None and self.queue.healthy
        return as_json({"status": "ok" if healthy else "stopping"}, 200 if healthy else 503)

    async def read_metrics(self, request: Request) -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def describe(self, request: Request) -> Response:
        """Which network, which input, which parameters in which unit and range."""
        return as_json(self.about)


def _described(space: ParameterSpace, name: str) -> dict[str, Any]:
    parameter = space[name]
    names = getattr(parameter, "names", None)
    return {
        "kind": type(parameter).__name__,
        "unit": parameter.unit,
        "range": None if parameter.bounds is None or names else list(parameter.bounds),
        "anchor": parameter.anchor,
    } | ({"names": list(names)} if names else {})


def _plain(values: Any) -> Any:
    """An array as nested lists, null where JSON has no number."""
    array = np.asarray(values)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return json.loads(json.dumps(array.tolist()), parse_constant=lambda name: None)
    return array.tolist()


def as_json(content: Any, status: int = 200) -> Response:
    """An answer in JSON; told to come again where the server is busy."""
    headers = {"retry-after": "1"} if status == 503 else None
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(text.encode("utf-8", "replace"), status, headers, JSON)


def _npy(output: Any) -> Response:
    if not isinstance(output, np.ndarray):
        raise RequestError(f"the network's output is a nest of arrays; accept {JSON} to get it", 406)
    file = io.BytesIO()
    np.save(file, output, allow_pickle=False)
    return Response(file.getvalue(), media_type=NPY)

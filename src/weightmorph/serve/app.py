"""The web application: `/predict`, `/health`, `/metrics`, and `/`, which says what the others take.

The one file that imports Starlette; [`application`][weightmorph.serve.application] imports it when it is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from torch.utils import _pytree as pytree

from ..errors import RequestError
from ..parameters import ParameterSpace
from .backend import Backend, answer
from .batcher import Batcher
from .limits import Limits
from .metrics import Metrics
from .request import JSON, NPY, Asked, Inputs, from_json, from_npy

__all__ = ["Service"]

logger = logging.getLogger("weightmorph.serve")


class Service:
    """What the endpoints share."""

    def __init__(
        self, backend: Backend, space: ParameterSpace, inputs: Inputs, limits: Limits, about: dict[str, Any]
    ) -> None:
        self.backend, self.space, self.inputs, self.limits = backend, space, inputs, limits
        self.about = about | {
            "input": {"shape": list(inputs.shape), "dtype": inputs.dtype},
            "theta": {name: _described(space, name) for name in space},
            "limits": {"body_bytes": limits.body, "batch": limits.batch, "timeout_seconds": limits.timeout},
        }
        self.batcher: Batcher | None = None
        self.metrics = Metrics(lambda: self.batcher.queue.qsize() if self.batcher is not None else 0)

    def app(self) -> Starlette:
        """The application, to be run by any ASGI server."""
        routes = [
            Route("/predict", self.predict, methods=["POST"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.read_metrics, methods=["GET"]),
            Route("/", self.describe, methods=["GET"]),
        ]
        handlers: dict[Any, Any] = {HTTPException: _refused, Exception: _failed}
        return Starlette(routes=routes, lifespan=self.lifespan, exception_handlers=handlers)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Answer from here to the end of the server."""
        self.batcher = Batcher(self.answers, self.limits, self.metrics.batch)
        self.batcher.start()
        try:
            yield
        finally:
            await self.batcher.stop()

    def answers(self, asked: Any) -> list[Any | Exception]:
        """What the batcher's thread runs."""
        return answer(self.backend, asked, self.inputs)

    async def predict(self, request: Request) -> Response:
        """One sample in, its output out; every error with its text."""
        start = time.monotonic()
        try:
            response = await self._answered(request, start + self.limits.timeout)
        except RequestError as error:
            response = _json({"error": str(error)}, error.status)
        except ClientDisconnect:
            response = _json({"error": "the client left"}, 400)  # which nobody reads, but the metrics count it
        except Exception as error:  # of the user's network
            logger.exception("the network failed on a request that had passed every check")
            text = f"the network failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            response = _json({"error": text}, 500)
        self.metrics.request(response.status_code, time.monotonic() - start)
        return response

    async def _answered(self, request: Request, until: float) -> Response:
        kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if kind not in (JSON, NPY, "application/octet-stream"):
            raise RequestError(f"expected a body of {JSON} or {NPY}, got {kind[:60]!r}", 415)
        assert self.batcher is not None
        body = await self._body(request, until)
        asked: Asked
        if kind == JSON:
            asked = from_json(body, self.space, self.inputs)
        else:
            asked = from_npy(body, request.query_params.multi_items(), self.space, self.inputs)
        output = await self.batcher.ask(asked, until)
        if NPY in request.headers.get("accept", ""):
            return _npy(output)
        return _json({"output": pytree.tree_map(_plain, output)})

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
        healthy = self.batcher is not None and self.batcher.healthy
        return _json({"status": "ok" if healthy else "stopping"}, 200 if healthy else 503)

    async def read_metrics(self, request: Request) -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def describe(self, request: Request) -> Response:
        """Which network, which input, which parameters in which unit and range."""
        return _json(self.about)


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


def _json(content: Any, status: int = 200) -> Response:
    headers = {"retry-after": "1"} if status == 503 else None
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(text.encode("utf-8", "replace"), status, headers, JSON)


def _npy(output: Any) -> Response:
    if not isinstance(output, np.ndarray):
        raise RequestError(f"the network's output is a nest of arrays; accept {JSON} to get it", 406)
    file = io.BytesIO()
    np.save(file, output, allow_pickle=False)
    return Response(file.getvalue(), media_type=NPY)


async def _refused(request: Request, error: Exception) -> Response:
    """A wrong path or method."""
    assert isinstance(error, HTTPException)
    hint = "; there are POST /predict, GET /health, GET /metrics and GET /" if error.status_code in (404, 405) else ""
    return _json({"error": f"{error.detail}{hint}"}, error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    return _json({"error": f"internal error: {type(error).__name__}"}, 500)

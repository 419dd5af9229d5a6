"""The web application: `/predict`, `/health`, `/metrics`, and a description of the model.

Imports Starlette, prometheus-client and pydantic; [`application`][weightmorph.serving.application] imports it when it
is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
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
from .backend import Backend, answer, failure
from .batcher import Batcher
from .inputs import Inputs, PredictRequest
from .limits import Limits
from .metrics import Metrics
from .request import JSON, NPY, from_json, from_npy

__all__ = ["Service"]

logger = logging.getLogger("weightmorph.serving")


class Service:
    """The endpoints, and the batcher behind them.

    Args:
        backend: answers a batch.
        space: the model's parameters.
        inputs: what one sample looks like.
        limits: see [`Limits`][weightmorph.serving.Limits].
        about: what `GET /` says besides.
    """

    def __init__(
        self, backend: Backend, space: ParameterSpace, inputs: Inputs, limits: Limits, about: dict[str, Any]
    ) -> None:
        self.backend, self.space, self.inputs, self.limits = backend, space, inputs, limits
        self.batcher: Batcher | None = None
        self.about = about | {
            "input": {"shape": list(inputs.shape), "dtype": inputs.dtype},
            "theta": {name: _described(space, name) for name in space},
            "limits": {"body_bytes": limits.body, "batch": limits.batch, "timeout_seconds": limits.timeout},
        }
        self.metrics = Metrics(lambda: self.batcher.waiting if self.batcher is not None else 0)

    def app(self) -> Starlette:
        """The application, for any ASGI server."""
        routes = [
            Route("/predict", self.predict, methods=["POST"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.read_metrics, methods=["GET"]),
            Route("/", self.describe, methods=["GET"]),
        ]
        handlers: dict[Any, Any] = {HTTPException: _wrong_route, Exception: _internal_error}
        return Starlette(routes=routes, lifespan=self.lifespan, exception_handlers=handlers)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run the batcher from the server's start to its end."""
        self.batcher = batcher = Batcher(self.answer_batch, self.limits, self.metrics.batch)
        batcher.start()
        try:
            yield
        finally:
            await batcher.stop()

    def answer_batch(self, requests: Sequence[PredictRequest]) -> list[Any | Exception]:
        """Answer a batch, in the batcher's thread."""
        return answer(self.backend, requests, self.inputs)

    async def predict(self, request: Request) -> Response:
        """Answer one sample; an error is answered with its text."""
        start = time.monotonic()
        try:
            response = await self._predict(request, start + self.limits.timeout)
        except RequestError as error:
            response = _json({"error": str(error)}, error.status)
        except ClientDisconnect:
            response = _json({"error": "the client left"}, 400)  # nobody reads it, but the metrics count it
        except Exception as error:  # the user's network may raise anything
            logger.exception("the network failed on a request that had passed every check")
            response = _json({"error": str(failure(error))}, 500)
        self.metrics.request(response.status_code, time.monotonic() - start)
        return response

    async def _predict(self, request: Request, until: float) -> Response:
        kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if kind not in (JSON, NPY, "application/octet-stream"):
            raise RequestError(f"expected a body of {JSON} or {NPY}, got {kind[:60]!r}", 415)
        wanted = _accepted(request.headers.get("accept", ""))
        assert self.batcher is not None
        body = await self._body(request, until)
        if kind == JSON:
            checked = from_json(body, self.space, self.inputs)
        else:
            checked = from_npy(body, request.query_params.multi_items(), self.space, self.inputs)
        output = await self.batcher.ask(checked, until)
        return _npy(output) if wanted == NPY else _json({"output": pytree.tree_map(_plain, output)})

    async def _body(self, request: Request, until: float) -> bytes:
        """Read the body, up to the limits of size and time."""
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
        """Counts and times, in Prometheus' format."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def describe(self, request: Request) -> Response:
        """The network, its input, and each parameter's unit and range."""
        return _json(self.about)


async def _wrong_route(request: Request, error: Exception) -> Response:
    """A path or method that does not exist."""
    assert isinstance(error, HTTPException)
    hint = "; there are POST /predict, GET /health, GET /metrics and GET /" if error.status_code in (404, 405) else ""
    return _json({"error": f"{error.detail}{hint}"}, error.status_code)


async def _internal_error(request: Request, error: Exception) -> Response:
    return _json({"error": f"internal error: {type(error).__name__}"}, 500)


def _described(space: ParameterSpace, name: str) -> dict[str, Any]:
    parameter = space[name]
    names = getattr(parameter, "names", None)
    return {
        "kind": type(parameter).__name__,
        "unit": parameter.unit,
        "range": None if parameter.bounds is None or names else list(parameter.bounds),
        "anchor": parameter.anchor,
    } | ({"names": list(names)} if names else {})


def _accepted(header: str) -> str:
    """The type of the answer that an `Accept` header allows: .npy where it is named, otherwise JSON.

    Example:
        >>> _accepted(""), _accepted("text/html, */*;q=0.8"), _accepted("application/x-npy")
        ('application/json', 'application/json', 'application/x-npy')
    """
    types = {part.partition(";")[0].strip().lower() for part in header.split(",")}
    if NPY in types:
        return NPY
    if types & {"", "*/*", "application/*", JSON}:
        return JSON
    raise RequestError(f"the answer can be {JSON} or {NPY}, and the request accepts {header[:60]!r}", 406)


def _plain(values: Any) -> Any:
    """An array as nested lists, with null where JSON has no number."""
    array = np.asarray(values)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return json.loads(json.dumps(array.tolist()), parse_constant=lambda name: None)
    return array.tolist()


def _json(content: Any, status: int = 200) -> Response:
    """An answer in JSON. Where the server is busy, it asks the client to come again."""
    headers = {"retry-after": "1"} if status == 503 else None
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(text.encode("utf-8", "replace"), status, headers, JSON)


def _npy(output: Any) -> Response:
    if not isinstance(output, np.ndarray):
        raise RequestError(f"the network's output is a nest of arrays; accept {JSON} to get it", 406)
    file = io.BytesIO()
    np.save(file, output, allow_pickle=False)
    return Response(file.getvalue(), media_type=NPY)

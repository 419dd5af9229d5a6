"""The web application of the default server.

Imports Starlette; [`application`][weightmorph.serving.application] imports it when it is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..parameters import ParameterSpace
from .backend import Backend, answer
from .batcher import Batcher
from .endpoints import Endpoints, as_json
from .limits import Limits
from .request import Inputs

__all__ = ["Service"]


class Service(Endpoints):
    """The endpoints on Starlette, and the batcher behind them."""

    def __init__(
        self, backend: Backend, space: ParameterSpace, inputs: Inputs, limits: Limits, about: dict[str, Any]
    ) -> None:
        super().__init__(space, inputs, limits, about)
        self.backend = backend

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
        self.queue = batcher = Batcher(self.answers, self.limits, self.metrics.batch)
        batcher.start()
        try:
            yield
        finally:
            await batcher.stop()

    def answers(self, asked: Any) -> list[Any | Exception]:
        """What the batcher's thread runs."""
        return answer(self.backend, asked, self.inputs)


async def _refused(request: Request, error: Exception) -> Response:
    """A wrong path or method."""
    assert isinstance(error, HTTPException)
    hint = "; there are POST /predict, GET /health, GET /metrics and GET /" if error.status_code in (404, 405) else ""
    return as_json({"error": f"{error.detail}{hint}"}, error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    return as_json({"error": f"internal error: {type(error).__name__}"}, 500)

"""Make the application, and run it."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, require
from ..model import Conditioned
from ..storage import versions
from .backend import Backend, backend_for
from .inputs import Inputs
from .limits import Limits

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["application", "run"]

KEEP_ALIVE = 75
"""Seconds after which an idle connection is closed."""


def application(
    model: Conditioned,
    inputs: Inputs,
    limits: Limits | None = None,
    *,
    backend: Backend | None = None,
) -> Starlette:
    """The ASGI application that serves a model.

    The model is first run on zeros: on one sample, and on two with a θ each. If the network cannot take one θ per
    sample, the requests of a batch are answered setting by setting.

    Args:
        model: the conditioned network; it is not copied.
        inputs: what one sample looks like.
        limits: by default those of [`Limits`][weightmorph.serving.Limits].
        backend: answers a batch in place of the model; it takes the model's parameters.

    Raises:
        ConfigError: if the network cannot take such inputs.
        MissingDependencyError: without Starlette, pydantic and prometheus-client, `pip install 'weightmorph[serve]'`.

    Example:
        >>> import torch, weightmorph as wm
        >>> model = wm.condition(torch.nn.Linear(4, 2), {"angle": wm.Angle("deg")}, wm.LowRank(1))
        >>> app = application(model, Inputs((4,)), Limits(batch=16))
    """
    for package in ("starlette", "pydantic", "prometheus_client"):
        require(package, "serve", "serving a model")
    from .app import Service

    about: dict[str, Any] = {"network": model.spec.network, **versions()}
    if backend is None:
        backend, reason = backend_for(model, inputs)
        about["batching"] = "one call per batch" if reason is None else f"one call per setting: {reason}"
    return Service(backend, model.space, inputs, limits or Limits(), about).app()


def run(
    model: Conditioned,
    inputs: Inputs,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    log_level: str = "warning",
    backend: Backend | None = None,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve a model until SIGINT (Ctrl-C) or SIGTERM, then answer the requests in progress and return.

    Args:
        model, inputs, limits, backend: as for [`application`][weightmorph.serving.application].
        host: the interface; the default can be reached from this machine alone.
        port: 0 takes a free one.
        log_level: uvicorn's: `"critical"`, `"error"`, `"warning"`, `"info"`, `"debug"`.
        ready: called with the server's address once it answers.

    Raises:
        ConfigError: if the address cannot be used, or the network cannot take such inputs.
        MissingDependencyError: without the packages of `pip install 'weightmorph[serve]'`.

    Example:
        >>> import torch, weightmorph as wm
        >>> model = wm.condition(torch.nn.Linear(4, 2), {"angle": wm.Angle("deg")}, wm.LowRank(1))
        >>> stop = lambda address: signal.raise_signal(signal.SIGINT)  # as Ctrl-C does, as soon as it answers
        >>> run(model, Inputs((4,)), port=0, ready=stop)
    """
    uvicorn = require("uvicorn", "serve", "serving a model")
    limits = limits or Limits()
    app = application(model, inputs, limits, backend=backend)
    listening = _listen(host, port)
    config = uvicorn.Config(
        app,
        log_level=log_level,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(limits.grace)),
    )
    server = uvicorn.Server(config)
    startup = server.startup

    async def announced(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets=sockets)
        if server.started:
            ready(_address(*listening.getsockname()[:2]))

    server.startup = announced
    with listening, _signals_end_quietly():
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"host {host}, port {port}: cannot listen there: {error}; choose another, or port 0"
        ) from error


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """A signal is how a server ends, so it is no failure.

    Uvicorn stops at the first signal, and raises that signal again for the earlier handler.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    for number in before:
        signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Running a server."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, require
from ..model import Conditioned
from ..parameters import ParameterSpace
from ..storage import versions
from .backend import Backend, backend_for
from .limits import Limits
from .request import Inputs

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["application", "run"]

KEEP_ALIVE = 75
"""Seconds after which a connection is closed on which nothing comes."""


def application(
    model: Conditioned,
    inputs: Inputs,
    limits: Limits | None = None,
    *,
    backend: Backend | None = None,
) -> Starlette:
    """The ASGI application that answers for a model.

    The model is tried first, on zeros: with one sample, and with two that have a θ each. Where the network cannot take
    one θ per sample, the requests of a batch are answered setting by setting.

    Args:
        model: the conditioned network; it is not copied.
        inputs: what one sample looks like.
        limits: unless given, the defaults of [`Limits`][weightmorph.serving.Limits].
        backend: what answers a batch, in place of the model, whose parameters it takes.

    Raises:
        ConfigError: if the network cannot take such inputs.
        MissingDependencyError: without Starlette and prometheus-client, `pip install 'weightmorph[serve]'`.
    """
    for package in ("starlette", "prometheus_client"):
        require(package, "serve", "serving a model")
    from .app import Service

    backend, about = described(model, inputs, backend)
    space: ParameterSpace = model.space
    return Service(backend, space, inputs, limits or Limits(), about).app()


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
    """Serve a model until SIGINT (Ctrl-C) or SIGTERM, then answer what is at hand and return.

    Args:
        model, inputs, limits, backend: as for [`application`][weightmorph.serving.application].
        host: the interface; the default is reached from this machine alone.
        port: 0 takes a free one.
        log_level: uvicorn's: `"critical"`, `"error"`, `"warning"`, `"info"`, `"debug"`.
        ready: called with the server's address once it answers.

    Raises:
        ConfigError: if the address cannot be used, or the network cannot take such inputs.
        MissingDependencyError: without Starlette, uvicorn and prometheus-client, `pip install 'weightmorph[serve]'`.
    """
    uvicorn = require("uvicorn", "serve", "serving a model")
    limits = limits or Limits()
    app = application(model, inputs, limits, backend=backend)
    listening = listener(host, port)
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
            ready(address(*listening.getsockname()[:2]))

    server.startup = announced
    with listening, _stopped_quietly():
        server.run(sockets=[listening])


def described(model: Conditioned, inputs: Inputs, backend: Backend | None) -> tuple[Backend, dict[str, Any]]:
    """What answers a batch, unless given, found out by trying; and what is told of the model."""
    about: dict[str, Any] = {"network": model.spec.network, **versions()}
    if backend is None:
        backend, why = backend_for(model, inputs)
        about["batching"] = "one call per batch" if why is None else f"one call per setting: {why}"
    return backend, about


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        ConfigError: if it cannot.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"host {host}, port {port}: cannot listen there: {error}; choose another, or port 0"
        ) from error


def address(host: str, port: int) -> str:
    """Where a server is reached."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def _stopped_quietly() -> Iterator[None]:
    """Being told to stop is how a server ends, so it is no failure.

    Uvicorn stops as it should at the first signal, and raises that signal again for whoever handled it before.
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

"""The same requests and answers on [LitServe](https://lightning.ai/docs/litserve), for several devices or workers."""

from __future__ import annotations

import contextlib
import http.client
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.util import register_after_fork
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError, ExecutionError, require
from ..model import Conditioned
from .backend import Backend
from .limits import Limits
from .request import Inputs
from .run import KEEP_ALIVE, address, described, listener

if TYPE_CHECKING:
    from litserve import LitAPI

__all__ = ["lit_api", "lit_run"]

HOSTS = ("127.0.0.1", "0.0.0.0", "::")
"""What LitServe listens on."""


def lit_api(
    model: Conditioned,
    inputs: Inputs,
    limits: Limits | None = None,
    *,
    backend: Backend | None = None,
    make: Callable[[], Conditioned] | None = None,
    path: str = "/predict",
) -> LitAPI:
    """A model for LitServe: `litserve.LitServer(lit_api(model, Inputs((1, 28, 28)))).run()`.

    Requests and answers at `path` are those of [`application`][weightmorph.serving.application]; `/metrics` comes with
    it. They are checked before they join a batch, so that none suffers for another's fault.

    Args:
        model, inputs, limits: as for [`application`][weightmorph.serving.application]; `grace` is the server's to give.
        backend: what answers a batch, in place of the model; pickle must be able to send it to the workers.
        make: what a worker gets the model from, where pickle cannot send it there.
        path: where requests come.

    Raises:
        ConfigError: if the network cannot take such inputs.
        MissingDependencyError: without LitServe and prometheus-client, `pip install 'weightmorph[litserve]'`.

    Example:
        >>> import weightmorph as wm
        >>> model = wm.condition(torch.nn.Linear(4, 2), {"angle": wm.Angle("deg")}, wm.LowRank(1))
        >>> api = lit_api(model, Inputs((4,)), Limits(batch=16))
        >>> api.api_path, api.max_batch_size
        ('/predict', 16)
    """
    return _api(model, inputs, limits or Limits(), backend, make, path)[0]


def lit_run(
    model: Conditioned,
    inputs: Inputs,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    log_level: str = "warning",
    backend: Backend | None = None,
    make: Callable[[], Conditioned] | None = None,
    device: str = "cpu",
    workers: int = 1,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve a model on LitServe until SIGINT (Ctrl-C) or SIGTERM, then end all its processes and return.

    Workers are new processes that import the program's file, so what calls this in it belongs under
    `if __name__ == "__main__":`.

    Args:
        model, inputs, limits, backend, make: as for [`lit_api`][weightmorph.serving.lit_api].
        host: one of 127.0.0.1, 0.0.0.0 and ::, which are those that LitServe listens on.
        port: 0 takes a free one.
        log_level: LitServe's and uvicorn's.
        device: as torch names it; `"cuda"` stands for all that there are.
        workers: processes that run the network, on each device.
        ready: called with the server's address once it answers.

    Raises:
        ConfigError: if the address cannot be used, or the network cannot take such inputs.
        ExecutionError: if a worker fails.
        MissingDependencyError: without LitServe and prometheus-client, `pip install 'weightmorph[litserve]'`.
    """
    if host not in HOSTS:
        raise ConfigError(f"host: LitServe listens on {', '.join(HOSTS)} alone, got {host!r}")
    if port and not 1024 <= port <= 65535:
        raise ConfigError(f"port: LitServe takes 1024 to 65535, or 0, got {port}")
    if workers < 1:
        raise ConfigError(f"workers: expected 1 or more, got {workers}")
    where = _device(device)
    limits = limits or Limits()
    api, about = _api(model, inputs, limits, backend, make, "/predict")
    with listener(host, port) as listening:  # LitServe binds its own; this one finds a free port, or says what is wrong
        port = listening.getsockname()[1]
    server = require("litserve", "litserve", "serving a model on LitServe").LitServer(
        api,
        accelerator=where.type,
        devices="auto" if where.index is None else [where.index],
        workers_per_device=workers,
        timeout=limits.timeout,
        model_metadata=about,
    )
    server.uvicorn_graceful_timeout = max(1, round(limits.grace))
    with _ended(server) as answering:
        threading.Thread(target=_announced, args=(host, port, answering, ready), daemon=True).start()
        try:
            server.run(
                host=host,
                port=port,
                num_api_servers=1,  # which has all the counts that /metrics shows
                log_level=log_level,
                generate_client_file=False,
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE,
            )
        except (RuntimeError, OSError, EOFError) as error:
            raise ExecutionError(f"LitServe ended: {str(error) or type(error).__name__}; its log says why") from error


def _api(
    model: Conditioned,
    inputs: Inputs,
    limits: Limits,
    backend: Backend | None,
    make: Callable[[], Conditioned] | None,
    path: str,
) -> tuple[LitAPI, dict[str, Any]]:
    """The API, and what is told of the model."""
    for package in ("litserve", "prometheus_client"):
        require(package, "litserve", "serving a model on LitServe")
    from .endpoints import Endpoints
    from .lit_app import ConditionedAPI, Door

    found, about = described(model, inputs, backend)
    endpoints = Endpoints(model.space, inputs, limits, about)
    answering = type(found) if backend is None else partial(_given, backend)
    api = ConditionedAPI(make or partial(_given, model), answering, inputs, limits, Door(endpoints, path))
    return api, endpoints.about


def _device(name: str) -> torch.device:
    """A device that is there: for one that is not, LitServe would wait without an end."""
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device: expected one that this machine has, got {name!r}: {reason}") from error
    if found.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device: LitServe knows cpu, cuda and mps, got {name!r}")
    return found


def _given(value: Any, *_: Any) -> Any:
    return value


def _announced(host: str, port: int, answering: threading.Event, ready: Callable[[str], None]) -> None:
    """Tell the server's address when it is healthy, which LitServe does not tell its caller."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    while True:
        connection = http.client.HTTPConnection(reached, port, timeout=1)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                break
        connection.close()
        time.sleep(0.05)
    connection.close()
    answering.set()
    ready(address(host, port))


@contextlib.contextmanager
def _ended(server: Any) -> Iterator[threading.Event]:
    """With SIGINT and SIGTERM the server ends, and every process that it has started.

    LitServe ends on SIGINT alone, as a KeyboardInterrupt, at which its monitor may take the workers that end for dead
    ones. So it is told as its own shutdown endpoint tells it; while it starts, and if told again, by the exception.
    """
    from .lit_app import ends_with_parent

    answering, told, ours = threading.Event(), threading.Event(), os.getpid()
    register_after_fork(answering, ends_with_parent)
    before = set(multiprocessing.active_children())

    def end(*_: Any) -> None:
        if os.getpid() != ours:  # a process that LitServe has forked, and ends itself
            return
        event = getattr(server, "_shutdown_event", None)
        if event is None or not answering.is_set() or told.is_set():
            raise KeyboardInterrupt
        told.set()
        threading.Thread(target=event.set, daemon=True).start()  # the main thread's line to it is in use

    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield answering
    finally:
        left = set(multiprocessing.active_children()) - before
        for process in left:
            process.terminate()
        for process in left:
            process.join(5)
            if process.is_alive():
                process.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)

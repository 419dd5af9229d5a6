"""`weightmorph serve`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ... import serving as serve
from ...errors import ConfigError
from ...model import Conditioned
from ..options import Job, Serve
from ..results import input_shape, loaded
from ..show import say

__all__ = ["run"]


def run(job: Job[Serve]) -> int:
    """Answer requests until told to stop."""
    options = job.options
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"port: expected 0 to 65535, got {options.port}")
    limits = serve.Limits(
        batch=options.max_batch,
        wait=options.max_wait / 1000,
        body=int(options.max_body * 2**20),
        queue=options.max_queue,
        timeout=options.timeout,
        grace=options.grace,
    )
    if options.engine == "starlette" and options.workers != 1:
        raise ConfigError(f"workers: the engine starlette runs 1, got {options.workers}; litserve takes more")
    lit = options.engine == "litserve"
    # LitServe gives each worker its device; the model that is here is looked at, not run.
    here = replace(options, device="cpu") if lit else options
    model, about = loaded(here)
    inputs = serve.Inputs(input_shape(options.input_shape, about), options.input_dtype)

    def ready(address: str) -> None:
        say(f"{options.model} on {address}: POST {address}/predict; stop with Ctrl-C")

    common: dict[str, Any] = {
        "host": options.host,
        "port": options.port,
        "limits": limits,
        "log_level": options.log_level,
        "ready": ready,
    }
    if lit:
        make = partial(in_worker, here)
        serve.lit_run(model, inputs, make=make, device=options.device, workers=options.workers, **common)
    else:
        serve.run(model, inputs, **common)
    return 0


def in_worker(options: Serve) -> Conditioned:
    """The model, in a worker of LitServe, which is a process of its own."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return loaded(options)[0]

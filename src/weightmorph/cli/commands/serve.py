"""`weightmorph serve`."""

from __future__ import annotations

from ... import serving as serve
from ...errors import ConfigError
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
    model, about = loaded(options)
    inputs = serve.Inputs(input_shape(options.input_shape, about), options.input_dtype)

    def ready(address: str) -> None:
        say(f"{options.model} on {address}: POST {address}/predict; stop with Ctrl-C")

    serve.run(
        model, inputs, host=options.host, port=options.port, limits=limits, log_level=options.log_level, ready=ready
    )
    return 0

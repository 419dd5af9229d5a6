"""`weightmorph serve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jsonargparse

from ... import serving
from ..options import FromFunction, Job, Network, Saved, check_range
from ..results import input_shape, loaded
from ..show import say

__all__ = ["add_options", "run"]


@dataclass
class Options:
    """What is taken, at most.

    Args:
        input_shape: shape of one sample, e.g. [1, 28, 28], null for an axis left open; null takes that of the training
            data.
        input_dtype: of the input's numbers.
        max_batch: requests in one call of the network.
        max_wait: how long the first request of a batch waits for others, in ms.
        max_body: largest body of a request, in MiB.
        max_queue: requests that may wait.
        timeout: longest time to an answer, in s.
        grace: time that requests at hand get at the end, in s.
    """

    input_shape: list[int | None] | None = None
    input_dtype: Literal["float32", "float64", "int64"] = "float32"
    max_batch: int = 64
    max_wait: float = 2.0
    max_body: float = 16.0
    max_queue: int = 1024
    timeout: float = 30.0
    grace: float = 10.0


SERVING = FromFunction(serving.run, "host port log_level")


def add_options(parser: jsonargparse.ArgumentParser) -> None:
    """The options of this command."""
    for group in (Network, Saved, Options):
        parser.add_class_arguments(group)
    SERVING.add_to(parser)


def run(job: Job) -> int:
    """Answer requests over HTTP, each with its own θ, until stopped."""
    options = job.options
    check_range(options, 0, "port", high=65535)
    limits = serving.Limits(
        batch=options.max_batch,
        wait=options.max_wait / 1000,
        body=int(options.max_body * 2**20),
        queue=options.max_queue,
        timeout=options.timeout,
        grace=options.grace,
    )
    model, about = loaded(options)
    inputs = serving.Inputs(input_shape(options.input_shape, about), options.input_dtype)

    def ready(address: str) -> None:
        say(f"{options.model} on {address}: POST {address}/predict; stop with Ctrl-C")

    serving.run(model, inputs, limits=limits, ready=ready, **SERVING.arguments(options))
    return 0

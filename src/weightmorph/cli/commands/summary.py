"""`weightmorph summary`."""

from __future__ import annotations

from ...errors import ConfigError
from ..options import Job, Summary
from ..results import example_input, loaded
from ..show import say

__all__ = ["run"]


def run(job: Job[Summary]) -> int:
    """Print the table of what is conditioned."""
    options = job.options
    model, about = loaded(options)
    try:
        example = example_input(options.input_shape, about, 1, model.device)
    except ConfigError:
        if options.input_shape is not None:
            raise
        example = None
    say(model.summary(example))
    return 0

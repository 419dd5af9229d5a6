"""`weightmorph summary`."""

from __future__ import annotations

from dataclasses import dataclass

import jsonargparse

from ...errors import ConfigError
from ..options import Job, Network, Saved
from ..results import example_input, loaded
from ..show import say

__all__ = ["add_options", "run"]


@dataclass
class Options:
    """What is shown.

    Args:
        input_shape: shape of one sample, from which the layers' sizes are read; null takes that of the training data.
    """

    input_shape: list[int | None] | None = None


def add_options(parser: jsonargparse.ArgumentParser) -> None:
    """The options of this command."""
    for group in (Network, Saved, Options):
        parser.add_class_arguments(group)


def run(job: Job) -> int:
    """Show what is conditioned, and how."""
    options = job.options
    model, about = loaded(options)
    try:
        example = example_input(options.input_shape, about, 1, model.view.device)
    except ConfigError:
        if options.input_shape is not None:
            raise
        example = None
    say(model.summary(example))
    return 0

"""The commands: what runs, whose docstring is the help, and the groups of options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..options import TRAINER, Job, Network, Saved, Testing, Training, check_range
from . import about, deploying, judging, training

__all__ = ["COMMANDS", "Command", "run"]


class Command(NamedTuple):
    """What runs, and from where its options come: dataclasses, and the parameters of library functions."""

    run: Callable[[Job], int]
    options: tuple[Any, ...]


COMMANDS = {
    "fit": Command(training.run_fit, (Network, Training, training.Fit, TRAINER)),
    "evaluate": Command(judging.run_evaluate, (Network, Saved, Testing, judging.Evaluate, judging.EVALUATING)),
    "compare": Command(
        training.run_compare,
        (Network, Saved, Training, Testing, training.Compare, training.COMPARING, training.JUDGING, TRAINER),
    ),
    "infer": Command(judging.run_infer, (Network, Saved, Testing, judging.Infer, judging.INFERRING)),
    "bake": Command(deploying.run_bake, (Network, Saved, deploying.Bake, deploying.BAKING)),
    "export": Command(deploying.run_export, (Network, Saved, deploying.Export, deploying.EXPORTING)),
    "summary": Command(about.run_summary, (Network, Saved, about.Summary)),
    "serve": Command(deploying.run_serve, (Network, Saved, deploying.Serve, deploying.SERVING)),
    "doctor": Command(about.run_doctor, (Network, Saved)),
}
"""By name, in the order of a user's path."""


def run(job: Job) -> int:
    """Run a command with its options; gives the exit code."""
    check_range(job.options, 0, "seed", high=2**63 - 1)
    check_range(job.options, 1, "threads", high=1024)
    if job.options.threads is not None:
        torch.set_num_threads(job.options.threads)
    return COMMANDS[job.command].run(job)

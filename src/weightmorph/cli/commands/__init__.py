"""What each command does: a module each, with `add_options(parser)` and `run(job)`, whose docstrings are the help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from ...errors import ConfigError, WeightmorphError
from ..options import Job, check_range
from . import bake, compare, doctor, evaluate, export, fit, infer, serve, summary

__all__ = ["COMMANDS", "run"]

COMMANDS: dict[str, ModuleType] = {
    "fit": fit, "evaluate": evaluate, "compare": compare, "infer": infer, "bake": bake, "export": export,
    "summary": summary, "serve": serve, "doctor": doctor,
}  # fmt: skip
"""Name to module, in the order of a user's path."""


def run(job: Job) -> int:
    """Run a command with its options; gives the exit code."""
    check_range(job.options, 0, "seed", high=2**63 - 1)
    check_range(job.options, 1, "threads", high=1024)
    if job.options.threads is not None:
        torch.set_num_threads(job.options.threads)
    code: int = COMMANDS[job.command].run(job)
    return code

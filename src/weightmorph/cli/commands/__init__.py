"""What each command does: a file each, imported when it is called."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from ..options import Job

__all__ = ["run"]


def run(job: Job[Any]) -> int:
    """Run a command with its options; gives the exit code."""
    if job.options.threads is not None:
        torch.set_num_threads(job.options.threads)
    module = importlib.import_module(f".{job.command}", __name__)
    code: int = module.run(job)
    return code

"""`weightmorph summary` and `weightmorph doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...errors import ConfigError, WeightmorphError
from ...model import ModelSpec
from ...storage import versions
from ..options import Job, Shape
from ..results import example_input, installed, loaded, record
from ..show import say, table

__all__ = ["Summary", "run_doctor", "run_summary"]


@dataclass
class Summary:
    """What is shown.

    Args:
        input_shape: shape of one sample, from which the layers' sizes are read; null takes that of the training data.
    """

    input_shape: Shape = None


def run_summary(job: Job) -> int:
    """Show what is conditioned, and how."""
    options = job.options
    model, about = loaded(options)
    known = options.input_shape is not None or "input_shape" in about.metrics
    say(model.summary(example_input(options.input_shape, about, 1, model.device) if known else None))
    return 0


def run_doctor(job: Job) -> int:
    """Say what is installed, what the machine offers, and whether a model file can be used."""
    options = job.options
    table(("", ""), [*_machine(), *_extras()])
    if options.model is None:
        return 0
    say("")
    try:
        table(("", ""), [("model", options.model), *_file(record(options))])
        if options.base is not None:
            loaded(options)
            say("it loads onto this base")
        else:
            say("with --base (and --weights) it would be loaded as well")
    except ConfigError:
        raise
    except (WeightmorphError, OSError) as error:
        say(f"it cannot be used: {' '.join(str(error).split())}")
        return 1
    return 0


def _machine() -> Iterator[tuple[str, str]]:
    yield from versions().items()
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    omp = os.environ.get("OMP_NUM_THREADS", "not set")
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores; OMP_NUM_THREADS {omp}"
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    yield "devices", ", ".join(devices)


def _extras() -> Iterator[tuple[str, str]]:
    """The extras that the installed package declares, and which of their packages are there."""
    try:
        declared = importlib.metadata.requires("weightmorph") or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    extras: dict[str, list[str]] = {}
    for line in declared:
        if found := re.match(r"([\w.-]+).*extra\s*==\s*['\"](\w+)['\"]", line):
            extras.setdefault(found[2], []).append(found[1])
    extras.pop("dev", None)
    for extra, packages in extras.items():
        there = installed(packages)
        parts = [", ".join(f"{name} {version}" for name, version in there.items())]
        if absent := ", ".join(name for name in packages if name not in there):
            parts.append(f"absent: {absent} (pip install 'weightmorph[{extra}]')")
        yield f"[{extra}]", "; ".join(filter(None, parts))


def _file(about: ModelSpec) -> Iterator[tuple[str, str]]:
    yield "written by", ", ".join(f"{name} {version}" for name, version in about.written_by.items())
    for name, parameter in about.space.items():
        yield f"parameter {name}", repr(parameter)
    parts = about.recipe.get("parts", [about.recipe])
    yield "transform", " + ".join(str(part["type"]) for part in parts)
    yield "conditioned", f"{len(about.slots)} tensors, selected: {about.selected}"
    yield "base", f"{about.network}, fingerprint {about.fingerprint}, {len(about.fingerprint.tensors)} tensors"
    for name, value in about.metrics.items():
        yield name, str(value)

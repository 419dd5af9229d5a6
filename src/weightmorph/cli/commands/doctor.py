"""`weightmorph doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator

import torch

from ...errors import ConfigError, WeightmorphError
from ...model import ModelSpec
from ...storage import versions
from ..options import Doctor, Job
from ..results import loaded, record
from ..show import say, table

__all__ = ["run"]


def run(job: Job[Doctor]) -> int:
    """Show versions, extras, threads and devices; with a model, whether it can be used. 1 if it cannot."""
    options = job.options
    table(("", ""), [*_machine(), *_extras()])
    if options.model is None:
        return 0
    say("")
    try:
        table(("", ""), list(_file(options, record(options))))
        if options.base is not None:
            loaded(options)
            say("it loads onto this base")
        else:
            say("with --base (and --weights) it would be loaded as well")
    except (WeightmorphError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        say(f"it cannot be used: {' '.join(str(error).split())}")
        return 1
    return 0


def _machine() -> Iterator[tuple[str, str]]:
    yield from versions().items()
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield (
        "threads",
        f"{torch.get_num_threads()} of {os.cpu_count()} cores; OMP_NUM_THREADS "
        + os.environ.get("OMP_NUM_THREADS", "not set"),
    )
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
    for extra, packages in extras.items():
        if extra == "dev":
            continue
        there = {name: _version(name) for name in packages if name != "weightmorph"}
        absent = [name for name, version in there.items() if version is None]
        told = ", ".join(f"{name} {version}" for name, version in there.items() if version is not None)
        if absent:
            told += f"{'; ' if told else ''}absent: {', '.join(absent)} (pip install 'weightmorph[{extra}]')"
        yield f"[{extra}]", told


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _file(options: Doctor, about: ModelSpec) -> Iterator[tuple[str, str]]:
    yield "model", str(options.model)
    yield "written by", ", ".join(f"{name} {version}" for name, version in about.written_by.items())
    for name, parameter in about.space.items():
        yield f"parameter {name}", repr(parameter)
    parts = about.recipe.get("parts", [about.recipe])
    yield "transform", " + ".join(str(part["type"]) for part in parts)
    yield "conditioned", f"{len(about.slots)} tensors, selected: {about.selected}"
    yield "base", f"{about.network}, fingerprint {about.fingerprint}, {len(about.fingerprint.tensors)} tensors"
    for name, value in about.metrics.items():
        yield name, str(value)

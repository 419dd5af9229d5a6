"""What commands share: loading a saved model, and writing results with the configuration that reproduces them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..model import Conditioned, ModelSpec
from ..model.load import load, peek
from ..storage import versions
from ..transforms.registry import foreign
from .files import write_yaml
from .options import Job
from .recipes import weight_transform
from .sources import absolute, network

__all__ = [
    "destination", "example_input", "input_shape", "installed", "loaded", "quiet_export", "record", "write_config",
]  # fmt: skip

LIBRARIES = ("numpy", "lightning", "safetensors", "onnx", "onnxruntime")
NOT_WRITTEN = {"config", "debug"}


def record(options: Any) -> ModelSpec:
    """What the model's file says of itself.

    Raises:
        ConfigError: if no file is named, or there is none.
        CheckpointError: if it is damaged.
    """
    if options.model is None:
        raise ConfigError("model: which? expected the file that fit wrote, *.safetensors")
    if not Path(options.model).is_file():
        raise ConfigError(f"model: there is no file {options.model}")
    return peek(options.model)


def loaded(options: Any) -> tuple[Conditioned, ModelSpec]:
    """The model on its base, and what its file says.

    Raises:
        ConfigError: if the model, the base or its weights cannot be had, or a transform of the user's is missing.
        BaseError: if it was saved for another base.
        CheckpointError: if its file is damaged.
    """
    about = record(options)
    own = foreign(about.recipe)
    if own and options.transform is None:
        raise ConfigError(f"transform: {options.model} holds code of your own ({', '.join(own)}): give it again")
    recipe = weight_transform(options.transform) if own else None
    model = load(options.model, network(options), transform=recipe)
    try:
        return model.to(torch.device(options.device)), about
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device: expected one that this machine has, got {options.device!r}: {reason}") from error


def input_shape(given: Sequence[int | None] | None, about: ModelSpec) -> tuple[int | None, ...]:
    """The shape of one sample: what the user says, or that of the training data."""
    shape = given if given is not None else about.metrics.get("input_shape")
    if not isinstance(shape, list | tuple) or not all(n is None or (isinstance(n, int) and n > 0) for n in shape):
        raise ConfigError("input_shape: expected the shape of one sample such as [1, 28, 28]; the model does not tell")
    return tuple(shape)


def example_input(
    given: Sequence[int | None] | None, about: ModelSpec, size: int, device: torch.device
) -> torch.Tensor:
    """Zeros of the shape of `size` samples."""
    shape = input_shape(given, about)
    if None in shape:
        raise ConfigError(f"input_shape: expected numbers only, got {list(shape)}")
    return torch.zeros(size, *[int(n or 0) for n in shape], device=device)


def destination(to: str | None, options: Any, name: str) -> Path:
    """Where to write: where the user says, or `name` beside the model."""
    return Path(to) if to is not None else Path(options.model).with_name(name)


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Without what torch's exporters log about packages that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def write_config(job: Job, path: Path, **changed: Any) -> Path:
    """Write the configuration that gives a result again: all options, and how the result was made.

    What the user's file says to other commands is kept, so that they can go on from this one.

    Args:
        job: what was done.
        path: where to; its folder is made if need be.
        changed: keys with other values, or of other commands.
    """
    entries = job.rest | job.options.as_dict() | changed | {"threads": torch.get_num_threads()}
    entries = {key: absolute(key, value, Path.cwd()) for key, value in entries.items() if key not in NOT_WRITTEN}
    entries["made"] = {
        "by": f"weightmorph {job.command}",
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions() | installed(LIBRARIES),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_yaml(path, entries, f"Gives the same again: weightmorph {job.command} --config {path.name}")


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found

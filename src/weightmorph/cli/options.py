"""The options that several commands share.

Those of a library function come from its signature: name, type, default and help are written once, in the library.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jsonargparse

from ..errors import ConfigError, WeightmorphError
from ..training import fit

__all__ = [
    "FromFunction",
    "Job",
    "Network",
    "Saved",
    "Testing",
    "Training",
    "check_range",
    "fit_arguments",
    "naming_options",
]

Recipe = dict[str, Any] | list[Any] | str | None
"""As `Warp + LowRank(8)`, as `{class_path: LowRank, init_args: {rank: 8}}`, or as a list of either."""

Shape = list[int | None] | None


@dataclass
class Network:
    """The frozen network.

    Args:
        base: the frozen network: 'package.module:function', 'file.py:function' or 'timm:NAME'. The function (or class)
            is called with base_options and gives an nn.Module.
        base_options: keyword arguments of that function, by name.
        weights: file with the network's tensors: safetensors, or what torch.save wrote (read with weights_only, so that
            no code in it is run). Null keeps those that the function made.
        weights_key: entry of that file that holds the state_dict; null if it is the whole file.
        seed: the seed of all random numbers.
        threads: CPU threads of torch; null leaves torch's choice.
    """

    base: str | None = None
    base_options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    weights_key: str | None = None
    seed: int = 0
    threads: int | None = None


@dataclass
class Saved:
    """The conditioned network that was saved.

    Args:
        model: the file that fit wrote, *.safetensors; may be given as the first argument without the flag.
        transform: the transform as it was trained, needed only where it holds code of your own.
        device: where it runs, as torch names it: cpu, cuda, cuda:1, mps.
    """

    model: str | None = None
    transform: Recipe = None
    device: str = "cpu"


@dataclass
class Training:
    """What to train on, and what for.

    Args:
        data: images to train on: 'folder:PATH' (a folder of images, one subfolder a class), 'idx:PATH' (a folder of IDX
            files, MNIST's format), 'npz:PATH' (arrays x and y), 'package.module:function' or 'file.py:function'
            (tensors (x, y), x alone, or a Dataset).
        data_options: keyword arguments of that function, or of folder (size in px, channels, mean, std, in units of
            values from 0 to 1) or idx (split: train or test).
        data_take: which of the values that the function gives are x and y, counted from 0, e.g. [0, 1]; null for all.
        parameters: what the weights depend on: name to a kind of parameter with its unit, range and anchor, e.g.
            {angle: Angle(deg), blur: "Interval(0, 4)"}; null for those of the input transform.
        objective: supervised (labels), distillation (no labels), or an import path to a loss (output, target).
        objective_options: of the objective, e.g. {temperature: 2.0} of distillation, by name.
    """

    data: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    data_take: list[int] | None = None
    parameters: dict[str, Any] | None = None
    objective: str = "supervised"
    objective_options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Testing:
    """Images that were not used in training.

    Args:
        test_data: images to judge on; as data of fit.
        test_data_options: as data_options of fit.
        test_data_take: as data_take of fit.
        input_transform: what the world does to the input; as for fit.
    """

    test_data: str | None = None
    test_data_options: dict[str, Any] = field(default_factory=dict)
    test_data_take: list[int] | None = None
    input_transform: Recipe = None


class FromFunction:
    """Options that are parameters of a library function.

    Args:
        function: the function.
        names: which of its parameters, between blanks.
    """

    def __init__(self, function: Callable[..., Any], names: str) -> None:
        self.function, self.names = function, names.split()

    def add_to(self, parser: jsonargparse.ArgumentParser, group: str | None = None) -> None:
        """Make them options of a command, under the key `group` if there is one."""
        known = inspect.signature(self.function).parameters
        others: set[str | int] = {name for name in known if name not in self.names}
        parser.add_function_arguments(self.function, group, skip=others, fail_untyped=False)

    def arguments(self, options: Any) -> dict[str, Any]:
        """Their values, as keyword arguments of the function."""
        return {name: options[name] for name in self.names}


class _Trainer(FromFunction):
    """The group `trainer`: what `fit` takes, less what other options say."""

    def add_to(self, parser: jsonargparse.ArgumentParser, group: str | None = "trainer") -> None:
        super().add_to(parser, group)
        (parser.groups or {})["trainer"].title = "How to train"
        parser.add_argument(
            "--trainer.progress", type=bool | None, default=None,
            help="show a progress bar; null for only where somebody watches, a terminal",
        )  # fmt: skip
        parser.add_argument(
            "--trainer.lightning", type=dict[str, Any], default={},
            help="further arguments of Lightning's Trainer, by name, e.g. gradient_clip_val",
        )  # fmt: skip


_NOT_TRAINER = {"model", "data", "input_transform", "objective", "seed", "checkpoint", "progress", "logger", "trainer"}
TRAINER = _Trainer(fit, " ".join(name for name in inspect.signature(fit).parameters if name not in _NOT_TRAINER))


def fit_arguments(options: Any) -> dict[str, Any]:
    """The group `trainer` as keyword arguments of `fit`."""
    given = options.trainer
    progress = sys.stderr.isatty() if given.progress is None else given.progress
    return TRAINER.arguments(given) | {"trainer": given.lightning, "progress": progress}


def check_range(options: Any, low: int, *names: str, high: float = math.inf) -> None:
    """Refuse whole numbers outside a range, before anything long starts.

    Raises:
        ConfigError: naming the option.
    """
    for name in names:
        value = options[name]
        if isinstance(value, int) and not low <= value <= high:
            expected = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise ConfigError(f"{name}: expected {expected}, got {value}")


@dataclass(frozen=True)
class Job:
    """A command, its options, and what the configuration says to other commands."""

    command: str
    options: Any
    rest: dict[str, Any] = field(default_factory=dict)


@contextmanager
def naming_options(options: Any) -> Iterator[None]:
    """Within, an error of the library that names one of the options is one of the configuration.

    The library's messages begin with the parameter that is wrong: `lr: expected lr > 0, got -1`, `give epochs or steps,
    not both`.

    Raises:
        ConfigError: with the option's key.
    """
    try:
        yield
    except WeightmorphError as error:
        found = re.match(r"(?:give )?(\w+)(?=:| or )", str(error))
        name = found[1] if found else ""
        if isinstance(error, ConfigError) or not (name in options or name in options.trainer):
            raise
        raise ConfigError(
            f"{'trainer.' if name in options.trainer else ''}{name}: {str(error).removeprefix(f'{name}: ')}"
        ) from error

"""The exceptions. Each message says which layer, what was expected, what was given, and what to do.

```
WeightmorphError
├── ParameterError            a value of θ cannot be used
│   ├── MissingParameterError     no value was given
│   ├── UnknownParameterError     a name that the space does not hold (also a TypeError)
│   ├── ParameterLengthError      neither one value for the batch nor one per sample
│   └── ParameterValueError       NaN, infinite, not a number, not a category
├── InputError                an image, or an option of an input transform, that cannot be used
├── SelectionError            no tensor, a tied or a parametrised tensor, an unusable layer
├── TransformError            a weight transform's output cannot be used
│   ├── RankError                 a rank that does not fit the weight
│   └── NoGradientError           W(θ) lost its graph
├── ExecutionError            a call that cannot take the weight it was given
│   ├── BatchSizeError            a layer changed the batch dimension under per-sample θ
│   └── MemoryLimitError          a per-sample weight larger than the stated limit
├── TrainingError             data, an objective or a budget that cannot be trained with, or a loss that is not finite
├── BaseError                 the base network cannot be conditioned, or is another one than at save
├── CheckpointError           a file that is damaged or incomplete, or is no weightmorph checkpoint
├── ConfigError               a configuration or a flag of the command line that cannot be used
├── RequestError              a request to the server that cannot be answered
└── MissingDependencyError    an optional package is absent (also an ImportError)
```

`OutOfRangeWarning` and `ConditioningWarning` are warnings: the call goes on.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

__all__ = [
    "BaseError",
    "BatchSizeError",
    "CheckpointError",
    "ConditioningWarning",
    "ConfigError",
    "ExecutionError",
    "InputError",
    "MemoryLimitError",
    "MissingDependencyError",
    "MissingParameterError",
    "NoGradientError",
    "OutOfRangeWarning",
    "ParameterError",
    "ParameterLengthError",
    "ParameterValueError",
    "RankError",
    "RequestError",
    "SelectionError",
    "TrainingError",
    "TransformError",
    "UnknownParameterError",
    "WeightmorphError",
    "near",
    "require",
]


class WeightmorphError(Exception):
    """The base of all errors that this library raises on purpose."""


class ParameterError(WeightmorphError, ValueError):
    """A value of θ cannot be used."""


class MissingParameterError(ParameterError, TypeError):
    """A parameter of the space was given no value."""


class UnknownParameterError(ParameterError, TypeError):
    """A value was given for a name that the space does not hold."""


class ParameterLengthError(ParameterError):
    """θ is neither one value for the batch nor one value per sample."""


class ParameterValueError(ParameterError):
    """θ is NaN, infinite, not a number, or not one of the categories."""


class InputError(WeightmorphError, ValueError):
    """An image, or an option of an input transform, cannot be used."""


class SelectionError(WeightmorphError, ValueError):
    """The tensors asked for cannot be conditioned."""


class TransformError(WeightmorphError, ValueError):
    """The output of a weight transform is not a usable weight."""


class RankError(TransformError):
    """A rank does not fit the weight."""


class NoGradientError(TransformError, RuntimeError):
    """W(θ) does not depend on the transform's trainable tensors as far as autograd knows."""


class ExecutionError(WeightmorphError, RuntimeError):
    """A function cannot be called with the weight it was given."""


class BatchSizeError(ExecutionError):
    """Under per-sample θ a layer saw a batch dimension other than the model's."""


class MemoryLimitError(ExecutionError):
    """A dense per-sample weight would need more memory than the stated limit."""


class TrainingError(WeightmorphError, ValueError):
    """Data, an objective or a budget cannot be trained with, or the loss is not finite."""


class BaseError(WeightmorphError, ValueError):
    """The base network cannot be conditioned, or is not the one a checkpoint was made for."""


class CheckpointError(WeightmorphError, ValueError):
    """A file is damaged, incomplete, or not a weightmorph checkpoint."""


class ConfigError(WeightmorphError, ValueError):
    """A configuration file or a flag of the command line cannot be used."""


class RequestError(WeightmorphError, ValueError):
    """A request cannot be answered; `status` is the HTTP status that says why."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class MissingDependencyError(WeightmorphError, ImportError):
    """An optional package is not installed."""


class OutOfRangeWarning(UserWarning):
    """θ lies outside the range that its parameter states; the call goes on."""


class ConditioningWarning(UserWarning):
    """A part of the network was not conditioned, or a result deserves attention; the call goes on."""


def near(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: `"; did you mean 'a', 'b'?"`, or the empty string if no known name is similar.

    Args:
        name: what the user wrote.
        known: the names that would have been right.

    Example:
        >>> near("agnle", ["angle", "blur"])
        "; did you mean 'angle'?"
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package where it is used.

    Args:
        module: what to import.
        extra: the extra of this package that installs it.
        purpose: what needs it, for the message.

    Raises:
        MissingDependencyError: if it is absent; the message holds the command that installs it.

    Example:
        >>> require("math", "train", "an example").sqrt(4.0)
        2.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        # A package that is installed but broken must not be reported as absent.
        if error.name is not None and error.name.partition(".")[0] != top:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {top!r}, which is not installed: pip install 'weightmorph[{extra}]'",
            name=top,
        ) from error

"""`model(x, angle="infer")`: values that the model's estimator fills in before the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import ExecutionError, MissingParameterError
from ..estimator import INFER, Estimator
from ..parameters import Parameter, Value

__all__ = ["asked", "estimate"]


def asked(space: Mapping[str, Parameter], values: Mapping[str, Value]) -> list[str]:
    """The parameters that are to be estimated. A category may be called "infer"; then that is meant."""
    wanted = (name for name, value in values.items() if isinstance(value, str) and value == INFER)
    return [name for name in wanted if INFER not in space[name].choices]


def estimate(
    estimator: Estimator | None,
    root: nn.Module,
    names: Sequence[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tracing: bool,
) -> dict[str, Value]:
    """The most likely value of some parameters for each sample.

    Args:
        estimator: the model's, if it has one.
        root: a fresh clone of the frozen base.
        names: of the parameters.
        args: the base's positional inputs.
        kwargs: its keyword inputs.
        tracing: True while the call is traced.

    Raises:
        ExecutionError: in a traced call.
        MissingParameterError: without an estimator.
    """
    if tracing:
        raise ExecutionError(
            f"{names[0]}={INFER!r} is eager only: estimate first, found = weightmorph.infer(model, x), and give the "
            "traced model found.theta"
        )
    if estimator is None:
        raise MissingParameterError(
            f"{names[0]}={INFER!r}: the model has no estimator. Train one with fit(…, predict_parameter=True), or "
            "search without one: weightmorph.infer(model, x)"
        )
    return {**estimator.best(estimator.read(root, args, kwargs), names)}

"""Functions that nobody knows: `vmap` over samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExecutionError
from ..terms import WeightExpression
from .batch import Batch, expand
from .planner import ADVICE

__all__ = ["call"]


def call(
    batch: Batch,
    where: str,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    derive: Callable[[Tensor], Any],
) -> Any:
    """Map `func` over the samples.

    A function of weights alone gives one value per sample, which is a weight again (`derive` makes its stand-in). With
    an input whose first axis is the batch, it gives an output whose first axis is the batch.

    Raises:
        ExecutionError: if the function cannot be mapped.
    """
    if batch.route == "constant":
        _refuse_constant(where, func, args, kwargs)
    leaves: list[Any] = []
    axes: list[int | None] = []
    inputs = any(_is_input(value, batch) for value in _leaves((args, tuple(kwargs.values()))))

    def collect(value: Any) -> Any:
        """Flatten; leave behind the number of the leaf."""
        if type(value) in (list, tuple):
            return type(value)([collect(item) for item in value])
        if isinstance(value, WeightExpression):
            # Weights alone keep one row per setting, as every weight does.
            expression = expand(batch, value) if inputs else value
            batch.check_memory(
                expression.base.numel(), expression.base.element_size(), where, "give one θ for the whole batch"
            )
            leaf, axis = (expression.dense(), 0) if expression.batch else (expression.dense(), None)
        elif isinstance(value, Tensor):
            leaf, axis = (value.unsqueeze(1), 0) if _is_input(value, batch) else (value, None)
        else:
            return value
        leaves.append(leaf)
        axes.append(axis)
        return _Leaf(len(leaves) - 1)

    plan_args = collect(args)
    plan_kwargs = {name: collect(value) for name, value in kwargs.items()}

    def one(*values: Tensor) -> Any:
        """The function for one sample."""

        def fill(value: Any) -> Any:
            if type(value) in (list, tuple):
                return type(value)([fill(item) for item in value])
            return values[value.number] if isinstance(value, _Leaf) else value

        return func(*fill(plan_args), **{name: fill(value) for name, value in plan_kwargs.items()})

    try:
        if all(axis is None for axis in axes):
            return one(*leaves)  # weights that do not depend on θ after all
        result = torch.vmap(one, tuple(axes), randomness="error")(*leaves)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ExecutionError(
            f"{where}: this function cannot be given one weight per sample ({error}). Give one θ for the whole batch, "
            "or deselect this layer with select="
        ) from error
    if not inputs:
        return _each(result, derive)

    def joined(value: Tensor) -> Tensor:
        if value.dim() < 2 or value.shape[1] != 1:
            raise ExecutionError(
                f"{where}: this function does not keep the batch as its first axis (one sample gives shape "
                f"{tuple(value.shape[1:])}). Give one θ for the whole batch, or deselect this layer with select="
            )
        return value.squeeze(1)

    return _each(result, joined)


def _refuse_constant(where: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A function that is not known takes vectors and no weight of a layer, where weights are to be constant."""
    for value in _leaves((args, tuple(kwargs.values()))):
        if isinstance(value, WeightExpression) and value.slot.kind not in ("norm", "bias"):
            raise ExecutionError(
                f"{where}: constant_weights: the layer gives {value.slot.name} to the function "
                f"{getattr(func, '__name__', func)!r}, which has no form with constant weights. Either {ADVICE}"
            )


def _leaves(value: Any) -> Iterator[Any]:
    if type(value) in (list, tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _is_input(value: Any, batch: Batch) -> bool:
    """A parameter or buffer of the base belongs to no sample, even where its first axis happens to fit."""
    constant = not isinstance(value, Tensor) or isinstance(value, nn.Parameter | nn.Buffer)
    return not constant and value.dim() > 0 and value.shape[0] == batch.size


class _Leaf:
    """Stands for the leaf of that number."""

    def __init__(self, number: int) -> None:
        self.number = number


def _each(value: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_each(item, function) for item in value])
    if isinstance(value, list | tuple):
        return type(value)([_each(item, function) for item in value])
    return value

"""Functions without a handler of their own: `vmap` over the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

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

    A function of weights alone gives one value per sample, which is a weight again (`derive` makes its proxy). With an
    input whose first axis is the batch, it gives an output whose first axis is the batch.

    Raises:
        ExecutionError: if the function cannot be mapped.
    """
    leaves, structure = pytree.tree_flatten((args, kwargs))
    if batch.route == "constant":
        _refuse_constant(where, func, leaves)
    if not torch.compiler.is_compiling() and not batch.size:  # no sample, no weight: the result has the right shape
        frozen = [value.base if isinstance(value, WeightExpression) else value for value in leaves]
        own_args, own_kwargs = pytree.tree_unflatten(frozen, structure)
        return func(*own_args, **own_kwargs)
    inputs = any(_is_input(value, batch) for value in leaves)
    values, axes = zip(*[_mapped(batch, where, value, inputs) for value in leaves], strict=True)
    tensors = [number for number, value in enumerate(values) if isinstance(value, Tensor)]

    def one(*sample: Tensor) -> Any:
        """The function for one sample."""
        filled = list(values)
        for number, value in zip(tensors, sample, strict=True):
            filled[number] = value
        own_args, own_kwargs = pytree.tree_unflatten(filled, structure)
        return func(*own_args, **own_kwargs)

    mapped, own_axes = [values[n] for n in tensors], tuple(axes[n] for n in tensors)
    try:
        if all(axis is None for axis in own_axes):
            return one(*mapped)  # weights that do not depend on θ after all
        result = torch.vmap(one, own_axes, randomness="error")(*mapped)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ExecutionError(
            f"{where}: this function cannot be given one weight per sample ({error}). Give one θ for the whole batch, "
            "or deselect this layer with select="
        ) from error
    return pytree.tree_map_only(Tensor, partial(_batched, where) if inputs else derive, result)


def _mapped(batch: Batch, where: str, value: Any, inputs: bool) -> tuple[Any, int | None]:
    """A leaf as `vmap` takes it, and its batch axis: a weight as its dense tensor, an input with a batch of one."""
    if isinstance(value, WeightExpression):
        # Weights alone keep one row per setting, as every weight does.
        expression = expand(batch, value) if inputs else value
        frozen = expression.base
        batch.check_memory(frozen.numel(), frozen.element_size(), where, "give one θ for the whole batch")
        return expression.dense(), 0 if expression.batch else None
    if _is_input(value, batch):
        return value.unsqueeze(1), 0
    return value, None


def _batched(where: str, value: Tensor) -> Tensor:
    """An output without the batch of one that each sample was given."""
    if value.dim() < 2 or value.shape[1] != 1:
        raise ExecutionError(
            f"{where}: this function does not keep the batch as its first axis (one sample gives shape "
            f"{tuple(value.shape[1:])}). Give one θ for the whole batch, or deselect this layer with select="
        )
    return value.squeeze(1)


def _refuse_constant(where: str, func: Callable[..., Any], leaves: Sequence[Any]) -> None:
    """Where weights are to be constant, an unknown function may take vectors, but no layer's weight."""
    for value in leaves:
        if isinstance(value, WeightExpression) and value.slot.kind not in ("norm", "bias"):
            raise ExecutionError(
                f"{where}: constant_weights: the layer gives {value.slot.name} to the function "
                f"{getattr(func, '__name__', func)!r}, which has no form with constant weights. Either {ADVICE}"
            )


def _is_input(value: Any, batch: Batch) -> bool:
    """A parameter or buffer of the base belongs to no sample, even where its first axis happens to fit."""
    constant = not isinstance(value, Tensor) or isinstance(value, nn.Parameter | nn.Buffer)
    return not constant and value.dim() > 0 and value.shape[0] == batch.size

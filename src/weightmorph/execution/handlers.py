"""The functions of torch whose per-sample form is known, with their own signatures.

Eager code passes norm arguments by keyword and dynamo by position, so every handler has the signature of its function,
after the batch and the layer's name for errors. A new kind of layer operation is one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import Convolution, LayerOp, Linear, TransposedConvolution, cached_unless_tracing, each
from ..terms import WeightExpression
from . import norm
from .batch import Batch, vector_values
from .routes import execute

__all__ = ["HANDLERS", "WIDENED", "layer"]

Operand = Tensor | WeightExpression | None
Size = int | tuple[int, ...]


def linear(batch: Batch, where: str, input: Tensor, weight: Tensor | WeightExpression, bias: Operand = None) -> Tensor:
    """`F.linear` with one weight per sample: x `(B, …, I)` -> `(B, …, O)`."""
    batch.check(input, where)
    return layer(Linear(torch.compiler.is_compiling()), batch, where, input, weight, bias)


def convolution(
    dims: int,
    batch: Batch,
    where: str,
    input: Tensor,
    weight: Tensor | WeightExpression,
    bias: Operand = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv{1,2,3}d` with one weight per sample: x `(B, C, …)` -> `(B, O, …)`."""
    batch.check(input, where, dims + 2)
    pads = padding if isinstance(padding, str) else each(padding, dims)
    op = _plain(dims, each(stride, dims), pads, each(dilation, dims), groups, torch.compiler.is_compiling())
    return layer(op, batch, where, input, weight, bias)


def transposed(
    dims: int,
    batch: Batch,
    where: str,
    input: Tensor,
    weight: Tensor | WeightExpression,
    bias: Operand = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """`F.conv_transpose{1,2,3}d` with one weight per sample: x `(B, C, …)` -> `(B, O, …)`."""
    batch.check(input, where, dims + 2)
    op = TransposedConvolution(
        dims, each(stride, dims), each(padding, dims), each(dilation, dims), groups, torch.compiler.is_compiling(),
        each(output_padding, dims),
    )  # fmt: skip
    return layer(op, batch, where, input, weight, bias)


@cached_unless_tracing
def _plain(dims: int, stride: Any, padding: Any, dilation: Any, groups: int, traced: bool) -> Convolution:
    return Convolution(dims, stride, padding, dilation, groups, traced)


def layer(op: LayerOp, batch: Batch, where: str, x: Tensor, weight: Tensor | WeightExpression, bias: Operand) -> Tensor:
    """A layer operation and its bias, whatever the weight is.

    Args:
        op: the operation.
        batch: the samples, each with its own θ.
        where: the layer, for errors.
        x: the operation's input, the batch first.
        weight: a plain tensor, which does not depend on θ; an expression without a batch, which is the same for all
            samples; or an expression with one weight per sample.
        bias: the same three, or None.
    """
    if not isinstance(weight, WeightExpression):
        y = op(x, weight)
    elif not weight.batch:
        y = op(x, weight.materialise(), grow=weight.grow)
    else:
        y = execute(batch, where, op, x, weight)
    return y if bias is None else op.with_bias(y, vector_values(batch, bias))


WIDENED: frozenset[Callable[..., Tensor]] = frozenset((F.conv1d, F.conv2d, F.conv3d))
"""Functions that need room where the kernel has grown."""

HANDLERS: Mapping[Any, Callable[..., Tensor]] = {
    F.linear: linear,
    **{function: partial(convolution, n) for n, function in enumerate((F.conv1d, F.conv2d, F.conv3d), 1)},
    **{
        function: partial(transposed, n)
        for n, function in enumerate((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 1)
    },
    **norm.HANDLERS,
}
"""Functions whose per-sample form is known: `(batch, where, …the function's own arguments…) -> Tensor`."""

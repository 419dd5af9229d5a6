"""`F.linear` with one weight per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import BasisMix, LowRankUpdate, RowScale, TapMix, Term, WeightExpression
from .batch import Batch
from .norm import Operand, values
from .rule import Layer, plan, split

__all__ = ["HANDLERS", "linear"]


def linear(batch: Batch, where: str, input: Tensor, weight: Tensor | WeightExpression, bias: Operand = None) -> Tensor:
    """$y_b = x_b W_b^T + b_b$: x `(B, …, I)` -> `(B, …, O)`."""
    batch.check(input, where)
    if not isinstance(weight, WeightExpression) or not weight.batch:
        y = F.linear(input, weight.dense() if isinstance(weight, WeightExpression) else weight)
    elif batch.rows:
        y = _bucketed(batch, input, weight)
    else:
        y = _routed(batch, where, input, weight)
    if bias is None:
        return y
    shift = values(batch, bias).to(y.dtype)
    if shift.dim() == 2:
        shift = shift.reshape(shift.shape[0], *(1,) * (y.dim() - 2), shift.shape[1])
    return y + shift


def _bucketed(batch: Batch, x: Tensor, weight: WeightExpression) -> Tensor:
    dense = weight.dense()
    parts = [F.linear(x.index_select(0, rows), w) for rows, w in zip(batch.rows, dense, strict=True)]
    return batch.restore(parts)


def _routed(batch: Batch, where: str, x: Tensor, weight: WeightExpression) -> Tensor:
    o, i = weight.base.shape
    positions = x.shape[1:-1].numel()
    moved, left = split(batch, where, weight, plan(weight, Layer(positions, 1, o, i, 1, 1)))
    if not moved:
        return _product(x, weight.dense())
    y = _factored(x, weight, moved)
    return y + _product(x, weight.total(None, left)) if left else y


def _product(x: Tensor, dense: Tensor) -> Tensor:
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    return torch.bmm(rows, dense.to(x.dtype).transpose(1, 2)).reshape(*x.shape[:-1], dense.shape[1])


def _factored(x: Tensor, weight: WeightExpression, terms: list[Term]) -> Tensor:
    """x(W + s⊙W + U g V + W D)ᵀ = (1 + s) ⊙ xWᵀ + ((xVᵀ) ⊙ g) Uᵀ + (x Dᵀ) Wᵀ."""
    y = F.linear(x, weight.base)

    def gain(value: Tensor) -> Tensor:
        return value.to(y.dtype).reshape(value.shape[0], *(1,) * (x.dim() - 2), value.shape[-1])

    total = y
    for term in terms:
        if isinstance(term, RowScale):
            total = total + y * gain(term.gain)
        elif isinstance(term, LowRankUpdate):
            total = total + F.linear(F.linear(x, term.right[0]) * gain(term.gain), term.left[0])
        elif isinstance(term, TapMix):
            t = term.slot.n_taps
            rows = x.reshape(x.shape[0], -1, t) @ term.mix.to(x.dtype).transpose(1, 2)
            total = total + F.linear(rows.reshape(x.shape), weight.base)
        elif isinstance(term, BasisMix):
            outputs = torch.stack([F.linear(x, w) for w in term.bank], -1)
            total = total + (outputs * gain(term.mix).unsqueeze(-2)).sum(-1)
    return total


HANDLERS: dict[Any, Callable[..., Tensor]] = {F.linear: linear}

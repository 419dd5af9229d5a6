"""`F.linear` with one weight per sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..terms import BasisMix, LowRankUpdate, RowScale, TapMix, Term, WeightExpression
from .batch import Batch
from .inplace import unviewed
from .kept import instead, made_again
from .making import embedding, make
from .norm import Operand, values
from .planner import choose
from .rule import Layer, Plan
from .runs import pieces

__all__ = ["HANDLERS", "linear"]


def linear(batch: Batch, where: str, input: Tensor, weight: Tensor | WeightExpression, bias: Operand = None) -> Tensor:
    """$y_b = x_b W_b^T + b_b$: x `(B, …, I)` -> `(B, …, O)`."""
    batch.check(input, where)
    if not isinstance(weight, WeightExpression) or not weight.batch:
        y = F.linear(input, make(weight) if isinstance(weight, WeightExpression) else weight)
    else:
        y = choose(batch, where, input, weight, layer_of(input, weight), run, F.linear)
    if bias is None:
        return y
    shift = values(batch, bias).to(y.dtype)
    if shift.dim() == 2:
        shift = shift.reshape(shift.shape[0], *(1,) * (y.dim() - 2), shift.shape[1])
    return y + shift


def layer_of(x: Tensor, weight: WeightExpression) -> Layer:
    """What the rule looks at."""
    _, o, i, t = weight.slot.canonical_shape
    tracing = torch.compiler.is_compiling()
    training = torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad)
    return Layer(
        x.shape[1:-1].numel(), 1, o, i, t, t, "linear", batch=None if tracing else x.shape[0], training=training,
        tracing=tracing,
    )  # fmt: skip


def run(x: Tensor, weight: WeightExpression, plan: Plan) -> Tensor:
    """One route."""
    if plan.route == "factored":
        return _factored(x, weight)
    aside = [t for t in weight.terms if isinstance(t, LowRankUpdate) and plan.low_rank == "activations"]
    terms = [t for t in weight.terms if t not in aside]
    y = _product(x, make(weight, terms)) if torch.compiler.is_compiling() else _products(x, weight, terms)
    for term in aside:
        y = y + _low_rank(x, term, y)
    return y


def _products(x: Tensor, weight: WeightExpression, terms: Sequence[Term]) -> Tensor:
    """With the frozen weight and these terms, made for a few samples at a time."""
    numbers, parts = weight.base.numel(), []
    large = made_again(x.shape[0] * numbers, x.element_size())
    for part, own in pieces(x, terms, numbers * x.element_size()):
        again = partial(make, weight, own)
        made = again()
        with instead((made, again), when=large):
            parts.append(_product(part, made))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _product(x: Tensor, dense: Tensor) -> Tensor:
    if dense.dim() == 2:
        return F.linear(x, dense)
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    y = torch.bmm(rows, dense.to(x.dtype).transpose(1, 2))
    return unviewed(y, (*x.shape[:-1], dense.shape[1]))


def _gain(value: Tensor, y: Tensor) -> Tensor:
    """Per-sample numbers in the shape in which they multiply `y`'s last axis."""
    return value.to(y.dtype).reshape(value.shape[0], *(1,) * (y.dim() - 2), value.shape[-1])


def _low_rank(x: Tensor, term: LowRankUpdate, y: Tensor) -> Tensor:
    return F.linear(F.linear(x, term.right[0]) * _gain(term.gain, y), term.left[0])


def _factored(x: Tensor, weight: WeightExpression) -> Tensor:
    """x(W + s⊙W + W D + U g V)ᵀ = s ⊙ xWᵀ + (x (1 + D)ᵀ) Wᵀ + ((xVᵀ) ⊙ g) Uᵀ."""
    mixes = [t for t in weight.terms if isinstance(t, TapMix)]
    scales = [t for t in weight.terms if isinstance(t, RowScale)]
    y: Tensor | None = None
    if scales or not mixes:
        y = F.linear(x, weight.base)
        gain = sum((t.gain for t in scales[1:]), scales[0].gain) if scales else None
        if gain is not None:  # where the taps are mixed, the frozen weight itself comes with them
            y = y * _gain(gain if mixes else 1 + gain, y)
    if mixes:
        mix = embedding(weight.slot, (), mixes[0].mix) + sum((t.mix for t in mixes[1:]), mixes[0].mix)
        rows = torch.bmm(x.reshape(x.shape[0], -1, mix.shape[-1]), mix.to(x.dtype).transpose(1, 2))
        mixed = F.linear(rows.reshape(x.shape), weight.base)
        y = mixed if y is None else y + mixed
    assert y is not None
    for term in weight.terms:
        if isinstance(term, LowRankUpdate):
            y = y + _low_rank(x, term, y)
        elif isinstance(term, BasisMix):
            outputs = torch.stack([F.linear(x, w) for w in term.bank], -1)
            y = y + (outputs * _gain(term.mix, y).unsqueeze(-2)).sum(-1)
    return y


HANDLERS: dict[Any, Callable[..., Tensor]] = {F.linear: linear}

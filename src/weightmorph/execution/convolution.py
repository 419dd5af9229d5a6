"""Convolutions, plain and transposed, in one to three dimensions, with one weight per sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..layers.convolution import PLAIN, TRANSPOSED, Convolution, Size, each
from ..slots import Grow
from ..terms import BasisMix, LowRankUpdate, RowScale, TapMix, WeightExpression, beyond, widen
from .batch import Batch, per_channel
from .dense import dense
from .inplace import unviewed
from .making import embedding, make
from .norm import Operand, values
from .patches import Geometry, mixed_convolution, sliced
from .planner import choose
from .precision import full_precision, layer_dtype
from .rule import Layer, Plan

__all__ = ["HANDLERS"]

FEW_COLUMNS = 16
"""With fewer positions a product per sample is slower than a narrow convolution."""


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
    pads = padding if isinstance(padding, str) else each(padding, dims)
    make = Convolution if torch.compiler.is_compiling() else _remembered_call
    call = make(PLAIN[dims], dims, each(stride, dims), pads, each(dilation, dims), groups)
    return _run(call, batch, where, input, weight, bias)


_remembered_call = lru_cache(maxsize=4096)(Convolution)


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
    call = Convolution(
        TRANSPOSED[dims], dims, each(stride, dims), each(padding, dims), each(dilation, dims), groups,
        each(output_padding, dims),
    )  # fmt: skip
    return _run(call, batch, where, input, weight, bias)


def _run(
    call: Convolution, batch: Batch, where: str, x: Tensor, weight: Tensor | WeightExpression, bias: Operand
) -> Tensor:
    batch.check(x, where, call.dims + 2)
    if not isinstance(weight, WeightExpression):
        y = call(x, weight)
    elif not weight.batch:
        y = call(x, make(weight), grow=weight.grow)
    else:
        layer = layer_of(call, x, weight)
        y = choose(batch, where, x, weight, layer, partial(run, call), partial(call, grow=weight.grow))
    if bias is None:
        return y
    shift = values(batch, bias)
    return y.add_(per_channel(shift if shift.dim() == 2 else shift.unsqueeze(0), y))  # ours: no route keeps its output


def layer_of(call: Convolution, x: Tensor, weight: WeightExpression) -> Layer:
    """What the rule looks at."""
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    make = _layer if torch.compiler.is_compiling() else _remembered_layer
    return make(call, tuple(x.shape), tuple(weight.base.shape), weight.grow, training)


def _layer(call: Convolution, shape: Sequence[int], weight: Sequence[int], grow: Grow, training: bool) -> Layer:
    first, second, *kernel = weight
    g = call.groups
    outputs, inputs = (second, first // g) if call.transposed else (first // g, second)
    wide = [k + sum(more) for k, more in zip(kernel, grow, strict=True)] if grow else kernel
    tracing = torch.compiler.is_compiling()
    # The work of a transposed convolution is at its input's positions.
    extents = shape[2:] if call.transposed else call.extents(shape[2:], kernel)
    return Layer(
        math.prod(extents), g, outputs, inputs, math.prod(kernel), math.prod(wide),
        "conv_transpose" if call.transposed else "conv", extents[-1], None if tracing else shape[0], training, tracing,
        call.tiles(kernel),
    )  # fmt: skip


_remembered_layer = lru_cache(maxsize=4096)(_layer)


def run(call: Convolution, x: Tensor, weight: WeightExpression, plan: Plan) -> Tensor:
    """One route."""
    if plan.route == "factored":
        return _factored(call, x, weight)
    aside = [t for t in weight.terms if isinstance(t, LowRankUpdate) and plan.low_rank == "activations"]
    terms = [t for t in weight.terms if t not in aside]
    y = dense(call, x, weight, terms, plan.route)
    for term in aside:
        y = _add_low_rank(y, call, x, term)
    return y


def _factored(call: Convolution, x: Tensor, weight: WeightExpression) -> Tensor:
    """The frozen convolution, and each term's work on the activations.

    conv(x, W + s⊙W + U g V + W D) = s ⊙ conv(x, W) + U (g ⊙ conv(x, V)) + W ((1 + D) conv x)
    """
    mixes = [t for t in weight.terms if isinstance(t, TapMix)]
    rows = [t for t in weight.terms if isinstance(t, RowScale)]
    y: Tensor | None = None
    if rows or not mixes:
        y = call(x, weight.base)  # zeros around it would change nothing
        gain = sum((t.gain for t in rows[1:]), rows[0].gain) if rows else None
        if gain is not None:  # where the taps are mixed, the frozen weight itself comes with them
            y = y * per_channel(gain if mixes else 1 + gain, y)
    low = [t for t in weight.terms if isinstance(t, LowRankUpdate)]
    if mixes:
        mixed, low = _tap_mix(call, x, weight, mixes, low)
        y = mixed if y is None else y + mixed
    assert y is not None
    for term in low:
        y = _add_low_rank(y, call, x, term)
    for basis in (t for t in weight.terms if isinstance(t, BasisMix)):
        y = y + _basis(call, x, basis)
    return y


def _tap_mix(
    call: Convolution, x: Tensor, weight: WeightExpression, mixes: Sequence[TapMix], low: list[LowRankUpdate]
) -> tuple[Tensor, list[LowRankUpdate]]:
    """Patches mixed per sample, times the frozen weight; and the low-rank terms that are still to be done."""
    slot, grow = weight.slot, weight.grow
    g, o, i, t = slot.canonical_shape
    mix = embedding(slot, grow, mixes[0].mix)
    for term in mixes:
        mix = mix + _on(term, grow)
    geometry = Geometry.of(call, x, slot.kernel, grow)
    if torch.compiler.is_compiling():
        seen = sliced(x, geometry)
        made = (mix.to(x.dtype).unsqueeze(1) @ seen.flatten(3)).reshape(x.shape[0], -1, *seen.shape[3:])
        kernel = slot.canonical(weight.base).reshape(g * o, i * t, *(1,) * call.dims)
        return PLAIN[call.dims](made, kernel.to(made.dtype)), low
    dtype = layer_dtype(x)
    flat = weight.base.reshape(o, i * t).to(dtype)
    update = None
    if low:
        left = torch.cat([term.left[0] * term.gain.unsqueeze(-2) for term in low], -1)
        right = widen(torch.cat([term.right[0] for term in low]).unflatten(-1, (i, *slot.kernel)), grow)
        right = right.flatten(2).transpose(1, 2).flatten(1)
        update, low = (left.to(dtype), right.to(dtype)), []
    with full_precision(x.device):
        return mixed_convolution(x.to(dtype), flat, mix.to(dtype), update, geometry), low


def _on(term: TapMix, grow: Grow) -> Tensor:
    """A mixing on a wider support than its own."""
    if term.grow == grow:
        return term.mix
    wide = term.mix.reshape(*term.mix.shape[:-1], *term.slot.grown(term.grow))
    return widen(wide, beyond(grow, term.grow)).flatten(term.mix.dim() - 1)


def _add_low_rank(y: Tensor, call: Convolution, x: Tensor, term: LowRankUpdate) -> Tensor:
    """`y` plus a narrow convolution to r channels per group, times a small matrix per sample. Writes into `y`."""
    (g, o, r), size, positions = term.left.shape, y.shape[0], math.prod(y.shape[2:])
    left = (term.left.unsqueeze(0) * term.gain[:, None, None, :]).to(y.dtype).reshape(-1, o, r)
    inner = _narrow(call, x, term, positions).to(y.dtype).reshape(size * g, r, positions)
    if not y.is_contiguous():
        return y + torch.bmm(left, inner).reshape(y.shape)
    return unviewed(unviewed(y, (size * g, o, positions)).baddbmm_(left, inner), y.shape)


def _narrow(call: Convolution, x: Tensor, term: LowRankUpdate, positions: int) -> Tensor:
    """The convolution to r channels per group: `(B, G·r, …)` or `(B·G, r, P)`."""
    slot, (g, r, _) = term.slot, term.right.shape
    eager = not torch.compiler.is_compiling() and not call.transposed
    if eager and slot.n_taps == 1 and positions >= FEW_COLUMNS and Geometry.of(call, x, slot.kernel).plain:
        # A convolution to eight channels reads its input no faster than one to thirty.
        rows = x.reshape(x.shape[0] * g, -1, positions)
        right = term.right.to(x.dtype).repeat(x.shape[0], 1, 1) if g > 1 else term.right.expand(x.shape[0], -1, -1)
        return torch.bmm(right.to(x.dtype), rows)
    return call(x, slot.restore(term.right.reshape(g, r, *slot.canonical_shape[2:])))


def _basis(call: Convolution, x: Tensor, term: BasisMix) -> Tensor:
    """Each weight set's output, mixed."""
    mix = term.mix.to(x.dtype)
    total: Tensor | None = None
    for d, weight in enumerate(term.bank):
        y = call(x, weight)
        y = y * mix[:, d].reshape(-1, *(1,) * (y.dim() - 1))
        total = y if total is None else total + y
    assert total is not None
    return total


HANDLERS: dict[Any, Callable[..., Tensor]] = {
    **{function: partial(convolution, n) for n, function in PLAIN.items()},
    **{function: partial(transposed, n) for n, function in TRANSPOSED.items()},
}

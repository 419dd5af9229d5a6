"""Convolutions, plain and transposed, in one to three dimensions, with one weight per sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import BasisMix, LowRankUpdate, RowScale, TapMix, Term, WeightExpression, widen
from .batch import Batch, per_channel
from .norm import Operand, channels
from .rule import Dense, Layer, plan, split

__all__ = ["HANDLERS", "widen_padding"]

Size = int | Sequence[int]


@dataclass(frozen=True)
class Convolution:
    """One call's geometry: everything but the input and the weight."""

    function: Callable[..., Tensor]
    dims: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...] = ()

    @property
    def transposed(self) -> bool:
        """Is it a transposed convolution?"""
        return bool(self.output_padding)

    def __call__(self, x: Tensor, weight: Tensor, *, groups: int | None = None, grow: Sequence[int] = ()) -> Tensor:
        """The convolution itself, its padding widened by `grow` taps."""
        padding = self.padding
        if any(grow) and not isinstance(padding, str):
            padding = tuple(p + n * d for p, n, d in zip(padding, grow, self.dilation, strict=True))
        elif any(grow) and padding == "valid":
            padding = tuple(n * d for n, d in zip(grow, self.dilation, strict=True))
        weight = weight.to(x.dtype) if not torch.is_autocast_enabled(x.device.type) else weight
        groups = self.groups if groups is None else groups
        if self.transposed:
            # Positional order differs: output_padding comes before groups, dilation last.
            return self.function(x, weight, None, self.stride, padding, self.output_padding, groups, self.dilation)
        return self.function(x, weight, None, self.stride, padding, self.dilation, groups)

    def pointwise(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """A 1x1 convolution in as many dimensions: weight `(O, I)`."""
        kernel = weight.reshape(*weight.shape, *(1,) * self.dims)
        kernel = kernel.to(x.dtype) if not torch.is_autocast_enabled(x.device.type) else kernel
        return PLAIN[self.dims](x, kernel, groups=groups)


def _tuple(value: Size, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)


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
    pads = padding if isinstance(padding, str) else _tuple(padding, dims)
    call = Convolution(PLAIN[dims], dims, _tuple(stride, dims), pads, _tuple(dilation, dims), groups)
    return _run(call, batch, where, input, weight, bias)


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
        TRANSPOSED[dims], dims, _tuple(stride, dims), _tuple(padding, dims), _tuple(dilation, dims), groups,
        _tuple(output_padding, dims),
    )  # fmt: skip
    return _run(call, batch, where, input, weight, bias)


def _run(
    call: Convolution, batch: Batch, where: str, x: Tensor, weight: Tensor | WeightExpression, bias: Operand
) -> Tensor:
    batch.check(x, where, call.dims + 2)
    if not isinstance(weight, WeightExpression):
        y = call(x, weight)
    elif not weight.batch:
        y = call(x, weight.dense(), grow=weight.grow)
    elif batch.rows:
        dense = weight.dense()
        parts = [call(x.index_select(0, rows), w, grow=weight.grow) for rows, w in zip(batch.rows, dense, strict=True)]
        y = batch.restore(parts)
    else:
        y = _routed(call, batch, where, x, weight)
    return channels(batch, y, None, bias)


def _extents(call: Convolution, x: Tensor, kernel: Sequence[int]) -> list[int]:
    out = []
    for a, (n, k, s, d) in enumerate(zip(x.shape[2:], kernel, call.stride, call.dilation, strict=True)):
        span = d * (k - 1)
        pad = {"same": span, "valid": 0}[call.padding] if isinstance(call.padding, str) else 2 * call.padding[a]
        out.append((n + pad - span - 1) // s + 1)
    return out


def _routed(call: Convolution, batch: Batch, where: str, x: Tensor, weight: WeightExpression) -> Tensor:
    chosen = plan(weight, _layer(call, x, weight))
    moved, left = split(batch, where, weight, chosen, call.transposed)
    if not moved:
        return _dense(call, x, weight.dense(), weight.grow, chosen.dense)
    y = _factored(call, x, weight, moved)
    return y + _dense(call, x, weight.total(None, left), weight.grow, chosen.dense) if left else y


def _layer(call: Convolution, x: Tensor, weight: WeightExpression) -> Layer:
    """What the rule looks at."""
    first, second = weight.base.shape[:2]
    g = call.groups
    outputs, inputs = (second, first // g) if call.transposed else (first // g, second)
    kernel = weight.base.shape[2:]
    grown = math.prod([k + 2 * n for k, n in zip(kernel, weight.grow, strict=True)]) if any(weight.grow) else 0
    # The work of a transposed convolution is at its input's positions.
    positions = math.prod(x.shape[2:] if call.transposed else _extents(call, x, kernel))
    return Layer(
        positions, g, outputs, inputs, math.prod(kernel), grown or math.prod(kernel), call.transposed,
        torch.compiler.is_exporting(),
    )  # fmt: skip


def _dense(call: Convolution, x: Tensor, dense: Tensor, grow: Sequence[int], route: Dense) -> Tensor:
    """One dense weight per sample `(B, *S)`: a product over patches, or a grouped convolution."""
    if route == "product":
        return _product(*_spread(call, x, dense), ()) if call.transposed else _product(call, x, dense, grow)
    # The samples become groups: (B·C) input channels, each sample's weight on its own.
    size = x.shape[0]
    merged = x.reshape(1, size * x.shape[1], *x.shape[2:])
    y = call(merged, dense.reshape(-1, *dense.shape[2:]), groups=size * call.groups, grow=grow)
    return y.reshape(size, -1, *y.shape[2:])


def _product(call: Convolution, x: Tensor, dense: Tensor, grow: Sequence[int]) -> Tensor:
    """Patches `(B, G, I·T, P)` times weights `(B, G, O, I·T)`."""
    size, g = x.shape[0], call.groups
    patches = _patches(call, x, dense.shape[3:], grow)
    where = patches.shape[3:]
    columns = patches.reshape(size, g, -1, math.prod(where))
    rows = dense.to(x.dtype).reshape(size, g, dense.shape[1] // g, -1)
    return (rows @ columns).reshape(size, dense.shape[1], *where)


def _spread(call: Convolution, x: Tensor, dense: Tensor) -> tuple[Convolution, Tensor, Tensor]:
    """A transposed convolution as a plain one: zeros between the pixels, the kernel reversed, its I and O exchanged."""
    for axis, s in enumerate(call.stride, 2):
        between = torch.stack((x, *[torch.zeros_like(x)] * (s - 1)), axis + 1).flatten(axis, axis + 1)
        x = between.narrow(axis, 0, (x.shape[axis] - 1) * s + 1)
    pads: list[int] = []
    for k, p, more, d in zip(dense.shape[3:], call.padding, call.output_padding, call.dilation, strict=True):
        assert isinstance(p, int)
        edge = d * (k - 1) - p
        pads = [edge, edge + more, *pads]
    size, g, kernel = x.shape[0], call.groups, dense.shape[3:]
    split = dense.reshape(size, g, -1, dense.shape[2], *kernel).transpose(2, 3).flip(tuple(range(4, 4 + call.dims)))
    plain = Convolution(PLAIN[call.dims], call.dims, (1,) * call.dims, (0,) * call.dims, call.dilation, g)
    return plain, F.pad(x, pads), split.reshape(size, -1, *split.shape[3:])


def _patches(call: Convolution, x: Tensor, kernel: Sequence[int], grow: Sequence[int]) -> Tensor:
    """What each tap sees: x `(B, C, …)` -> `(B, C, T, …)`, by slicing, in any dimension."""
    grow = grow or (0,) * call.dims
    before, after = [], []
    for a, (k, d, n) in enumerate(zip(kernel, call.dilation, grow, strict=True)):
        if isinstance(call.padding, str):
            total = d * (k - 1) if call.padding == "same" else 2 * n * d
            before.append(total // 2)
            after.append(total - total // 2)
        else:
            before.append(call.padding[a] + n * d)
            after.append(call.padding[a] + n * d)
    x = F.pad(x, [p for a in reversed(range(call.dims)) for p in (before[a], after[a])])
    extents = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, call.stride, call.dilation, strict=True)
    ]
    # Axis by axis, which makes fewer pieces than tap by tap: (B, C, k0, P0, n1) -> (B, C, k0, k1, P0, P1).
    for a, (k, s, d, m) in enumerate(zip(kernel, call.stride, call.dilation, extents, strict=True)):
        lead = [slice(None)] * (2 + 2 * a)
        taps = [slice(j * d, j * d + (m - 1) * s + 1, s) for j in range(k)]
        x = torch.stack([x[tuple([*lead, tap])] for tap in taps], 2 + a)
    return x.flatten(2, 1 + call.dims)


def _factored(call: Convolution, x: Tensor, weight: WeightExpression, terms: Sequence[Term]) -> Tensor:
    """The frozen convolution, and each term's work on the activations.

    conv(x, W + s⊙W + U g V + W D) = (1 + s) ⊙ conv(x, W) + U (g ⊙ conv(x, V)) + W (D conv x)
    """
    y = call(x, widen(weight.base, weight.grow) if any(weight.grow) else weight.base, grow=weight.grow)
    total = y
    for term in terms:
        if isinstance(term, RowScale):
            total = total + y * per_channel(term.gain, y)
        elif isinstance(term, LowRankUpdate):
            total = total + _low_rank(call, x, term)
        elif isinstance(term, TapMix):
            total = total + _tap_mix(call, x, term)
        elif isinstance(term, BasisMix):
            total = total + _basis(call, x, term)
    return total


def _low_rank(call: Convolution, x: Tensor, term: LowRankUpdate) -> Tensor:
    """A narrow convolution to r channels per group, the gains, and a 1x1 convolution back."""
    slot, (g, o, r) = term.slot, term.left.shape
    right = slot.restore(term.right.reshape(g, r, *slot.canonical_shape[2:]))
    narrow = call(x, right)
    gained = narrow * per_channel(term.gain.repeat(1, g), narrow)
    return call.pointwise(gained, term.left.reshape(g * o, r), g)


def _tap_mix(call: Convolution, x: Tensor, term: TapMix) -> Tensor:
    """Each sample's mixing as a depthwise convolution to T maps per channel, then the frozen weight as a 1x1."""
    slot, size = term.slot, x.shape[0]
    g, o, i, t = slot.canonical_shape
    kernel = slot.grown(term.grow)
    if torch.compiler.is_exporting():
        patches = _patches(call, x, kernel, term.grow)
        mixed = term.mix.to(x.dtype).unsqueeze(1) @ patches.flatten(3)
        mixed = mixed.reshape(size, -1, *patches.shape[3:])
    else:
        # Channels become the batch and samples the groups: the kernel depends on the sample and not on the channel.
        maps = call(x.transpose(0, 1), term.mix.reshape(size * t, 1, *kernel), groups=size, grow=term.grow)
        mixed = maps.reshape(x.shape[1], size, t, *maps.shape[2:]).transpose(0, 1)
        mixed = mixed.reshape(size, -1, *maps.shape[2:])
    return call.pointwise(mixed, slot.canonical(term.weight).reshape(g * o, i * t), g)


def _basis(call: Convolution, x: Tensor, term: BasisMix) -> Tensor:
    """Each weight set's output, mixed."""
    mix = term.mix.to(x.dtype)
    total = None
    for d, weight in enumerate(term.bank):
        y = call(x, weight)
        y = y * mix[:, d].reshape(-1, *(1,) * (y.dim() - 1))
        total = y if total is None else total + y
    assert total is not None
    return total


PLAIN: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

HANDLERS: dict[Any, Callable[..., Tensor]] = {
    **{function: partial(convolution, n) for n, function in PLAIN.items()},
    **{function: partial(transposed, n) for n, function in TRANSPOSED.items()},
}


def widen_padding(
    args: tuple[Any, ...], kwargs: dict[str, Any], kernel: Sequence[int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a plain convolution whose weight is wider than `kernel`, with the padding that keeps its place."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    n = len(kernel)
    grow = [(wide - k) // 2 for wide, k in zip(given["weight"].shape[2:], kernel, strict=True)]
    padding, dilation = given.get("padding", 0), _tuple(given.get("dilation", 1), n)
    if any(grow) and padding != "same":
        own = (0,) * n if padding == "valid" else _tuple(padding, n)
        given["padding"] = tuple(p + m * d for p, m, d in zip(own, grow, dilation, strict=True))
    return (), given

"""Convolutions with one dense weight per sample: as groups, as a batched product, as tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.convolution import Convolution
from ..slots import Grow
from ..terms import Term, WeightExpression
from .inplace import unviewed
from .kept import instead, made_again
from .making import make
from .patches import Geometry, planes, sliced
from .precision import layer_dtype
from .rule import Route
from .runs import pieces

__all__ = ["dense"]

BLOCK = 16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8
"""Numbers in a vector unit."""


def dense(call: Convolution, x: Tensor, weight: WeightExpression, terms: Sequence[Term], route: Route) -> Tensor:
    """The convolution with the frozen weight and these terms, made for a few samples at a time."""
    if torch.compiler.is_compiling():
        return _traced_product(call, x, make(weight, terms), weight.grow)
    if route == "product" and not call.transposed:
        return _product(call, x, weight, terms)
    numbers = math.prod(weight.base.shape[:2]) * math.prod(weight.slot.grown(weight.grow))
    large = made_again(x.shape[0] * numbers, x.element_size())
    apply = _grouped if route == "grouped" else _tiled if call.tiles(weight.slot.kernel) else _traced_product
    idle = _idle(call, weight, terms) if route == "grouped" else 0
    parts = []
    for part, own in pieces(x, terms, numbers * x.element_size()):
        again = partial(_widened, weight, own, idle)
        made = again()
        with instead((made, again), when=large):
            parts.append(apply(call, part, made, weight.grow))
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y[:, :-idle].contiguous() if idle else y


def _widened(weight: WeightExpression, terms: Sequence[Term], idle: int) -> Tensor:
    """The weights of a few samples `(b, O, I, …)`, and so many outputs of zeros."""
    made = make(weight, terms)
    return F.pad(made, (0, 0) * (len(weight.slot.kernel) + 1) + (0, idle)) if idle else made


def _idle(call: Convolution, weight: WeightExpression, terms: Sequence[Term]) -> int:
    """Outputs of zeros to add to each sample's for all of them to fill whole vector units.

    A grouped convolution with 12 outputs a group takes twice as long as one with 16, its backward four times. Eight
    alone have kernels of their own, but for the backward in three dimensions.
    """
    outputs, inputs = weight.base.shape[:2]
    grouped = call.groups == 1 and not call.transposed and any(t.batch for t in terms)
    if weight.base.device.type != "cpu" or not grouped or inputs < 8:
        return 0
    training = weight.requires_grad and torch.is_grad_enabled()
    if outputs == 8 and not (call.dims == 3 and inputs > 8 and training):
        return 0
    return -outputs % BLOCK


def _grouped(call: Convolution, x: Tensor, weight: Tensor, grow: Grow) -> Tensor:
    """The samples become groups: (B·C) input channels, each sample's weight on its own."""
    size = x.shape[0]
    if weight.dim() == call.dims + 2:  # no term of it depends on the sample
        return call(x, weight, grow=grow)
    merged = x.reshape(1, size * x.shape[1], *x.shape[2:])
    y = call(merged, weight.reshape(-1, *weight.shape[2:]), groups=size * call.groups, grow=grow)
    return unviewed(y, (size, y.shape[1] // size, *y.shape[2:]))


def _product(call: Convolution, x: Tensor, weight: WeightExpression, terms: Sequence[Term]) -> Tensor:
    """Patches times weights, a few samples at a time: `(b·G, O, I·T)` and `(b·G, I·T, P)`."""
    dtype, g = layer_dtype(x), call.groups
    x = x.to(dtype)
    size, outputs = x.shape[0], weight.base.shape[0]
    geometry = Geometry.of(call, x, weight.slot.kernel, weight.grow)
    taps, p = math.prod(geometry.kernel), geometry.positions
    plain = geometry.plain
    numbers = outputs * weight.base.shape[1] * taps + (0 if plain else x.shape[1] * taps * p)
    grad = torch.is_grad_enabled()
    parts, y = [], None if grad else x.new_empty(size * g, outputs // g, p)
    done = 0
    for part, own in pieces(x, terms, numbers * x.element_size()):
        b = part.shape[0]
        made = make(weight, own).to(dtype)
        rows = made.expand(b, *made.shape[-call.dims - 2 :]).reshape(b * g, outputs // g, -1)
        patches = partial(_seen, part, geometry, (b * g, rows.shape[2], p))
        seen = patches()
        if y is None:
            again = [(made, partial(make, weight, own))] if made.dtype == weight.base.dtype else []
            again += [] if plain else [(seen, patches)]
            with instead(*again, when=made_again(size * numbers, x.element_size())):
                parts.append(torch.bmm(rows, seen))
        else:
            torch.bmm(rows, seen, out=y[done : done + b * g])
        done += b * g
    total = y if y is not None else parts[0] if len(parts) == 1 else torch.cat(parts)
    return unviewed(total, (size, outputs, *geometry.extents))


def _seen(x: Tensor, geometry: Geometry, shape: tuple[int, int, int]) -> Tensor:
    """Patches `(b·G, I·T, P)`, or the input itself where they are that."""
    return (x if geometry.plain else planes(x, geometry)).reshape(shape)


def _tiled(call: Convolution, x: Tensor, weight: Tensor, grow: Grow) -> Tensor:
    """A transposed convolution whose outputs do not overlap: each pixel times a weight is a tile, all laid together."""
    size, g, (inputs, outputs, *kernel), extents = x.shape[0], call.groups, weight.shape[-call.dims - 2 :], x.shape[2:]
    rows = weight.to(x.dtype).expand(size, *weight.shape[-call.dims - 2 :]).reshape(size * g, inputs // g, -1)
    pixels = x.reshape(size * g, inputs // g, -1).transpose(1, 2)
    tiles = torch.bmm(pixels, rows).reshape(-1, *extents, outputs, *kernel)
    # (B·G, P0, P1, O, k0, k1) -> (B·G, O, P0, k0, P1, k1), and two numbers that stay side by side move as one.
    pair = kernel[-1] == 2 and tiles.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    n = call.dims
    order = [axis for a in range(n) for axis in (1 + a, 2 + n + a)]
    if pair:
        laid = torch.view_as_real(torch.view_as_complex(tiles).permute(0, 1 + n, *order[:-1]).contiguous())
    else:
        laid = tiles.permute(0, 1 + n, *order).contiguous()
    return unviewed(laid, (size, g * outputs, *(m * k for m, k in zip(extents, kernel, strict=True))))


def _traced_product(call: Convolution, x: Tensor, weight: Tensor, grow: Grow) -> Tensor:
    """The same in operations that a graph with a symbolic batch can hold."""
    if call.transposed:
        return _traced_product(*call.spread(x, weight), ())
    size, g = x.shape[0], call.groups
    own = [k - sum(more) for k, more in zip(weight.shape[3:], grow or ((0, 0),) * call.dims, strict=True)]
    geometry = Geometry.of(call, x, own, grow)
    seen = sliced(x, geometry).reshape(size, g, -1, geometry.positions)
    rows = weight.to(x.dtype).reshape(size, g, weight.shape[1] // g, -1)
    return (rows @ seen).reshape(size, weight.shape[1], *geometry.extents)

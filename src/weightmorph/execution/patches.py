r"""A convolution whose kernels are mixed per sample, as a product over patches: nothing per sample is ever a weight.

$$y_b = W\,(M_b X_b) + A_b\,(V X_b)$$

$X_b$ `(P, T', C)` is what each tap sees of the input, $M_b$ `(T, T')` mixes taps, $W$ `(O, C·T)` is shared by all
samples, and $A_b V$ is a low-rank update. Patches hold T' times the input, so they are made for a few samples at a
time, small enough to stay in a cache, and made again in the backward rather than kept. Pixels come first in them and
channels last: they are copied in long stretches, and one small product per pixel mixes the taps and turns the two
about, so that it gives a row for W as W lies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.convolution import Convolution
from ..slots import Grow
from .inplace import unviewed
from .runs import slices

__all__ = ["Geometry", "mixed_convolution", "planes", "sliced"]


@dataclass(frozen=True)
class Geometry:
    """Where the patches of one call are taken: the (grown) kernel, zeros around the input, strides, output size."""

    kernel: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    extents: tuple[int, ...]

    @classmethod
    def of(cls, call: Convolution, x: Tensor, kernel: Sequence[int], grow: Grow = ()) -> Geometry:
        """That of a call with a kernel of its own extent `kernel`, grown by `grow`."""
        make = _geometry if torch.compiler.is_compiling() else _remembered_geometry
        return make(call, tuple(x.shape[2:]), tuple(kernel), grow)

    @property
    def flat_pads(self) -> list[int]:
        """As `F.pad` wants them."""
        return [p for pair in reversed(self.pads) for p in pair]

    @property
    def plain(self) -> bool:
        """One tap that sees every pixel: the patches are the input itself."""
        return math.prod(self.kernel) == 1 and set(self.stride) == {1} and not any(map(any, self.pads))

    @property
    def positions(self) -> int:
        """P."""
        return math.prod(self.extents)


def _geometry(call: Convolution, size: Sequence[int], kernel: Sequence[int], grow: Grow) -> Geometry:
    wide = [k + sum(more) for k, more in zip(kernel, grow or ((0, 0),) * call.dims, strict=True)]
    pads = call.pads(kernel, grow)
    extents = [
        (n + sum(pad) - d * (k - 1) - 1) // s + 1
        for n, pad, k, d, s in zip(size, pads, wide, call.dilation, call.stride, strict=True)
    ]
    return Geometry(tuple(wide), tuple(pads), call.stride, call.dilation, tuple(extents))


_remembered_geometry = lru_cache(maxsize=4096)(_geometry)


def laid(x: Tensor, g: Geometry) -> Tensor:
    """The input with its zeros around it, channels last: x `(B, C, …)` -> `(B, …, C)`."""
    n, size = len(g.kernel), x.shape[2:]
    last = x.permute(0, *range(2, n + 2), 1)
    if not any(map(any, g.pads)):
        return last.contiguous()
    wide = x.new_zeros(x.shape[0], *(m + sum(pad) for m, pad in zip(size, g.pads, strict=True)), x.shape[1])
    _inside(wide, g, size).copy_(last)
    return wide


def _inside(wide: Tensor, g: Geometry, size: Sequence[int]) -> Tensor:
    """Without the zeros around it."""
    for axis, ((before, _), m) in enumerate(zip(g.pads, size, strict=True), 1):
        wide = wide.narrow(axis, before, m)
    return wide


def _strides(last: Tensor, g: Geometry) -> tuple[list[int], list[int]]:
    """How far apart the positions of a tap lie in an input as `laid`, and the taps of a position."""
    steps = last.stride()[1:-1]
    moves = [k * s for k, s in zip(g.stride, steps, strict=True)]
    return moves, [d * s for d, s in zip(g.dilation, steps, strict=True)]


def columns(last: Tensor, g: Geometry, out: Tensor | None = None) -> Tensor:
    """What each tap sees at each position, of an input as `laid`: `(b, …, C)` -> `(b·P, T', C)`."""
    (batch, *_, channel), (moves, taps) = last.stride(), _strides(last, g)
    shape, strides = (last.shape[0], *g.extents, *g.kernel, last.shape[-1]), (batch, *moves, *taps, channel)
    view = last.as_strided(shape, strides, last.storage_offset())
    if out is None:
        return view.reshape(-1, math.prod(g.kernel), last.shape[-1])
    out.view(shape).copy_(view)
    return out


def planes(x: Tensor, g: Geometry) -> Tensor:
    """What each tap sees, channels first, as a dense weight reads it: x `(b, C, …)` -> `(b, C, T', P)`."""
    x = F.pad(x, g.flat_pads) if any(map(any, g.pads)) else x
    batch, channel, *steps = x.stride()
    taps = [d * s for d, s in zip(g.dilation, steps, strict=True)]
    moves = [k * s for k, s in zip(g.stride, steps, strict=True)]
    view = x.as_strided((x.shape[0], x.shape[1], *g.kernel, *g.extents), (batch, channel, *taps, *moves))
    return view.reshape(x.shape[0], x.shape[1], math.prod(g.kernel), g.positions)


def folded(grad: Tensor, g: Geometry, size: Sequence[int]) -> Tensor:
    """The transpose of `columns` after `laid`: `(b·P, T', C)` -> `(b, C, …)`, added up where a pixel was read."""
    c, n = grad.shape[-1], len(g.kernel)
    rows = grad.reshape(-1, *g.extents, math.prod(g.kernel), c)
    total = grad.new_zeros(rows.shape[0], *(m + sum(pad) for m, pad in zip(size, g.pads, strict=True)), c)
    (batch, *_, channel), (moves, taps) = total.stride(), _strides(total, g)
    shape, strides = (rows.shape[0], *g.extents, c), (batch, *moves, channel)
    for i, tap in enumerate(itertools.product(*map(range, g.kernel))):
        where = sum(j * s for j, s in zip(tap, taps, strict=True))
        total.as_strided(shape, strides, where).add_(rows.select(-2, i))
    return _inside(total, g, size).permute(0, n + 1, *range(1, n + 1))


def sliced(x: Tensor, g: Geometry) -> Tensor:
    """What each tap sees, by slicing, for a traced graph: x `(B, C, …)` -> `(B, C, T', …)`."""
    x = F.pad(x, g.flat_pads)
    # Axis by axis, which makes fewer pieces than tap by tap: (B, C, k0, P0, n1) -> (B, C, k0, k1, P0, P1).
    for a, (k, s, d, m) in enumerate(zip(g.kernel, g.stride, g.dilation, g.extents, strict=True)):
        lead = [slice(None)] * (2 + 2 * a)
        taps = [slice(j * d, j * d + (m - 1) * s + 1, s) for j in range(k)]
        x = torch.stack([x[tuple([*lead, tap])] for tap in taps], 2 + a)
    return x.flatten(2, 1 + len(g.kernel))


Update = tuple[Tensor, Tensor]
"""$A$ `(B, O, r)` and $V$ `(r, T'·C)`, tap by tap."""


def mixed_convolution(x: Tensor, weight: Tensor, mix: Tensor, update: Update | None, g: Geometry) -> Tensor:
    """The formula above: x `(B, C, …)`, weight `(O, C·T)` as it lies, mix `(B, T, T')` -> `(B, O, …)`."""
    left, right = update if update is not None else (None, None)
    inputs = [t for t in (x, mix, left, right) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        y: Tensor = _Mixed.apply(x, mix, left, right, weight, g)  # type: ignore[no-untyped-call]
    else:
        y = _forward(x, mix, left, right, weight, g)
    return unviewed(y, (x.shape[0], weight.shape[0], *g.extents))


def _forward(x: Tensor, mix: Tensor, left: Tensor | None, right: Tensor | None, weight: Tensor, g: Geometry) -> Tensor:
    size, p = x.shape[0], g.positions
    y, last = x.new_empty(size, weight.shape[0], p), laid(x, g)
    runs, (seen_, rows_, out_) = _runs(x, weight, g)
    for part in runs:
        n = (part.stop - part.start) * p
        seen = columns(last[part], g, seen_[:n])
        rows = torch.bmm(seen.transpose(1, 2), _by_pixel(mix[part].transpose(1, 2), p), out=rows_[:n]).flatten(1)
        y[part] = torch.mm(rows, weight.t(), out=out_[:n]).unflatten(0, (-1, p)).transpose(1, 2)
        if left is not None and right is not None:
            y[part].baddbmm_(left[part], _narrow(seen.flatten(1), right, p))
    return y


def _runs(x: Tensor, weight: Tensor, g: Geometry) -> tuple[list[slice], tuple[Tensor, Tensor, Tensor]]:
    """Samples whose patches fit a cache, but no fewer than make as many numbers as the weight they all meet.

    And what every run is written into, for memory that was just used is in the cache and new memory is not: patches
    `(n, T', C)`, mixed ones `(n, C, T)`, outputs `(n, O)`.
    """
    wide, c, (outputs, columns_) = math.prod(g.kernel), x.shape[1], weight.shape
    patches = wide * c * g.positions * x.element_size()
    runs = list(slices(x.shape[0], patches, x.device, least=2 * weight.numel() * weight.element_size()))
    n = (runs[0].stop - runs[0].start) * g.positions
    return runs, (x.new_empty(n, wide, c), x.new_empty(n, c, columns_ // c), x.new_empty(n, outputs))


def _by_pixel(mix: Tensor, p: int) -> Tensor:
    """A sample's mixing for each of its pixels: `(b, m, n)` -> `(b·P, m, n)`."""
    return mix.unsqueeze(1).expand(-1, p, -1, -1).reshape(-1, *mix.shape[1:])


def _narrow(pixels: Tensor, right: Tensor, p: int) -> Tensor:
    """$V X$: patches `(b·P, T'·C)`, `(r, T'·C)` -> `(b, r, P)`."""
    return (pixels @ right.t()).reshape(-1, p, right.shape[0]).transpose(1, 2)


class _Mixed(torch.autograd.Function):
    """The formula, its output as `(B, O, P)`, with a backward that makes the patches again."""

    @staticmethod
    def forward(
        x: Tensor, mix: Tensor, left: Tensor | None, right: Tensor | None, weight: Tensor, g: Geometry
    ) -> Tensor:
        return _forward(x, mix, left, right, weight, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, mix, left, right, weight, g = inputs
        ctx.save_for_backward(x, mix, left, right, weight)
        ctx.geometry = g

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Any, ...] = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted
            return (*_again(saved, needs, ctx.geometry, grads[0]), None, None)
        return (*_backward(saved, needs, ctx.geometry, grads[0]), None, None)


def _again(saved: tuple[Any, ...], needs: Sequence[bool], g: Geometry, grad: Tensor) -> list[Tensor | None]:
    """The gradients of the formula by autograd, so that they have gradients themselves."""
    x, mix, left, right, weight = saved
    p = g.positions
    with torch.enable_grad():
        n = len(g.kernel)
        seen = columns(F.pad(x, g.flat_pads).permute(0, *range(2, n + 2), 1), g)
        rows = torch.bmm(seen.transpose(1, 2), _by_pixel(mix.transpose(1, 2), p)).flatten(1)
        y = (rows @ weight.t()).unflatten(0, (-1, p)).transpose(1, 2)
        if left is not None:
            y = y + left @ _narrow(seen.flatten(1), right, p)
        wanted = [t for t, need in zip(saved, needs, strict=False) if need]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needs[:4]]


def _backward(saved: tuple[Any, ...], needs: Sequence[bool], g: Geometry, grad: Tensor) -> list[Tensor | None]:
    x, mix, left, right, weight = saved
    p, c = g.positions, x.shape[1]
    made = [
        torch.empty_like(t, memory_format=torch.contiguous_format) if need else None
        for t, need in zip(saved[:4], needs[:4], strict=True)
    ]
    g_x, g_mix, g_left, g_right = made
    if g_right is not None:
        g_right.zero_()
    last = laid(x, g)
    runs, (seen_, rows_, out_) = _runs(x, weight, g)
    moved_ = torch.empty_like(seen_) if g_x is not None else None
    for part in runs:
        n = (part.stop - part.start) * p
        out = out_[:n].view(-1, p, weight.shape[0]).copy_(grad[part].transpose(1, 2))
        seen = columns(last[part], g, seen_[:n])
        moved = None
        if g_x is not None or g_mix is not None:
            rows = torch.mm(out.flatten(0, 1), weight, out=rows_[:n].flatten(1)).view(n, c, -1)
            if g_mix is not None:
                g_mix[part] = torch.bmm(seen, rows).unflatten(0, (-1, p)).sum(1).transpose(1, 2)
            if moved_ is not None:
                by_pixel = _by_pixel(mix[part].transpose(1, 2), p)
                moved = torch.bmm(by_pixel, rows.transpose(1, 2), out=moved_[:n])
        if left is not None:
            pixels = seen.flatten(1)
            narrow = torch.bmm(out, left[part]).flatten(0, 1)
            if g_left is not None:
                g_left[part] = torch.bmm(grad[part], _narrow(pixels, right, p).transpose(1, 2))
            if g_right is not None:
                g_right += narrow.t() @ pixels
            if moved is not None:
                moved.view(-1, right.shape[1]).addmm_(narrow, right)
        if g_x is not None and moved is not None:
            g_x[part] = folded(moved, g, x.shape[2:])
    return made

r"""A convolution whose kernels are mixed per sample, as a product over patches: nothing per sample is ever a weight.

$$y_b = W\,(M_b X_b) + A_b\,(V X_b)$$

$X_b$ `(T', P, C)` is what each tap sees of the input, $M_b$ `(T, T')` mixes taps, $W$ `(O, T·C)` is shared by all
samples, and $A_b V$ is a low-rank update. Patches hold T' times the input, so they are made for a few samples at a
time, small enough to stay in a cache, and made again in the backward rather than kept. Channels come last in them: what
a tap sees of a row of pixels is then one stretch of memory, however small the map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import Convolution

__all__ = ["Geometry", "columns", "mixed_convolution", "planes", "sliced", "slices"]

CACHE = 2 * 2**20
"""Bytes of a working set that stays in a cache; larger ones are also returned to the system after every use."""


def slices(size: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    """A batch in runs of samples whose working set fits a cache; on an accelerator, all at once up to a GiB."""
    budget = CACHE if device.type == "cpu" else 2**30
    step = max(1, min(size, budget // max(1, bytes_each)))
    return (slice(i, min(i + step, size)) for i in range(0, size, step))


@dataclass(frozen=True)
class Geometry:
    """Where the patches of one call are taken: the (grown) kernel, zeros around the input, strides, output size."""

    kernel: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    extents: tuple[int, ...]

    @classmethod
    def of(cls, call: Convolution, x: Tensor, kernel: Sequence[int], grow: Sequence[int] = ()) -> Geometry:
        """That of a call with a kernel of its own extent `kernel`, grown by `grow` taps on both sides."""
        make = _geometry if torch.compiler.is_compiling() else _remembered_geometry
        return make(call, tuple(x.shape[2:]), tuple(kernel), tuple(grow))

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


def _geometry(call: Convolution, size: Sequence[int], kernel: Sequence[int], grow: Sequence[int]) -> Geometry:
    wide = [k + 2 * n for k, n in zip(kernel, grow or (0,) * call.dims, strict=True)]
    pads = call.pads(kernel, grow)
    extents = [
        (n + sum(pad) - d * (k - 1) - 1) // s + 1
        for n, pad, k, d, s in zip(size, pads, wide, call.dilation, call.stride, strict=True)
    ]
    return Geometry(tuple(wide), tuple(pads), call.stride, call.dilation, tuple(extents))


_remembered_geometry = lru_cache(maxsize=4096)(_geometry)


def columns(x: Tensor, g: Geometry) -> Tensor:
    """What each tap sees: x `(b, C, …)` -> `(b, T', P, C)`."""
    n = len(g.kernel)
    padded = F.pad(x, g.flat_pads) if any(map(any, g.pads)) else x
    last = padded.permute(0, *range(2, n + 2), 1).contiguous()
    batch, *steps, channel = last.stride()
    taps = [d * s for d, s in zip(g.dilation, steps, strict=True)]
    moves = [k * s for k, s in zip(g.stride, steps, strict=True)]
    view = last.as_strided((x.shape[0], *g.kernel, *g.extents, x.shape[1]), (batch, *taps, *moves, channel))
    return view.reshape(x.shape[0], math.prod(g.kernel), g.positions, x.shape[1])


def planes(x: Tensor, g: Geometry) -> Tensor:
    """What each tap sees, channels first, as a dense weight reads it: x `(b, C, …)` -> `(b, C, T', P)`."""
    x = F.pad(x, g.flat_pads) if any(map(any, g.pads)) else x
    batch, channel, *steps = x.stride()
    taps = [d * s for d, s in zip(g.dilation, steps, strict=True)]
    moves = [k * s for k, s in zip(g.stride, steps, strict=True)]
    view = x.as_strided((x.shape[0], x.shape[1], *g.kernel, *g.extents), (batch, channel, *taps, *moves))
    return view.reshape(x.shape[0], x.shape[1], math.prod(g.kernel), g.positions)


def folded(grad: Tensor, g: Geometry, size: Sequence[int]) -> Tensor:
    """The transpose of `columns`: `(b, T', P, C)` -> `(b, C, …)`, each pixel collecting what was read from it."""
    b, _, _, c = grad.shape
    n = len(g.kernel)
    total = grad.new_zeros(b, *(m + sum(pad) for m, pad in zip(size, g.pads, strict=True)), c)
    rows = grad.reshape(b, *g.kernel, *g.extents, c)
    for tap in itertools.product(*map(range, g.kernel)):
        where = [
            slice(j * d, j * d + (m - 1) * s + 1, s)
            for j, d, m, s in zip(tap, g.dilation, g.extents, g.stride, strict=True)
        ]
        at: tuple[Any, ...] = (slice(None), *tap)
        total[tuple([slice(None), *where])] += rows[at]
    inside = [slice(p, p + m) for (p, _), m in zip(g.pads, size, strict=True)]
    inner = total[tuple([slice(None), *inside])]
    return inner.permute(0, n + 1, *range(1, n + 1))


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
"""$A$ `(B, O, r)` and $V$ `(r, T'·C)`."""


def mixed_convolution(x: Tensor, weight: Tensor, mix: Tensor, update: Update | None, g: Geometry) -> Tensor:
    """The formula above: x `(B, C, …)`, weight `(O, T·C)` tap by tap, mix `(B, T, T')` -> `(B, O, …)`."""
    left, right = update if update is not None else (None, None)
    inputs = [t for t in (x, mix, left, right) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        y: Tensor = _Mixed.apply(x, mix, left, right, weight, g)  # type: ignore[no-untyped-call]
    else:
        y = _forward(x, mix, left, right, weight, g)
    return y.reshape(x.shape[0], -1, *g.extents)


def _forward(x: Tensor, mix: Tensor, left: Tensor | None, right: Tensor | None, weight: Tensor, g: Geometry) -> Tensor:
    size, c, p, taps = x.shape[0], x.shape[1], g.positions, math.prod(g.kernel)
    y = x.new_empty(size, weight.shape[0], p)
    for part in slices(size, taps * c * p * x.element_size(), x.device):
        seen = columns(x[part], g)
        rows = torch.bmm(mix[part], seen.flatten(2)).unflatten(-1, (p, c))
        y[part] = (_by_pixel(rows) @ weight.t()).unflatten(0, (-1, p)).transpose(1, 2)
        if left is not None and right is not None:
            y[part].baddbmm_(left[part], _narrow(_by_pixel(seen), right, p))
    return y


def _by_pixel(rows: Tensor) -> Tensor:
    """`(b, T, P, C)` -> `(b·P, T·C)`."""
    b, t, p, c = rows.shape
    return rows.transpose(1, 2).reshape(b * p, t * c)


def _by_tap(rows: Tensor, p: int, taps: int) -> Tensor:
    """`(b·P, T·C)` -> `(b, T, P, C)`."""
    return rows.reshape(-1, p, taps, rows.shape[1] // taps).transpose(1, 2).contiguous()


def _narrow(pixels: Tensor, right: Tensor, p: int) -> Tensor:
    """$V X$: patches `(b·P, T'·C)`, `(r, T'·C)` -> `(b, r, P)`."""
    return (right @ pixels.t()).reshape(right.shape[0], -1, p).transpose(0, 1)


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
    with torch.enable_grad():
        seen = columns(x, g)
        rows = torch.bmm(mix, seen.flatten(2)).unflatten(-1, seen.shape[2:])
        y = (_by_pixel(rows) @ weight.t()).unflatten(0, (-1, g.positions)).transpose(1, 2)
        if left is not None:
            y = y + left @ _narrow(_by_pixel(seen), right, g.positions)
        wanted = [t for t, need in zip(saved, needs, strict=False) if need]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needs[:4]]


def _backward(saved: tuple[Any, ...], needs: Sequence[bool], g: Geometry, grad: Tensor) -> list[Tensor | None]:
    x, mix, left, right, weight = saved
    size, c, p, taps = x.shape[0], x.shape[1], g.positions, math.prod(g.kernel)
    made: list[Tensor | None] = [
        torch.zeros_like(t, memory_format=torch.contiguous_format) if need else None
        for t, need in zip(saved, needs[:4], strict=False)
    ]
    g_x, g_mix, g_left, g_right = made
    for part in slices(size, taps * c * p * x.element_size(), x.device):
        out = grad[part].transpose(1, 2)
        seen = columns(x[part], g)
        moved = None
        if g_x is not None or g_mix is not None:
            rows = _by_tap(out.reshape(-1, out.shape[2]) @ weight, p, mix.shape[1]).flatten(2)
            if g_mix is not None:
                g_mix[part] = torch.bmm(rows, seen.flatten(2).transpose(1, 2))
            if g_x is not None:
                moved = torch.bmm(mix[part].transpose(1, 2), rows).reshape(seen.shape)
        if left is not None:
            pixels = _by_pixel(seen)
            narrow = torch.bmm(out, left[part]).flatten(0, 1)
            if g_left is not None:
                g_left[part] = torch.bmm(grad[part], _narrow(pixels, right, p).transpose(1, 2))
            if g_right is not None:
                g_right += narrow.t() @ pixels
            if moved is not None:
                moved += _by_tap(narrow @ right, p, taps)
        if g_x is not None and moved is not None:
            g_x[part] = folded(moved, g, x.shape[2:])
    return made

r"""A convolution whose kernels are mixed per sample, as a product over patches: nothing per sample is ever a weight.

$$y_b = W\,(M_b X_b) + A_b\,(V X_b)$$

$X_b$ `(T', C·P)` is what each tap sees of the input, $M_b$ `(T, T')` mixes taps, $W$ `(O, T·C)` is shared by all
samples, and $A_b V$ is a low-rank update. Patches hold T' times the input, so they are made for a few samples at a time,
small enough to stay in a cache, and made again in the backward rather than kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import Convolution

__all__ = ["Geometry", "columns", "mixed_convolution", "sliced", "slices"]

CACHE = 4 * 2**20
"""Bytes of a working set that stays in a cache; larger ones are also returned to the system after every use."""

FEW_POSITIONS = 48
"""With fewer output positions a product per sample is too narrow, and samples share one."""


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
        wide = [k + 2 * n for k, n in zip(kernel, grow or (0,) * call.dims, strict=True)]
        pads = call.pads(kernel, grow)
        extents = [
            (n + sum(pad) - d * (k - 1) - 1) // s + 1
            for n, pad, k, d, s in zip(x.shape[2:], pads, wide, call.dilation, call.stride, strict=True)
        ]
        return cls(tuple(wide), tuple(pads), call.stride, call.dilation, tuple(extents))

    @property
    def flat_pads(self) -> list[int]:
        """As `F.pad` wants them."""
        return [p for pair in reversed(self.pads) for p in pair]

    @property
    def positions(self) -> int:
        """P."""
        return math.prod(self.extents)


def columns(x: Tensor, g: Geometry) -> Tensor:
    """What each tap sees: x `(b, C, …)` -> `(b, T', C, P)`, in one copy."""
    x = F.pad(x, g.flat_pads) if any(map(any, g.pads)) else x
    n = len(g.kernel)
    batch, channel, *steps = x.stride()
    shape = (x.shape[0], *g.kernel, x.shape[1], *g.extents)
    taps = [d * s for d, s in zip(g.dilation, steps, strict=True)]
    moves = [k * s for k, s in zip(g.stride, steps, strict=True)]
    view = x.as_strided(shape, (batch, *taps, channel, *moves))
    return view.reshape(x.shape[0], math.prod(g.kernel), x.shape[1], math.prod(shape[2 + n :]))


def folded(grad: Tensor, g: Geometry, size: Sequence[int]) -> Tensor:
    """The transpose of `columns`: `(b, T', C, P)` -> `(b, C, …)`, each pixel collecting what was read from it."""
    b, _, c, _ = grad.shape
    wide = [n + sum(pad) for n, pad in zip(size, g.pads, strict=True)]
    total = grad.new_zeros(b, c, *wide)
    rows = grad.reshape(b, *g.kernel, c, *g.extents)
    for tap in torch.cartesian_prod(*[torch.arange(k) for k in g.kernel]).reshape(-1, len(g.kernel)).tolist():
        where = [
            slice(j * d, j * d + (m - 1) * s + 1, s)
            for j, d, m, s in zip(tap, g.dilation, g.extents, g.stride, strict=True)
        ]
        total[(slice(None), slice(None), *where)] += rows[(slice(None), *tap)]
    return total[(slice(None), slice(None), *(slice(p, p + n) for (p, _), n in zip(g.pads, size, strict=True)))]


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
    """The formula above: x `(B, C, …)`, weight `(O, T·C)`, mix `(B, T, T')` -> `(B, O, …)`. Taps come before channels."""
    left, right = update if update is not None else (None, None)
    inputs = [t for t in (x, mix, left, right) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        y: Tensor = _Mixed.apply(x, mix, left, right, weight, g)  # type: ignore[no-untyped-call]
    else:
        y = _forward(x, mix, left, right, weight, g)
    return y


def _forward(
    x: Tensor, mix: Tensor, left: Tensor | None, right: Tensor | None, weight: Tensor, g: Geometry
) -> Tensor:
    size, c, p = x.shape[0], x.shape[1], g.positions
    taps = math.prod(g.kernel)
    y = x.new_empty(size, weight.shape[0], p)
    for part in slices(size, taps * c * p * x.element_size(), x.device):
        seen = columns(x[part], g)
        rows = torch.bmm(mix[part], seen.reshape(-1, taps, c * p)).reshape(-1, weight.shape[1], p)
        torch.bmm(weight.expand(rows.shape[0], *weight.shape), rows, out=y[part]) if p >= FEW_POSITIONS else y[
            part
        ].copy_(_shared_product(weight, rows))
        if left is not None and right is not None:
            flat = seen.reshape(-1, taps * c, p)
            y[part].baddbmm_(left[part], _shared_product(right, flat))
    return y.reshape(size, -1, *g.extents)


def _shared_product(weight: Tensor, rows: Tensor) -> Tensor:
    """`weight (O, N)` times each of `rows (b, N, P)`: `(b, O, P)`."""
    b, n, p = rows.shape
    if p >= FEW_POSITIONS or b == 1:
        return torch.bmm(weight.expand(b, *weight.shape), rows)
    wide = weight @ rows.transpose(0, 1).reshape(n, b * p)
    return wide.reshape(-1, b, p).transpose(0, 1)


class _Mixed(torch.autograd.Function):
    """The formula with a backward that makes the patches again."""

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
        flat = seen.reshape(x.shape[0], -1, g.positions)
        rows = torch.bmm(mix, seen.flatten(2)).reshape(x.shape[0], -1, g.positions)
        y = weight @ rows
        if left is not None:
            y = y + left @ (right @ flat)
        wanted = [t for t, need in zip(saved, needs, strict=False) if need]
        found = iter(torch.autograd.grad(y.reshape(grad.shape), wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needs[:4]]


def _backward(saved: tuple[Any, ...], needs: Sequence[bool], g: Geometry, grad: Tensor) -> list[Tensor | None]:
    x, mix, left, right, weight = saved
    size, c, p = x.shape[0], x.shape[1], g.positions
    taps = math.prod(g.kernel)
    grad = grad.reshape(size, -1, p)
    needs_x, needs_mix, needs_left, needs_right = needs[:4]
    g_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else None
    g_mix = torch.empty_like(mix, memory_format=torch.contiguous_format) if needs_mix else None
    g_left = torch.empty_like(left, memory_format=torch.contiguous_format) if needs_left else None
    g_right = torch.zeros_like(right) if needs_right else None
    back = weight.t().contiguous()
    for part in slices(size, taps * c * p * x.element_size(), x.device):
        out = grad[part]
        seen = columns(x[part], g).reshape(-1, taps, c * p) if needs_mix or needs_left or needs_right else None
        rows = None
        if needs_x or needs_mix:
            rows = _shared_product(back, out).reshape(-1, mix.shape[1], c * p)
        if g_mix is not None and rows is not None and seen is not None:
            g_mix[part] = torch.bmm(rows, seen.transpose(1, 2))
        moved = torch.bmm(mix[part].transpose(1, 2), rows) if needs_x and rows is not None else None
        if left is not None:
            narrow = torch.bmm(left[part].transpose(1, 2), out) if needs_x or needs_right else None
            if g_left is not None and seen is not None:
                inner = _shared_product(right, seen.reshape(-1, taps * c, p))
                g_left[part] = torch.bmm(out, inner.transpose(1, 2))
            if g_right is not None and seen is not None and narrow is not None:
                flat = seen.reshape(-1, taps * c, p)
                g_right += torch.bmm(narrow, flat.transpose(1, 2)).sum(0)
            if moved is not None and narrow is not None:
                moved = moved.reshape(-1, taps * c, p)
                moved = moved.baddbmm_(right.t().expand(moved.shape[0], -1, -1), narrow)
        if g_x is not None and moved is not None:
            g_x[part] = folded(moved.reshape(-1, taps, c, p), g, x.shape[2:])
    return [g_x, g_mix, g_left, g_right]

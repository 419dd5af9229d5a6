r"""A convolution whose kernels' taps are mixed per sample, as a product over patches.

$$y_b = W\,(M_b X_b) + A_b\,(V X_b)$$

$X_b$ `(P, T', C)` is what each tap sees of the input, $M_b$ `(T, T')` mixes taps, $W$ `(O, C·T)` is shared by all
samples, and $A_b V$ is a low-rank update. No dense weight per sample exists. Patches hold T' times the input, so they
are made for a few samples at a time, small enough to stay in a cache, and recomputed in the backward pass. One small
product per pixel mixes the taps and transposes, which gives a row in the order of W's columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .memory import chunks, reshape_owned
from .patches import PatchGeometry, col2im, im2col_channels_last, pad_channels_last

__all__ = ["mixed_convolution"]

Update = tuple[Tensor, Tensor]
"""$A$ `(B, O, r)` and $V$ `(r, T'·C)`, tap by tap."""


def mixed_convolution(x: Tensor, weight: Tensor, mix: Tensor, update: Update | None, g: PatchGeometry) -> Tensor:
    """The formula of this module: x `(B, C, …)`, weight `(O, C·T)`, mix `(B, T, T')` -> `(B, O, …)`."""
    left, right = update if update is not None else (None, None)
    inputs = [t for t in (x, mix, left, right) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        y: Tensor = _Mixed.apply(x, mix, left, right, weight, g)  # type: ignore[no-untyped-call]
    else:
        y = _forward(x, mix, left, right, weight, g)
    return reshape_owned(y, (x.shape[0], weight.shape[0], *g.extents))


def _forward(
    x: Tensor, mix: Tensor, left: Tensor | None, right: Tensor | None, weight: Tensor, g: PatchGeometry
) -> Tensor:
    size, p = x.shape[0], g.positions
    y, last = x.new_empty(size, weight.shape[0], p), pad_channels_last(x, g)
    parts, (seen_, rows_, out_) = _chunks(x, weight, g)
    for part in parts:
        n = (part.stop - part.start) * p
        seen = im2col_channels_last(last[part], g, seen_[:n])
        rows = torch.bmm(seen.transpose(1, 2), _by_pixel(mix[part].transpose(1, 2), p), out=rows_[:n]).flatten(1)
        y[part] = torch.mm(rows, weight.t(), out=out_[:n]).unflatten(0, (-1, p)).transpose(1, 2)
        if left is not None and right is not None:
            y[part].baddbmm_(left[part], _narrow(seen.flatten(1), right, p))
    return y


def _chunks(x: Tensor, weight: Tensor, g: PatchGeometry) -> tuple[list[slice], tuple[Tensor, Tensor, Tensor]]:
    """Chunks that fit the cache, yet amortise one read of the weight; and the buffers that each of them reuses.

    Memory that was just used is in the cache, new memory is not. The buffers hold patches `(n, T', C)`, mixed ones
    `(n, C, T)`, and outputs `(n, O)`.
    """
    wide, c, (outputs, columns_) = math.prod(g.kernel), x.shape[1], weight.shape
    patches = wide * c * g.positions * x.element_size()
    parts = list(chunks(x.shape[0], patches, x.device, least=2 * weight.numel() * weight.element_size()))
    n = (parts[0].stop - parts[0].start) * g.positions
    return parts, (x.new_empty(n, wide, c), x.new_empty(n, c, columns_ // c), x.new_empty(n, outputs))


def _by_pixel(mix: Tensor, p: int) -> Tensor:
    """A sample's mixing for each of its pixels: `(b, m, n)` -> `(b·P, m, n)`."""
    return mix.unsqueeze(1).expand(-1, p, -1, -1).reshape(-1, *mix.shape[1:])


def _narrow(pixels: Tensor, right: Tensor, p: int) -> Tensor:
    """$V X$: patches `(b·P, T'·C)`, `(r, T'·C)` -> `(b, r, P)`."""
    return (pixels @ right.t()).reshape(-1, p, right.shape[0]).transpose(1, 2)


class _Mixed(torch.autograd.Function):
    """The formula, its output as `(B, O, P)`, with a backward pass that recomputes the patches."""

    @staticmethod
    def forward(
        x: Tensor, mix: Tensor, left: Tensor | None, right: Tensor | None, weight: Tensor, g: PatchGeometry
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
            return (*_differentiable(saved, needs, ctx.geometry, grads[0]), None, None)
        return (*_backward(saved, needs, ctx.geometry, grads[0]), None, None)


def _differentiable(
    saved: tuple[Any, ...], needs: Sequence[bool], g: PatchGeometry, grad: Tensor
) -> list[Tensor | None]:
    """The gradients of the formula by autograd, so that they have gradients themselves."""
    x, mix, left, right, weight = saved
    p = g.positions
    with torch.enable_grad():
        n = len(g.kernel)
        seen = im2col_channels_last(F.pad(x, g.flat_pads).permute(0, *range(2, n + 2), 1), g)
        rows = torch.bmm(seen.transpose(1, 2), _by_pixel(mix.transpose(1, 2), p)).flatten(1)
        y = (rows @ weight.t()).unflatten(0, (-1, p)).transpose(1, 2)
        if left is not None:
            y = y + left @ _narrow(seen.flatten(1), right, p)
        wanted = [t for t, need in zip(saved, needs, strict=False) if need]
        gradients = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(gradients) if need else None for need in needs[:4]]


def _backward(saved: tuple[Any, ...], needs: Sequence[bool], g: PatchGeometry, grad: Tensor) -> list[Tensor | None]:
    x, mix, left, right, weight = saved
    p, c = g.positions, x.shape[1]
    gradients = [
        torch.empty_like(t, memory_format=torch.contiguous_format) if need else None
        for t, need in zip(saved[:4], needs[:4], strict=True)
    ]
    g_x, g_mix, g_left, g_right = gradients
    if g_right is not None:
        g_right.zero_()
    last = pad_channels_last(x, g)
    parts, (seen_, rows_, out_) = _chunks(x, weight, g)
    moved_ = torch.empty_like(seen_) if g_x is not None else None
    for part in parts:
        n = (part.stop - part.start) * p
        out = out_[:n].view(-1, p, weight.shape[0]).copy_(grad[part].transpose(1, 2))
        seen = im2col_channels_last(last[part], g, seen_[:n])
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
            g_x[part] = col2im(moved, g, x.shape[2:])
    return gradients

"""Patches: what each tap of a kernel sees of the input, in three layouts.

For a batched product with one weight per sample, channels come first; for tap mixing, pixels come first and channels
last, because then they are copied in long stretches; in a traced graph they are cut by slicing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Pads", "PatchGeometry", "col2im", "im2col", "im2col_channels_last", "output_extents", "pad_channels_last",
    "patches_by_slicing",
]  # fmt: skip

Pads = tuple[tuple[int, int], ...]
"""Zeros before and after the input, along each spatial axis."""


@dataclass(frozen=True)
class PatchGeometry:
    """Where the patches of one call are taken: the (grown) kernel, zeros around the input, strides, output extents."""

    kernel: tuple[int, ...]
    pads: Pads
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    extents: tuple[int, ...]

    @property
    def flat_pads(self) -> list[int]:
        """The zeros as `F.pad` wants them."""
        return [p for pair in reversed(self.pads) for p in pair]

    @property
    def is_input(self) -> bool:
        """Are the patches the input itself? One tap then sees every pixel."""
        return math.prod(self.kernel) == 1 and set(self.stride) == {1} and not any(map(any, self.pads))

    @property
    def positions(self) -> int:
        """P."""
        return math.prod(self.extents)


def output_extents(
    size: Sequence[int], kernel: Sequence[int], pads: Pads, dilation: Sequence[int], stride: Sequence[int]
) -> list[int]:
    """Extents of a convolution's output along each axis.

    Example:
        >>> output_extents((7, 6), (3, 3), ((1, 1), (0, 0)), (1, 1), (2, 1))
        [4, 4]
    """
    axes = zip(size, kernel, pads, dilation, stride, strict=True)
    return [(n + sum(pad) - d * (k - 1) - 1) // s + 1 for n, k, pad, d, s in axes]


def pad_channels_last(x: Tensor, g: PatchGeometry) -> Tensor:
    """The input with zeros around it, channels last: x `(B, C, …)` -> `(B, …, C)`."""
    n, size = len(g.kernel), x.shape[2:]
    last = x.permute(0, *range(2, n + 2), 1)
    if not any(map(any, g.pads)):
        return last.contiguous()
    wide = x.new_zeros(x.shape[0], *(m + sum(pad) for m, pad in zip(size, g.pads, strict=True)), x.shape[1])
    _inside(wide, g, size).copy_(last)
    return wide


def _inside(wide: Tensor, g: PatchGeometry, size: Sequence[int]) -> Tensor:
    """The part without the zeros around it."""
    for axis, ((before, _), m) in enumerate(zip(g.pads, size, strict=True), 1):
        wide = wide.narrow(axis, before, m)
    return wide


def _strides(last: Tensor, g: PatchGeometry) -> tuple[list[int], list[int]]:
    """Strides between the positions of a tap, and between the taps of a position, in a padded channels-last input."""
    steps = last.stride()[1:-1]
    moves = [k * s for k, s in zip(g.stride, steps, strict=True)]
    return moves, [d * s for d, s in zip(g.dilation, steps, strict=True)]


def im2col_channels_last(last: Tensor, g: PatchGeometry, out: Tensor | None = None) -> Tensor:
    """What each tap sees at each position of a padded channels-last input: `(b, …, C)` -> `(b·P, T', C)`."""
    (batch, *_, channel), (moves, taps) = last.stride(), _strides(last, g)
    shape, strides = (last.shape[0], *g.extents, *g.kernel, last.shape[-1]), (batch, *moves, *taps, channel)
    view = last.as_strided(shape, strides, last.storage_offset())
    if out is None:
        return view.reshape(-1, math.prod(g.kernel), last.shape[-1])
    out.view(shape).copy_(view)
    return out


def im2col(x: Tensor, g: PatchGeometry) -> Tensor:
    """What each tap sees, channels first, in the order of a dense weight: x `(b, C, …)` -> `(b, C, T', P)`."""
    x = F.pad(x, g.flat_pads) if any(map(any, g.pads)) else x
    batch, channel, *steps = x.stride()
    taps = [d * s for d, s in zip(g.dilation, steps, strict=True)]
    moves = [k * s for k, s in zip(g.stride, steps, strict=True)]
    view = x.as_strided((x.shape[0], x.shape[1], *g.kernel, *g.extents), (batch, channel, *taps, *moves))
    return view.reshape(x.shape[0], x.shape[1], math.prod(g.kernel), g.positions)


def col2im(grad: Tensor, g: PatchGeometry, size: Sequence[int]) -> Tensor:
    """The transpose of padding and `im2col_channels_last`: `(b·P, T', C)` -> `(b, C, …)`, summed where taps overlap."""
    c, n = grad.shape[-1], len(g.kernel)
    rows = grad.reshape(-1, *g.extents, math.prod(g.kernel), c)
    total = grad.new_zeros(rows.shape[0], *(m + sum(pad) for m, pad in zip(size, g.pads, strict=True)), c)
    (batch, *_, channel), (moves, taps) = total.stride(), _strides(total, g)
    shape, strides = (rows.shape[0], *g.extents, c), (batch, *moves, channel)
    for i, tap in enumerate(itertools.product(*map(range, g.kernel))):
        where = sum(j * s for j, s in zip(tap, taps, strict=True))
        total.as_strided(shape, strides, where).add_(rows.select(-2, i))
    return _inside(total, g, size).permute(0, n + 1, *range(1, n + 1))


def patches_by_slicing(x: Tensor, g: PatchGeometry) -> Tensor:
    """What each tap sees, cut by slicing, for a traced graph: x `(B, C, …)` -> `(B, C, T', …)`."""
    x = F.pad(x, g.flat_pads)
    # Axis by axis, which makes fewer pieces than tap by tap: (B, C, k0, P0, n1) -> (B, C, k0, k1, P0, P1).
    for a, (k, s, d, m) in enumerate(zip(g.kernel, g.stride, g.dilation, g.extents, strict=True)):
        lead = [slice(None)] * (2 + 2 * a)
        taps = [slice(j * d, j * d + (m - 1) * s + 1, s) for j in range(k)]
        x = torch.stack([x[tuple([*lead, tap])] for tap in taps], 2 + a)
    return x.flatten(2, 1 + len(g.kernel))

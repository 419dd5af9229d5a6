"""One convolution call: its geometry, and the plain function behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PLAIN", "TRANSPOSED", "Convolution", "widen_padding"]

Size = int | Sequence[int]

PLAIN: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


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

    def tiles(self, kernel: Sequence[int]) -> bool:
        """Is it a transposed convolution whose every input pixel fills a tile of the output of its own?"""
        plain = set(self.padding) | set(self.output_padding) == {0} and set(self.dilation) == {1}
        return self.transposed and plain and self.stride == tuple(kernel)

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, groups: int | None = None,
        grow: Sequence[int] = (),
    ) -> Tensor:  # fmt: skip
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
            return self.function(x, weight, bias, self.stride, padding, self.output_padding, groups, self.dilation)
        return self.function(x, weight, bias, self.stride, padding, self.dilation, groups)

    def pads(self, kernel: Sequence[int], grow: Sequence[int] = ()) -> list[tuple[int, int]]:
        """Zeros before and after along each axis; `kernel` is the weight's own extent, grown if `grow` says so."""
        found = []
        for a, (k, d, n) in enumerate(zip(kernel, self.dilation, grow or (0,) * self.dims, strict=True)):
            if isinstance(self.padding, str):
                total = d * (k - 1) if self.padding == "same" else 0
                found.append((total // 2 + n * d, total - total // 2 + n * d))
            else:
                found.append((self.padding[a] + n * d,) * 2)
        return found

    def extents(self, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Size of the output along each axis, of a plain convolution, from that of the input."""
        sizes = zip(size, kernel, self.pads(kernel), self.dilation, self.stride, strict=True)
        return [(n + sum(pad) - d * (k - 1) - 1) // s + 1 for n, k, pad, d, s in sizes]

    def spread(self, x: Tensor, dense: Tensor) -> tuple[Convolution, Tensor, Tensor]:
        """A transposed convolution as a plain one, with one weight per sample `(B, *S)`.

        Zeros go between the pixels, the kernel is reversed, its inputs and outputs change places.
        """
        for axis, s in enumerate(self.stride, 2):
            between = torch.stack((x, *[torch.zeros_like(x)] * (s - 1)), axis + 1).flatten(axis, axis + 1)
            x = between.narrow(axis, 0, (x.shape[axis] - 1) * s + 1)
        pads: list[int] = []
        for k, p, more, d in zip(dense.shape[3:], self.padding, self.output_padding, self.dilation, strict=True):
            assert isinstance(p, int)
            edge = d * (k - 1) - p
            pads = [edge, edge + more, *pads]
        size, g, kernel = x.shape[0], self.groups, dense.shape[3:]
        split = dense.reshape(size, g, -1, dense.shape[2], *kernel).transpose(2, 3).flip(tuple(range(4, 4 + self.dims)))
        plain = Convolution(PLAIN[self.dims], self.dims, (1,) * self.dims, (0,) * self.dims, self.dilation, g)
        return plain, F.pad(x, pads), split.reshape(size, -1, split.shape[3], *kernel)


def each(value: Size, n: int) -> tuple[int, ...]:
    """A size given as one number or as one per axis."""
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)


def widen_padding(
    args: tuple[Any, ...], kwargs: dict[str, Any], kernel: Sequence[int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a plain convolution whose weight is wider than `kernel`, with the padding that keeps its place."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    n = len(kernel)
    grow = [(wide - k) // 2 for wide, k in zip(given["weight"].shape[2:], kernel, strict=True)]
    padding, dilation = given.get("padding", 0), each(given.get("dilation", 1), n)
    if any(grow) and padding != "same":
        own = (0,) * n if padding == "valid" else each(padding, n)
        given["padding"] = tuple(p + m * d for p, m, d in zip(own, grow, dilation, strict=True))
    return (), given

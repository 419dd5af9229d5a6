"""One convolution call: its geometry, and the plain function behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..slots import Grow, Slot

__all__ = ["PLAIN", "TRANSPOSED", "Convolution", "each", "widened"]

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
        grow: Grow = (),
    ) -> Tensor:  # fmt: skip
        """The convolution itself; with a weight that has grown, its padding is wider."""
        x, padding = self.room(x, weight.shape[2:], grow) if grow else (x, self.padding)
        weight = weight.to(x.dtype) if not torch.is_autocast_enabled(x.device.type) else weight
        groups = self.groups if groups is None else groups
        if self.transposed:
            # Positional order differs: output_padding comes before groups, dilation last.
            return self.function(x, weight, bias, self.stride, padding, self.output_padding, groups, self.dilation)
        return self.function(x, weight, bias, self.stride, padding, self.dilation, groups)

    def pads(self, kernel: Sequence[int], grow: Grow = ()) -> list[tuple[int, int]]:
        """Zeros before and after along each axis; `kernel` is the weight's own extent, which has grown by `grow`."""
        found = []
        for a, (k, d, more) in enumerate(zip(kernel, self.dilation, grow or ((0, 0),) * self.dims, strict=True)):
            if isinstance(self.padding, str):
                total = d * (k - 1) if self.padding == "same" else 0
                before, after = total // 2, total - total // 2
            else:
                before = after = self.padding[a]
            found.append((before + more[0] * d, after + more[1] * d))
        return found

    def room(self, x: Tensor, wide: Sequence[int], grow: Grow) -> tuple[Tensor, tuple[int, ...]]:
        """An input and a padding for a kernel of extent `wide` that has grown, with which the outputs stay in place.

        As much padding on both sides as the first one needs, if the last output then still reads what it has to and
        no other one joins it; the zeros are laid around a copy of the input otherwise.
        """
        own = [n - sum(more) for n, more in zip(wide, grow, strict=True)]
        pads = self.pads(own, grow)
        first = tuple(before for before, _ in pads)
        if all(before == after for before, after in pads):
            return x, first
        if self._count(x.shape[2:], wide, [(p, p) for p in first]) == self.extents(x.shape[2:], own):
            return x, first
        return F.pad(x, [n for pair in reversed(pads) for n in pair]), (0,) * self.dims

    def extents(self, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Size of the output along each axis, of a plain convolution, from that of the input."""
        return self._count(size, kernel, self.pads(kernel))

    def _count(self, size: Sequence[int], kernel: Sequence[int], pads: Sequence[tuple[int, int]]) -> list[int]:
        sizes = zip(size, kernel, pads, self.dilation, self.stride, strict=True)
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


def widened(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], slot: Slot) -> dict[str, Any]:
    """Arguments of a plain convolution by name; where its weight is wider than the slot's, with room for it."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    wide, n = given["weight"].shape[2:], slot.spatial
    extra = [m - k for m, k in zip(wide, slot.kernel, strict=True)]
    if any(extra):
        padding = given.get("padding", 0)
        pads = padding if isinstance(padding, str) else each(padding, n)
        strides = each(given.get("stride", 1), n), each(given.get("dilation", 1), n)
        call = Convolution(func, n, strides[0], pads, strides[1], given.get("groups", 1))
        given["input"], given["padding"] = call.room(given["input"], wide, slot.sides(extra))
    return given

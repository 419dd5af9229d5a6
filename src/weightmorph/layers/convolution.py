"""Convolutions, plain and transposed, in one to three dimensions, as layer operations."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..slots import Grow, Slot
from . import per_sample
from .base import LayerOp, Part
from .cost import LayerSize, cached_unless_tracing
from .memory import full_precision, layer_dtype, reshape_owned
from .mixed import mixed_convolution
from .patches import Pads, PatchGeometry, output_extents, patches_by_slicing
from .processor import current

__all__ = ["PLAIN", "TRANSPOSED", "Convolution", "TransposedConvolution", "each", "with_room"]

Size = int | Sequence[int]

PLAIN: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d,
}  # fmt: skip


def each(value: Size, n: int) -> tuple[int, ...]:
    """A size given as one number or as one per axis, as one per axis.

    Example:
        >>> each(2, 3), each((1, 2), 2)
        ((2, 2, 2), (1, 2))
    """
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)


@dataclass(frozen=True)
class _AnyConvolution(LayerOp):
    """What plain and transposed convolutions share.

    Attributes:
        dims: spatial axes.
        stride, padding, dilation: one number an axis; `padding` may be `"same"` or `"valid"`.
    """

    dims: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    traced: bool = False

    @abstractmethod
    def _extents(self, size: Sequence[int], kernel: Sequence[int]) -> Sequence[int]:
        """Where the layer's work is, from the input's extents."""

    @abstractmethod
    def narrow(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution to r channels a group, with `weight` in the layer's layout: `(B·G, r, P)`."""

    def tiles(self, kernel: Sequence[int]) -> bool:
        """Does every input pixel fill a tile of the output of its own?"""
        return False

    def size(self, x: Tensor, slot: Slot, grow: Grow, training: bool) -> LayerSize:
        return _size(self, tuple(x.shape), slot.shape, grow, training)

    def per_output(self, value: Tensor, y: Tensor) -> Tensor:
        value = value if value.dim() == 2 else value.unsqueeze(0)
        return value.to(y.dtype).reshape(*value.shape, *(1,) * self.dims)

    def with_bias(self, y: Tensor, bias: Tensor) -> Tensor:
        return y.add_(self.per_output(bias, y))  # no route saves its own output

    def low_rank(self, x: Tensor, narrow: Tensor, left: Tensor, gain: Tensor, y: Tensor | None) -> Tensor:
        g, o, r = left.shape
        if self.traced:
            inner = self(x, narrow)
            inner = inner * self.per_output(gain.repeat(1, g), inner)
            wide = PLAIN[self.dims](inner, left.to(inner.dtype).reshape(g * o, r, *(1,) * self.dims), groups=g)
            return wide if y is None else y + wide
        if y is None:
            raise AssertionError("a low-rank update is added to an output: the frozen layer's comes first")
        size, inner = x.shape[0], self.narrow(x, narrow)
        mixed = (left.unsqueeze(0) * gain[:, None, None, :]).to(inner.dtype).reshape(-1, o, r)
        if not y.is_contiguous():
            return y + torch.bmm(mixed, inner).reshape(y.shape)
        rows = reshape_owned(y, (size * g, o, math.prod(y.shape[2:])))
        return reshape_owned(rows.baddbmm_(mixed.to(y.dtype), inner.to(y.dtype)), y.shape)

    def weight_sets(self, x: Tensor, bank: Tensor, mix: Tensor, y: Tensor | None) -> Tensor:
        mix = mix.to(x.dtype)
        if self.traced:  # one convolution to all sets, a channel's D beside each other, and a weighted sum
            axis = 1 if self.kind == "conv_transpose" else 0
            sets = self(x, bank.movedim(0, axis + 1).flatten(axis, axis + 1)).unflatten(1, (-1, bank.shape[0]))
            total: Tensor = (sets * mix.reshape(mix.shape[0], 1, -1, *(1,) * self.dims)).sum(2)
            return total if y is None else y + total
        for d, weight in enumerate(bank):
            one = self(x, weight)
            one = one * mix[:, d].reshape(-1, *(1,) * (one.dim() - 1))
            y = one if y is None else y + one
        assert y is not None, "a bank holds a weight set"
        return y


@dataclass(frozen=True)
class Convolution(_AnyConvolution):
    """`F.conv{1,2,3}d`: x `(B, C, …)` -> `(B, O, …)`."""

    kind = "conv"

    def __call__(self, x: Tensor, weight: Tensor, *, grow: Grow = (), groups: int | None = None) -> Tensor:
        """The convolution; with a kernel that has grown, its padding is wider. `groups` replaces the call's own."""
        x, padding = self.with_room(x, weight.shape[2:], grow) if grow else (x, self.padding)
        weight = weight.to(x.dtype) if not torch.is_autocast_enabled(x.device.type) else weight
        groups = self.groups if groups is None else groups
        return PLAIN[self.dims](x, weight, None, self.stride, padding, self.dilation, groups)

    @property
    def shares_patches(self) -> bool:  # type: ignore[override]  # a plain attribute of other operations
        return self.groups == 1 and not self.traced

    def pads(self, kernel: Sequence[int], grow: Grow = ()) -> Pads:
        """Zeros before and after along each axis, for a kernel of extent `kernel` that has grown by `grow`."""
        pads = []
        for axis, (k, d, (left, right)) in enumerate(
            zip(kernel, self.dilation, grow or ((0, 0),) * self.dims, strict=True)
        ):
            if isinstance(self.padding, str):
                total = d * (k - 1) if self.padding == "same" else 0
                before, after = total // 2, total - total // 2
            else:
                before = after = self.padding[axis]
            pads.append((before + left * d, after + right * d))
        return tuple(pads)

    def with_room(self, x: Tensor, wide: Sequence[int], grow: Grow) -> tuple[Tensor, tuple[int, ...]]:
        """An input and a padding for a kernel of extent `wide` that has grown, so that the outputs stay in place.

        Both sides are padded as much as the first needs, if the last output then still reads what it has to and no
        other one joins it; otherwise the zeros go around a copy of the input.
        """
        kernel = [n - sum(more) for n, more in zip(wide, grow, strict=True)]
        pads = self.pads(kernel, grow)
        first = tuple(before for before, _ in pads)
        symmetric = tuple((p, p) for p in first)
        if pads == symmetric or list(self._count(x.shape[2:], wide, symmetric)) == list(
            self._extents(x.shape[2:], kernel)
        ):
            return x, first
        return F.pad(x, [n for pair in reversed(pads) for n in pair]), (0,) * self.dims

    def _extents(self, size: Sequence[int], kernel: Sequence[int]) -> Sequence[int]:
        return self._count(size, kernel, self.pads(kernel))

    def _count(self, size: Sequence[int], kernel: Sequence[int], pads: Pads) -> Sequence[int]:
        return output_extents(size, kernel, pads, self.dilation, self.stride)

    def geometry(self, x: Tensor, kernel: Sequence[int], grow: Grow = ()) -> PatchGeometry:
        """Where the patches of this call are taken, for a kernel of extent `kernel` that has grown by `grow`."""
        return _geometry(self, tuple(x.shape[2:]), tuple(kernel), grow)

    def narrow(self, x: Tensor, weight: Tensor) -> Tensor:
        size, g, kernel = x.shape[0], self.groups, weight.shape[2:]
        positions = math.prod(self._extents(x.shape[2:], kernel))
        one_tap = math.prod(kernel) == 1 and positions >= current().few_columns
        if one_tap and self.geometry(x, kernel).is_input:
            # A convolution to eight channels reads its input no faster than one to thirty.
            rows = x.reshape(size * g, -1, positions)
            right = weight.to(x.dtype).reshape(g, weight.shape[0] // g, -1)
            right = right.repeat(size, 1, 1) if g > 1 else right.expand(size, -1, -1)
            return torch.bmm(right, rows)
        return self(x, weight).reshape(size * g, -1, positions)

    def mixed_taps(
        self, x: Tensor, slot: Slot, weight: Tensor, mix: Tensor, grow: Grow, update: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        g, o, i, t = slot.canonical_shape
        geometry = self.geometry(x, slot.kernel, grow)
        if not self.shares_patches:
            seen = patches_by_slicing(x, geometry)
            mixed = (mix.to(x.dtype).unsqueeze(1) @ seen.flatten(3)).reshape(x.shape[0], -1, *seen.shape[3:])
            kernel = slot.canonical(weight).reshape(g * o, i * t, *(1,) * self.dims)
            return PLAIN[self.dims](mixed, kernel.to(mixed.dtype), groups=g)
        dtype = layer_dtype(x)
        flat = weight.reshape(o, i * t).to(dtype)
        if update is not None:
            left, right = update
            update = left.to(dtype), right.flatten(2).transpose(1, 2).flatten(1).to(dtype)
        with full_precision(x.device):
            return mixed_convolution(x.to(dtype), flat, mix.to(dtype), update, geometry)

    def working_set(self, x: Tensor, layer: LayerSize, route: str) -> int:
        patches = x.shape[1] * layer.grown * layer.positions
        plain = route != "product" or (layer.grown == 1 and layer.positions == math.prod(x.shape[2:]))
        return layer.numbers + (0 if plain else patches)

    def per_sample(self, x: Tensor, parts: Sequence[Part], route: str, grow: Grow, recompute: bool) -> Tensor:
        if self.traced:
            ((part, materialise),) = parts
            return per_sample.traced_product(self, part, materialise(), grow)
        if route == "grouped":
            return per_sample.grouped(self, x, parts, grow, recompute)
        return per_sample.product(self, x, parts, grow, recompute)


@dataclass(frozen=True)
class TransposedConvolution(_AnyConvolution):
    """`F.conv_transpose{1,2,3}d`: x `(B, C, …)` -> `(B, O, …)`. Its kernel never grows, and its taps are not mixed."""

    kind = "conv_transpose"
    output_padding: tuple[int, ...] = ()

    def __call__(self, x: Tensor, weight: Tensor, *, grow: Grow = (), groups: int | None = None) -> Tensor:
        """The convolution. `groups` replaces the call's own."""
        weight = weight.to(x.dtype) if not torch.is_autocast_enabled(x.device.type) else weight
        groups = self.groups if groups is None else groups
        return TRANSPOSED[self.dims](
            x, weight, None, self.stride, self.padding, self.output_padding, groups, self.dilation
        )

    def tiles(self, kernel: Sequence[int]) -> bool:
        plain = set(self.padding) | set(self.output_padding) == {0} and set(self.dilation) == {1}
        return plain and self.stride == tuple(kernel)

    def _extents(self, size: Sequence[int], kernel: Sequence[int]) -> Sequence[int]:
        return size  # a transposed convolution's work is at its input's positions

    def narrow(self, x: Tensor, weight: Tensor) -> Tensor:
        y = self(x, weight)
        return y.reshape(x.shape[0] * self.groups, -1, math.prod(y.shape[2:]))

    def mixed_taps(
        self, x: Tensor, slot: Slot, weight: Tensor, mix: Tensor, grow: Grow, update: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        raise AssertionError("a transposed convolution reads no patches: its tap mixings are applied to the weight")

    def per_sample(self, x: Tensor, parts: Sequence[Part], route: str, grow: Grow, recompute: bool) -> Tensor:
        if self.traced:
            ((part, materialise),) = parts
            return per_sample.traced_product(*self.as_plain(part, materialise()), ())
        if route == "grouped":
            return per_sample.grouped(self, x, parts, grow, recompute)
        return per_sample.transposed_product(self, x, parts, recompute)

    def as_plain(self, x: Tensor, weight: Tensor) -> tuple[Convolution, Tensor, Tensor]:
        """The same as a plain convolution, with one weight per sample `(B, *S)`.

        Zeros go between the pixels, the kernel is reversed, and its inputs and outputs change places.
        """
        for axis, s in enumerate(self.stride, 2):
            between = torch.stack((x, *[torch.zeros_like(x)] * (s - 1)), axis + 1).flatten(axis, axis + 1)
            x = between.narrow(axis, 0, (x.shape[axis] - 1) * s + 1)
        pads: list[int] = []
        for k, p, more, d in zip(weight.shape[3:], self.padding, self.output_padding, self.dilation, strict=True):
            assert isinstance(p, int), "a transposed convolution's padding is a number"
            edge = d * (k - 1) - p
            pads = [edge, edge + more, *pads]
        size, g, kernel = x.shape[0], self.groups, weight.shape[3:]
        split = weight.reshape(size, g, -1, weight.shape[2], *kernel).transpose(2, 3)
        split = split.flip(tuple(range(4, 4 + self.dims)))
        plain = Convolution(self.dims, (1,) * self.dims, (0,) * self.dims, self.dilation, g, self.traced)
        return plain, F.pad(x, pads), split.reshape(size, -1, split.shape[3], *kernel)


@cached_unless_tracing
def _size(op: _AnyConvolution, shape: Sequence[int], weight: Sequence[int], grow: Grow, training: bool) -> LayerSize:
    first, second, *kernel = weight
    g = op.groups
    outputs, inputs = (second, first // g) if op.kind == "conv_transpose" else (first // g, second)
    wide = [k + sum(more) for k, more in zip(kernel, grow, strict=True)] if grow else kernel
    extents = op._extents(shape[2:], kernel)
    return LayerSize(
        math.prod(extents), g, outputs, inputs, math.prod(kernel), math.prod(wide), op.kind, extents[-1],
        None if op.traced else shape[0], training, op.traced, op.tiles(kernel),
    )  # fmt: skip


@cached_unless_tracing
def _geometry(op: Convolution, size: Sequence[int], kernel: Sequence[int], grow: Grow) -> PatchGeometry:
    wide = tuple(k + sum(more) for k, more in zip(kernel, grow or ((0, 0),) * op.dims, strict=True))
    pads = op.pads(kernel, grow)
    extents = output_extents(size, wide, pads, op.dilation, op.stride)
    return PatchGeometry(wide, pads, op.stride, op.dilation, tuple(extents))


def with_room(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], slot: Slot) -> dict[str, Any]:
    """Arguments of a plain convolution by name, with room for its weight where that is wider than the slot's.

    Args:
        func: `F.conv1d`, `F.conv2d` or `F.conv3d`.
        args: its positional arguments.
        kwargs: its keyword arguments.
        slot: the frozen weight's.
    """
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    wide, n = given["weight"].shape[2:], slot.spatial
    extra = [m - k for m, k in zip(wide, slot.kernel, strict=True)]
    if any(extra):
        padding = given.get("padding", 0)
        pads = padding if isinstance(padding, str) else each(padding, n)
        stride, dilation = each(given.get("stride", 1), n), each(given.get("dilation", 1), n)
        op = Convolution(n, stride, pads, dilation, given.get("groups", 1))
        given["input"], given["padding"] = op.with_room(given["input"], wide, slot.sides(extra))
    return given

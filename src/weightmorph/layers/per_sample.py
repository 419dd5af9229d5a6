"""Convolutions with one dense weight per sample: as groups, as a batched product over patches, as tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..slots import Grow
from .base import Part
from .memory import layer_dtype, rematerialise, reshape_owned
from .patches import PatchGeometry, im2col, patches_by_slicing
from .processor import current

__all__ = ["AnyConvolution", "grouped", "product", "traced_product", "transposed_product"]


class AnyConvolution(Protocol):
    """What is needed of a convolution here: a call that can take other groups, and where its patches are."""

    kind: ClassVar[str]

    @property
    def dims(self) -> int:
        """Spatial axes."""

    @property
    def groups(self) -> int:
        """G."""

    def __call__(self, x: Tensor, weight: Tensor, *, grow: Grow = (), groups: int | None = None) -> Tensor:
        """The convolution; `groups` replaces the call's own."""


class PlainConvolution(AnyConvolution, Protocol):
    """A convolution with patches."""

    def geometry(self, x: Tensor, kernel: Sequence[int], grow: Grow = ()) -> PatchGeometry:
        """Where the patches are taken."""


class Transposed(AnyConvolution, Protocol):
    """A transposed convolution, which may be a tiling, and is a plain convolution of a spread input."""

    def tiles(self, kernel: Sequence[int]) -> bool:
        """Does every input pixel fill a tile of its own?"""

    def as_plain(self, x: Tensor, weight: Tensor) -> tuple[PlainConvolution, Tensor, Tensor]:
        """The plain convolution, its input and its weight."""


def grouped(op: AnyConvolution, x: Tensor, parts: Sequence[Part], grow: Grow, recompute: bool) -> Tensor:
    """The samples become groups: `(B·C)` input channels, each sample's weight on its own."""
    outputs, idle = [], 0
    for part, materialise in parts:
        weight = materialise()
        if weight.dim() == op.dims + 2:  # no term of it depends on the sample
            outputs.append(op(part, weight, grow=grow))
            continue
        idle = _idle_outputs(op, weight)
        if idle:
            materialise = partial(_padded, materialise, idle, op.dims)
            weight = materialise()
        with rematerialise((weight, materialise), when=recompute):
            outputs.append(_as_groups(op, part, weight, grow))
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return y[:, :-idle].contiguous() if idle else y


def _as_groups(op: AnyConvolution, x: Tensor, weight: Tensor, grow: Grow) -> Tensor:
    size = x.shape[0]
    merged = x.reshape(1, size * x.shape[1], *x.shape[2:])
    y = op(merged, weight.reshape(-1, *weight.shape[2:]), groups=size * op.groups, grow=grow)
    return reshape_owned(y, (size, y.shape[1] // size, *y.shape[2:]))


def _idle_outputs(op: AnyConvolution, weight: Tensor) -> int:
    """Outputs of zeros to add to each sample's, so that all of them fill whole vector units.

    A grouped convolution with 12 outputs a group takes twice as long as one with 16, its backward pass four times.
    Eight alone have kernels of their own, except in the backward pass in three dimensions.
    """
    outputs, inputs = weight.shape[1:3]
    if weight.device.type != "cpu" or op.groups > 1 or op.kind != "conv" or inputs < 8:
        return 0
    training = weight.requires_grad and torch.is_grad_enabled()
    if outputs == 8 and not (op.dims == 3 and inputs > 8 and training):
        return 0
    return -outputs % current().vector


def _padded(materialise: Callable[[], Tensor], idle: int, dims: int) -> Tensor:
    """Weights with so many outputs of zeros: `(b, O, I, …)`."""
    return F.pad(materialise(), (0, 0) * (dims + 1) + (0, idle))


def product(op: PlainConvolution, x: Tensor, parts: Sequence[Part], grow: Grow, recompute: bool) -> Tensor:
    """Patches times weights, a few samples at a time: `(b·G, O, I·T)` and `(b·G, I·T, P)`."""
    dtype, g, size = layer_dtype(x), op.groups, x.shape[0]
    outputs, y, start = [], None, 0
    for part, materialise in parts:
        part, weight = part.to(dtype), materialise()
        kernel = weight.shape[-op.dims :]
        if grow:
            kernel = torch.Size(k - sum(more) for k, more in zip(kernel, grow, strict=True))
        geometry = op.geometry(part, kernel, grow)
        b, width, p = part.shape[0], weight.shape[-op.dims - 2], geometry.positions
        typed = weight.to(dtype)
        rows = typed.expand(b, *typed.shape[-op.dims - 2 :]).reshape(b * g, width // g, -1)
        patches = partial(_patches, part, geometry, (b * g, rows.shape[2], p))
        seen = patches()
        if not torch.is_grad_enabled():
            y = x.new_empty(size * g, width // g, p, dtype=dtype) if y is None else y
            torch.bmm(rows, seen, out=y[start : start + b * g])
        else:
            recipes = [(typed, materialise)] if typed.dtype == weight.dtype else []
            recipes += [] if geometry.is_input else [(seen, patches)]
            with rematerialise(*recipes, when=recompute):
                outputs.append(torch.bmm(rows, seen))
        start += b * g
    total = y if y is not None else outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return reshape_owned(total, (size, width, *geometry.extents))


def _patches(x: Tensor, geometry: PatchGeometry, shape: tuple[int, int, int]) -> Tensor:
    """Patches `(b·G, I·T, P)`, or the input itself where it is them."""
    return (x if geometry.is_input else im2col(x, geometry)).reshape(shape)


def transposed_product(op: Transposed, x: Tensor, parts: Sequence[Part], recompute: bool) -> Tensor:
    """A transposed convolution as a product: tile by tile, or as a plain convolution where tiles overlap."""
    outputs = []
    for part, materialise in parts:
        weight = materialise()
        with rematerialise((weight, materialise), when=recompute):
            if op.tiles(weight.shape[-op.dims :]):
                outputs.append(_tiled(op, part, weight))
            else:
                wide = weight.expand(part.shape[0], *weight.shape[-op.dims - 2 :])
                outputs.append(traced_product(*op.as_plain(part, wide), ()))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _tiled(op: Transposed, x: Tensor, weight: Tensor) -> Tensor:
    """Each pixel times a weight is a tile; the tiles are laid side by side."""
    size, g, extents, n = x.shape[0], op.groups, x.shape[2:], op.dims
    inputs, outputs, *kernel = weight.shape[-n - 2 :]
    rows = weight.to(x.dtype).expand(size, *weight.shape[-n - 2 :]).reshape(size * g, inputs // g, -1)
    pixels = x.reshape(size * g, inputs // g, -1).transpose(1, 2)
    tiles = torch.bmm(pixels, rows).reshape(-1, *extents, outputs, *kernel)
    # (B·G, P0, P1, O, k0, k1) -> (B·G, O, P0, k0, P1, k1). Two numbers that stay side by side are copied as one.
    pair = kernel[-1] == 2 and tiles.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    order = [axis for a in range(n) for axis in (1 + a, 2 + n + a)]
    if pair:
        image = torch.view_as_real(torch.view_as_complex(tiles).permute(0, 1 + n, *order[:-1]).contiguous())
    else:
        image = tiles.permute(0, 1 + n, *order).contiguous()
    return reshape_owned(image, (size, g * outputs, *(m * k for m, k in zip(extents, kernel, strict=True))))


def traced_product(op: PlainConvolution, x: Tensor, weight: Tensor, grow: Grow) -> Tensor:
    """Patches times weights `(B, *S)`, in operations that a graph with an open batch size can hold."""
    size, g = x.shape[0], op.groups
    kernel = [k - sum(more) for k, more in zip(weight.shape[3:], grow or ((0, 0),) * op.dims, strict=True)]
    geometry = op.geometry(x, kernel, grow)
    seen = patches_by_slicing(x, geometry).reshape(size, g, -1, geometry.positions)
    rows = weight.to(x.dtype).reshape(size, g, weight.shape[1] // g, -1)
    return (rows @ seen).reshape(size, weight.shape[1], *geometry.extents)

"""A slot: one conditioned tensor of the base, and how its axes read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .errors import SelectionError

__all__ = ["Grow", "Kind", "Slot"]

Grow = tuple[tuple[int, int], ...]
"""Taps added before and after a kernel, along each spatial axis."""

Kind = Literal["conv", "conv_transpose", "linear", "norm", "bias", "other"]


@dataclass(frozen=True)
class Slot:
    """One conditioned tensor: dotted name, owning layer, and how its axes read.

    Every weight has one *canonical* form `(G, O, I, T)`: groups, outputs of a group, inputs of a group, taps. Families
    are written once, in that form.

    | layer | weight | canonical |
    |---|---|---|
    | `Conv2d` | `(G·O, I, h, w)` | T = h·w |
    | `ConvTranspose2d` | `(G·I, O, h, w)` | T = h·w |
    | `Linear` | `(O, I)` | G = 1, T = 1 |
    | `Linear` that reads a flattened map | `(O, I·h·w)` | G = 1, T = h·w |
    | a norm's scale, or a bias | `(O,)` | G = I = T = 1 |

    Attributes:
        name: as in the base's `state_dict`.
        layer: the owning layer's dotted name.
        attribute: the tensor's name on that layer.
        kind: which of the layouts above.
        shape: of the tensor.
        groups: G.
        kernel: extent along each spatial axis; for a `Linear` after a flatten, of the flattened map.
        taps: position of every tap along each spatial axis, in pixels of the map that the layer reads, measured from
            the point of that map that lies under the output grid's centre.
        pixel: how many pixels of the network's input one pixel of that map spans.
        fixed: the taps have fixed positions on the image (a `Linear` after a flatten), so a translation moves them.
        growable: the kernel can grow, because the layer's `padding` can grow by the same amount.
        one_sided: the kernel can also grow on one side only, because the layer's forward is torch's own and can pad
            the two sides by different amounts.
        normed: the layer's output goes only to a norm layer whose scale is conditioned, as an example shows. To scale
            the rows as well would have the same effect twice.
        explicit: the user selected it by name, so that a transform that does not fit is an error and not a note.

    Example:
        >>> slot = Slot("c.weight", "c", "weight", "conv", (4, 3, 3, 3), groups=2, kernel=(3, 3))
        >>> slot.canonical_shape, slot.outputs, slot.n_taps
        ((2, 2, 3, 9), 4, 9)
    """

    name: str
    layer: str
    attribute: str
    kind: Kind
    shape: tuple[int, ...]
    groups: int = 1
    kernel: tuple[int, ...] = ()
    taps: tuple[tuple[float, ...], ...] = ()
    pixel: float = 1.0
    fixed: bool = False
    growable: bool = False
    one_sided: bool = False
    explicit: bool = False
    normed: bool = False

    def __post_init__(self) -> None:
        if self.kernel and not self.taps:
            centred = tuple(tuple(j - (k - 1) / 2 for j in range(k)) for k in self.kernel)
            object.__setattr__(self, "taps", centred)

    @classmethod
    def of(cls, shape: Sequence[int], name: str = "weight") -> Slot:
        """A slot known by its shape alone: a vector, a matrix, or a convolution's weight.

        Example:
            >>> Slot.of((6, 3, 5, 5)).canonical_shape
            (1, 6, 3, 25)
        """
        shape = tuple(shape)
        kind: Kind = "conv" if len(shape) > 2 else "linear" if len(shape) == 2 else "norm"
        layer, _, attribute = name.rpartition(".")
        return cls(name, layer, attribute, kind, shape, kernel=shape[2:], explicit=True)

    @property
    def spatial(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def n_taps(self) -> int:
        """T: number of taps."""
        return math.prod(self.kernel)

    @property
    def outputs(self) -> int:
        """G·O: output channels, features, or the length of a vector."""
        g, o, _, _ = self.canonical_shape
        return g * o

    @property
    def canonical_shape(self) -> tuple[int, int, int, int]:
        """The canonical form `(G, O, I, T)`: groups, outputs of a group, inputs of a group, taps."""
        if self.kind == "conv":
            return self.groups, self.shape[0] // self.groups, self.shape[1], self.n_taps
        if self.kind == "conv_transpose":
            return self.groups, self.shape[1], self.shape[0] // self.groups, self.n_taps
        if self.kind == "linear":
            return 1, self.shape[0], self.shape[1] // self.n_taps, self.n_taps
        rows = self.shape[0] if self.shape else 1
        return 1, rows, math.prod(self.shape[1:]), 1

    @property
    def depthwise(self) -> bool:
        """Each output reads one input channel."""
        return self.kind in ("conv", "conv_transpose") and self.groups > 1 and self.canonical_shape[2] == 1

    def canonical(self, weight: Tensor) -> Tensor:
        """The weight in canonical form: `(*B, *S) -> (*B, G, O, I, T)`."""
        g, o, i, t = self.canonical_shape
        batch = weight.shape[: weight.dim() - len(self.shape)]
        if self.kind == "conv_transpose":
            return weight.reshape(*batch, g, i, o, t).transpose(-3, -2)
        return weight.reshape(*batch, g, o, i, t)

    def restore(self, canonical: Tensor, grow: Grow = ()) -> Tensor:
        """`(*B, G, O, I, T) -> (*B, *S)`, with a kernel that is wider by `grow`.

        O and I may differ from the slot's own, so that the factors of a low-rank weight can be restored too.
        """
        batch = canonical.shape[:-4]
        g, o, i, _ = canonical.shape[-4:]
        kernel = self.grown(grow)
        if self.kind == "other" and self.shape:
            return canonical.reshape(*batch, o, *self.shape[1:])
        if self.kind == "conv_transpose":
            return canonical.transpose(-3, -2).reshape(*batch, g * i, o, *kernel)
        if self.kind == "conv":
            return canonical.reshape(*batch, g * o, i, *kernel)
        if self.kind == "linear":
            return canonical.reshape(*batch, o, -1)
        return canonical.reshape((*batch, *self.shape))  # a tuple, because a scalar has no axes

    def rows(self, gain: Tensor) -> Tensor:
        """One number per output `(*B, G·O)`, in the shape in which it multiplies a canonical weight."""
        g, o, _, _ = self.canonical_shape
        return gain.reshape(*gain.shape[:-1], g, o, 1, 1)

    def grown(self, grow: Grow) -> tuple[int, ...]:
        """The kernel's extent with more taps before and after it."""
        return tuple(k + sum(more) for k, more in zip(self.kernel, grow, strict=True)) if grow else self.kernel

    def sides(self, extra: Sequence[int]) -> Grow:
        """`extra` taps along each axis, divided before and after the kernel; an odd one where it makes taps symmetric.

        Example:
            >>> Slot("w", "", "w", "conv", (1, 1, 3), kernel=(3,), taps=((-1.5, -0.5, 0.5),)).sides((1,))
            ((0, 1),)
        """
        before = [n // 2 + n % 2 * (places[0] + places[-1] > 0) for n, places in zip(extra, self.taps, strict=True)]
        return tuple((first, n - first) for first, n in zip(before, extra, strict=True))

    def positions(self, grow: Grow = ()) -> Tensor:
        """Positions of the taps: `(T, n)` in float64, with x in the last column.

        Example:
            >>> Slot.of((1, 1, 1, 3)).positions().tolist()
            [[0.0, -1.0], [0.0, 0.0], [0.0, 1.0]]
        """
        axes = []
        for places, (before, after) in zip(self.taps, grow or ((0, 0),) * self.spatial, strict=True):
            step = places[1] - places[0] if len(places) > 1 else 1.0
            axes.append([places[0] + step * j for j in range(-before, len(places) + after)])
        grids = torch.meshgrid(*[torch.tensor(a, dtype=torch.float64) for a in axes], indexing="ij")
        return torch.stack([g.flatten() for g in grids], -1)

    def as_map(self, kernel: Sequence[int], *, pixel: float = 1.0) -> Slot:
        """The same `Linear`, read as a kernel over a flattened map of extent `kernel`.

        Args:
            kernel: extent of the map along each axis.
            pixel: how many pixels of the network's input one pixel of the map spans.

        Raises:
            SelectionError: if the weight's columns are no multiple of that extent.

        Example:
            >>> Slot.of((5, 18)).as_map((3, 3)).canonical_shape
            (1, 5, 2, 9)
        """
        kernel = tuple(kernel)
        if self.kind != "linear" or self.shape[1] % math.prod(kernel):
            raise SelectionError(
                f"layer {self.layer!r}: weight of shape {self.shape} cannot be read as a kernel over a flattened map "
                f"of extent {kernel}: expected a Linear whose {self.shape[-1]} columns are a multiple of "
                f"{math.prod(kernel)}"
            )
        return replace(self, kernel=kernel, taps=(), pixel=pixel, fixed=True)

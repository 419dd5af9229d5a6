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

    Whatever the layer, a weight has one *canonical* form `(G, O, I, T)`: groups, outputs of a group, inputs of a
    group, taps. A `Conv2d` weight `(G·O, I, h, w)`, a `ConvTranspose2d` weight `(G·I, O, h, w)`, a `Linear` weight
    `(O, I)` (one tap, or the `h·w` positions of the flattened map that it reads) and a norm's scale `(O,)` all do.
    Families are written once, in that form.

    Attributes:
        name: as in the base's `state_dict`.
        layer: the owning layer's dotted name.
        attribute: the tensor's name on that layer.
        kind: which of the layouts above.
        shape: of the tensor.
        groups: G.
        kernel: extent along each spatial axis; for a `Linear` after a flatten, of the flattened map.
        taps: position of every tap along each spatial axis, in pixels of the map that the layer reads, measured from
            the point that the output grid's centre rests on.
        pixel: how many pixels of the network's input one pixel of that map spans.
        fixed: the taps have places on the image (a `Linear` after a flatten), so a translation moves them.
        growable: the kernel may be given a larger support by padding it and the layer's `padding` alike.
        one_sided: also by taps on one side of it, for the layer's forward is torch's own, which pads each side by an
            amount of its own if it is told to.
        normed: the layer's output goes to a norm layer and nowhere else, whose own scale is conditioned (an example
            shows it): a scale of the rows would do again what that one does.
        explicit: the user asked for it by name, so what does not fit is an error and not a note.
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
        """T."""
        return math.prod(self.kernel)

    @property
    def outputs(self) -> int:
        """G·O: output channels, features, or the length of a vector."""
        g, o, _, _ = self.canonical_shape
        return g * o

    @property
    def canonical_shape(self) -> tuple[int, int, int, int]:
        """`(G, O, I, T)`."""
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
        """`(*B, *S) -> (*B, G, O, I, T)`."""
        g, o, i, t = self.canonical_shape
        batch = weight.shape[: weight.dim() - len(self.shape)]
        if self.kind == "conv_transpose":
            return weight.reshape(*batch, g, i, o, t).transpose(-3, -2)
        return weight.reshape(*batch, g, o, i, t)

    def restore(self, canonical: Tensor, grow: Grow = ()) -> Tensor:
        """`(*B, G, O, I, T) -> (*B, *S)`, the support being wider by `grow`.

        O and I may differ from the slot's own: the factors of a low-rank weight are laid out by the same rule.
        """
        batch = canonical.shape[:-4]
        g, o, i, _ = canonical.shape[-4:]
        kernel = self.grown(grow)
        if self.kind == "conv_transpose":
            return canonical.transpose(-3, -2).reshape(*batch, g * i, o, *kernel)
        if self.kind == "conv":
            return canonical.reshape(*batch, g * o, i, *kernel)
        if self.kind == "linear":
            return canonical.reshape(*batch, o, -1)
        return canonical.reshape(*batch, *self.shape)

    def rows(self, gain: Tensor) -> Tensor:
        """One number per output `(*B, G·O)`, in the shape in which it multiplies a canonical weight."""
        g, o, _, _ = self.canonical_shape
        return gain.reshape(*gain.shape[:-1], g, o, 1, 1)

    def grown(self, grow: Grow) -> tuple[int, ...]:
        """The kernel's extent with more taps before and after it."""
        return tuple(k + sum(more) for k, more in zip(self.kernel, grow, strict=True)) if grow else self.kernel

    def sides(self, extra: Sequence[int]) -> Grow:
        """So many more taps along each axis, before and after the kernel: an odd one where it makes taps symmetric.

        Example:
            >>> Slot("w", "", "w", "conv", (1, 1, 3), kernel=(3,), taps=((-1.5, -0.5, 0.5),)).sides((1,))
            ((0, 1),)
        """
        before = [n // 2 + n % 2 * (places[0] + places[-1] > 0) for n, places in zip(extra, self.taps, strict=True)]
        return tuple((first, n - first) for first, n in zip(before, extra, strict=True))

    def positions(self, grow: Grow = ()) -> Tensor:
        """Where the taps are: `(T, n)` in float64, the last column being x.

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
        """The same `Linear` read as a kernel over a flattened map of extent `kernel`.

        Raises:
            SelectionError: if the weight's columns are no multiple of that extent.
        """
        kernel = tuple(kernel)
        if self.kind != "linear" or self.shape[1] % math.prod(kernel):
            raise SelectionError(
                f"layer {self.layer!r}: weight of shape {self.shape} cannot be read as a kernel over a flattened map "
                f"of extent {kernel}: expected a Linear whose {self.shape[-1]} columns are a multiple of "
                f"{math.prod(kernel)}"
            )
        return replace(self, kernel=kernel, taps=(), pixel=pixel, fixed=True)

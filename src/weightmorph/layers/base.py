"""What every layer operation offers: the function itself, and the ways in which a term's work moves to the activations.

A layer operation `y = op(x, w)` is one call of a function that consumes a weight: its geometry and nothing else.
Convolution, transposed convolution and linear layer are three classes of this one shape, so that terms and routes are
written once. `B` is the batch, `(G, O, I, T)` the weight's canonical form, `P` output positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from ..slots import Grow, Slot
from .cost import LayerSize

__all__ = ["LayerOp", "Part"]

Part = tuple[Tensor, Callable[[], Tensor]]
"""A few samples' input, and the function that materialises their weights `(b, *S)`."""


class LayerOp(ABC):
    """One call of a function that consumes a weight.

    Attributes:
        groups: G.
        traced: True if the call is part of a graph that is being traced, in which the batch size stays open.
        shares_patches: True if a tap mixing and a low-rank update can read the same patches.
    """

    kind: ClassVar[str]
    groups: int
    traced: bool
    shares_patches: bool = False

    @abstractmethod
    def __call__(self, x: Tensor, weight: Tensor, *, grow: Grow = ()) -> Tensor:
        """The function itself, with one weight for all samples, whose kernel may have grown."""

    @abstractmethod
    def size(self, x: Tensor, slot: Slot, grow: Grow, training: bool) -> LayerSize:
        """The layer in numbers, for an input and a weight with this layout."""

    @abstractmethod
    def per_output(self, value: Tensor, y: Tensor) -> Tensor:
        """Numbers `(B, G·O)`, or `(G·O,)` for all samples, in the shape and type in which they multiply `y`."""

    @abstractmethod
    def low_rank(self, x: Tensor, narrow: Tensor, left: Tensor, gain: Tensor, y: Tensor | None) -> Tensor:
        r"""$y_b + U\,(g_b \odot (V * x_b))$.

        Args:
            x: the input, the batch first.
            narrow: V in the layout of the layer's weight, with r outputs a group.
            left: U `(G, O, r)`.
            gain: g `(B, r)`.
            y: what is added to, and may be written into; None for nothing.
        """

    @abstractmethod
    def weight_sets(self, x: Tensor, bank: Tensor, mix: Tensor, y: Tensor | None) -> Tensor:
        r"""$y_b + \sum_d m_{bd}\,\mathrm{op}(x_b, B_d)$: bank `(D, *S)`, mix `(B, D)`."""

    @abstractmethod
    def mixed_taps(
        self, x: Tensor, slot: Slot, weight: Tensor, mix: Tensor, grow: Grow, update: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        r"""The layer with its kernel's taps mixed per sample: $W\,(M_b X_b)$, $X_b$ being what each tap sees.

        Args:
            x: the input, the batch first.
            slot: how the weight reads.
            weight: the frozen weight.
            mix: M `(B, T, T')`.
            grow: taps by which T' is wider than T.
            update: a low-rank update that reads the same patches, `(B, O, r)` and `(r, I, *kernel)`; only where
                `shares_patches`.
        """

    @abstractmethod
    def per_sample(self, x: Tensor, parts: Sequence[Part], route: str, grow: Grow, recompute: bool) -> Tensor:
        """The layer with one dense weight per sample, a few samples at a time.

        Args:
            x: the whole input.
            parts: chunks of it, with the weights of each.
            route: `"grouped"` or `"product"`.
            grow: taps by which the weights are wider than the frozen one.
            recompute: let the backward pass recompute weights and patches rather than save them.
        """

    def working_set(self, x: Tensor, layer: LayerSize, route: str) -> int:
        """Numbers that one sample adds to memory on a dense route: its weight, and patches if there are any."""
        return layer.numbers

    def with_bias(self, y: Tensor, bias: Tensor) -> Tensor:
        """`y` plus a bias `(G·O,)`, or `(B, G·O)` with one per sample. May write into `y`."""
        return y + self.per_output(bias, y)

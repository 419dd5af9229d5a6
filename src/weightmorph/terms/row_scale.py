"""A scale for every output of a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..layers import Cost, LayerOp, LayerSize
from ..slots import Grow
from .base import Term, widen

__all__ = ["RowScale"]


@dataclass(frozen=True, eq=False)
class RowScale(Term):
    r"""$\Delta_{o} = s_o W_{o}$. `weight (*S)`, `gain (*B, G·O)`.

    On the activations: $s \odot \mathrm{op}(x, W)$.
    """

    weight: Tensor
    gain: Tensor

    coefficient_field = "gain"
    coefficient_dims = 1
    absorbs = 1
    reads_frozen_output = True

    @property
    def scale(self) -> Tensor:
        return self.gain

    def dense(self) -> Tensor:
        return self.slot.restore(self.slot.rows(self.gain) * self.slot.canonical(self.weight))

    def add_to(self, total: Tensor, grow: Grow, owned: bool) -> Tensor:
        if self.slot.kind == "conv_transpose":  # its rows are not its outputs
            return super().add_to(total, grow, owned)
        rows, gain = widen(self.weight, grow).reshape(total.shape[-2:]), self.gain.unsqueeze(-1)
        return total.addcmul_(rows, gain) if self.writable(total, owned) else torch.addcmul(total, rows, gain)

    def apply(self, op: LayerOp, x: Tensor, y: Tensor | None) -> Tensor:
        own = op(x, self.weight)
        own = own * op.per_output(self.gain, own)
        return own if y is None else y + own

    def with_frozen(self, grow: Grow) -> RowScale:
        return replace(self, gain=1 + self.gain)

    def merged(self, other: Any) -> RowScale:
        return replace(self, gain=self.gain + other.gain)

    @classmethod
    def applies_to(cls, layer: LayerSize, constant: bool = False) -> bool:
        return True

    @classmethod
    def cost_of_applying(cls, cost: Cost, size: int) -> None:
        # Its gradient sums over positions.
        cost.elements(cost.layer.outputs_of_all, 2.0 if cost.frozen_absorbed else 1.0, back=10.0)

"""A low-rank update."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..layers import Cost, LayerOp, LayerSize
from ..slots import Grow
from .base import Term, TermKind, widen

__all__ = ["LowRankUpdate"]


@dataclass(frozen=True, eq=False)
class LowRankUpdate(Term):
    r"""$\Delta = U\,\mathrm{diag}(g)\,V$, one matrix per group.

    `left (G, O, r)`, `gain (*B, r)`, `right (G, r, I·T)`; a depthwise weight is one `(G·O, T)` matrix instead. On the
    activations: $U\,(g \odot \mathrm{op}(x, V))$, a narrow layer to r channels and a small product.
    """

    left: Tensor
    gain: Tensor
    right: Tensor

    coefficient_field = "gain"
    coefficient_dims = 1
    stays_aside = True

    @property
    def kind(self) -> TermKind:
        return TermKind(type(self), self.gain.shape[-1])

    def dense(self) -> Tensor:
        product = (self.left * self.gain[..., None, None, :]) @ self.right
        return self.slot.restore(product.reshape(*self.batch, *self.slot.canonical_shape))

    def add_to(self, total: Tensor, grow: Grow, owned: bool) -> Tensor:
        slot = self.slot
        if slot.kind == "conv_transpose" or not (slot.depthwise or self.left.shape[0] == 1):
            return super().add_to(total, grow, owned)
        left, right = self.left[0] * self.gain.unsqueeze(-2), self.right[0]
        if grow:
            right = widen(right.reshape(-1, *slot.shape[1:]), grow).flatten(1)
        ready = self.writable(total, owned)
        if left.dim() == 2 and total.dim() == 2:
            return total.addmm_(left, right) if ready else torch.addmm(total, left, right)
        size = self.batch[0] if self.batch else total.shape[0]
        left, right = left.expand(size, *left.shape[-2:]), right.expand(size, *right.shape)
        return total.baddbmm_(left, right) if ready else torch.baddbmm(total, left, right)

    def apply(self, op: LayerOp, x: Tensor, y: Tensor | None) -> Tensor:
        slot = self.slot
        if slot.depthwise:  # a product of columns and rows, per channel: r weight sets
            bank = self.left[0].T.unsqueeze(-1) * self.right[0].unsqueeze(1)
            return op.weight_sets(x, slot.restore(bank.reshape(-1, *slot.canonical_shape)), self.gain, y)
        g, r, _ = self.right.shape
        narrow = slot.restore(self.right.reshape(g, r, *slot.canonical_shape[2:]))
        return op.low_rank(x, narrow, self.left, self.gain, y)

    def merged(self, other: Any) -> LowRankUpdate | None:
        if self.batch != other.batch:
            return None
        return replace(
            self,
            left=torch.cat((self.left, other.left), -1),
            gain=torch.cat((self.gain, other.gain), -1),
            right=torch.cat((self.right, other.right), -2),
        )

    def patch_factors(self, grow: Grow) -> tuple[Tensor, Tensor] | None:
        if self.slot.kind != "conv" or self.slot.groups > 1 or not self.batch:
            return None
        right = self.right[0].unflatten(-1, (self.slot.canonical_shape[2], *self.slot.kernel))
        return self.left[0] * self.gain.unsqueeze(-2), widen(right, grow)

    @classmethod
    def applies_to(cls, layer: LayerSize, constant: bool = False) -> bool:
        return constant or not layer.depthwise

    @classmethod
    def cost_of_applying(cls, cost: Cost, size: int) -> None:
        if not cost.layer.depthwise:
            cost.narrow(size)
            return
        for _ in range(size):
            cost.convolution(cost.layer.frozen_work, weights=0, back=2.0)
            cost.elements(cost.layer.outputs_of_all, 2.0)

    @classmethod
    def cost_of_adding(cls, cost: Cost, size: int) -> None:
        n = cost.layer.numbers
        passes = 3.0 if cost.layer.kind == "conv_transpose" else 1.0  # its weight is no matrix in its own order
        cost.add(passes * cost.machine.rank_weight * size * n, work=n * size, moved=2 * n, launches=2)

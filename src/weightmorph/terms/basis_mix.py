"""A mixture of weight sets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Cost, LayerOp, LayerSize, reshape_owned
from ..slots import Grow
from .base import Term, TermKind

__all__ = ["BasisMix"]


@dataclass(frozen=True, eq=False)
class BasisMix(Term):
    r"""$\Delta = \sum_d m_d B_d$. `bank (D, *S)`, `mix (*B, D)`.

    On the activations: $\sum_d m_d\,\mathrm{op}(x, B_d)$.
    """

    bank: Tensor
    mix: Tensor

    coefficient_field = "mix"
    coefficient_dims = 1

    @property
    def kind(self) -> TermKind:
        return TermKind(type(self), self.mix.shape[-1])

    def dense(self) -> Tensor:
        return (self.mix @ self.bank.reshape(len(self.bank), -1)).reshape((*self.batch, *self.slot.shape))

    def add_to(self, total: Tensor, grow: Grow, owned: bool) -> Tensor:
        if grow or (total.dim() > 2 and not self.batch):
            return super().add_to(total, grow, owned)
        mix, bank = self.mix.reshape(-1, self.mix.shape[-1]), self.bank.reshape(len(self.bank), -1)
        rows = (mix.shape[0], bank.shape[1])
        if self.writable(total, owned):
            return reshape_owned(reshape_owned(total, rows).addmm_(mix, bank), total.shape)
        start = total.reshape(-1, bank.shape[1])  # one row for all samples, or one for each
        return reshape_owned(torch.addmm(start, mix, bank), (*self.batch, *total.shape[-2:]))

    def apply(self, op: LayerOp, x: Tensor, y: Tensor | None) -> Tensor:
        return op.weight_sets(x, self.bank, self.mix, y)

    @classmethod
    def applies_to(cls, layer: LayerSize, constant: bool = False) -> bool:
        return True

    @classmethod
    def cost_of_applying(cls, cost: Cost, size: int) -> None:
        for _ in range(size):
            cost.convolution(cost.layer.frozen_work, weights=0, back=2.0)
            cost.elements(cost.layer.outputs_of_all, 2.0)

    @classmethod
    def cost_of_adding(cls, cost: Cost, size: int) -> None:
        n, machine = cost.layer.numbers, cost.machine
        cost.add((2 * machine.copy + machine.basis_weight * size) * n, work=n * size, moved=2 * n)

"""Rows, biases and norm scales that follow the code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..parameters import ParameterSpace
from ..slots import Slot
from ..weights import Dense, RowScale, Term
from .base import WeightTransform

__all__ = ["Scale"]


class Scale(WeightTransform):
    r"""Scale each output's row of the weight, and shift biases.

    $$W_o(c) = W_o\,(1 + a_o \cdot (c - c_0)), \qquad b_o(c) = b_o + a_o \cdot (c - c_0)$$

    The first for weights and for the scales of norm layers, the second for every bias. $a$ starts at zero.

    Shapes:
        weight `(*S)`, code `(*B, K)` -> `(*B, *S)`.

    Example:
        >>> t = Scale().build((6, 3, 3, 3), code_dim=4)
        >>> t(torch.zeros(6, 3, 3, 3), torch.ones(5, 4)).dense().shape
        torch.Size([5, 6, 3, 3, 3])
    """

    family = "scale"

    def wants(self, slot: Slot, space: ParameterSpace) -> bool:
        return True

    def setup(self, slot: Slot, code_dim: int) -> None:
        self.slope = nn.Parameter(torch.zeros(code_dim, slot.outputs))

    def delta(self, weight: Tensor, code: Tensor) -> Term:
        amount = (code - self.home(code)) @ self.slope
        if self.slot.kind == "bias":
            rows = self.slot.rows(amount)
            return Dense(self.slot, self.slot.restore(rows.expand(*amount.shape[:-1], *self.slot.canonical_shape)))
        return RowScale(self.slot, weight, amount)

    def config(self) -> dict[str, Any]:
        return {"type": "Scale"}

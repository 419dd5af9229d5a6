"""Rows, biases and norm scales that follow the code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..parameters import ParameterSpace
from ..slots import Slot
from ..terms import Dense, RowScale, Term
from .base import Carried

__all__ = ["Scale"]


class Scale(Carried):
    r"""Scale each output's row of the weight, and shift biases.

    $$W_o(c) = W_o\,(1 + a_o \cdot (c - c_0)), \qquad b_o(c) = b_o + a_o \cdot (c - c_0)$$

    The first for weights and for the scales of norm layers, the second for every bias. $a$ starts at zero. A
    convolution whose output goes to a conditioned norm layer and nowhere else (`condition`'s example shows it) is left
    to that norm, which scales and shifts the same channels: one multiply does the work of two. Asked for by name, it is
    scaled all the same.

    Shapes:
        weight `(*S)`, code `(*B, K)` -> `(*B, *S)`.

    Example:
        >>> t = Scale().build((6, 3, 3, 3), code_dim=4)
        >>> t(torch.zeros(6, 3, 3, 3), torch.ones(5, 4)).dense().shape
        torch.Size([5, 6, 3, 3, 3])
    """

    family = "scale"

    def wants(self, slot: Slot, space: ParameterSpace) -> bool:
        return slot.explicit or not slot.normed

    def setup(self, slot: Slot, code_dim: int) -> None:
        self.slope = nn.Parameter(torch.zeros(code_dim, slot.outputs))

    def carrier(self, code: Tensor) -> Tensor:
        return (code - self.home(code)) @ self.slope

    def term(self, weight: Tensor, carrier: Tensor) -> Term:
        if self.slot.kind == "bias":
            shape = self.slot.shape  # one number per row, whatever a row is
            if len(shape) == 1:
                return Dense(self.slot, carrier)
            rows = carrier.reshape(*carrier.shape, *(1,) * (len(shape) - 1))
            return Dense(self.slot, rows.expand(*carrier.shape[:-1], *shape) if shape else rows.squeeze(-1))
        return RowScale(self.slot, weight, carrier)

    @classmethod
    def carriers(cls, members: Sequence[Scale], code: Tensor) -> Sequence[Tensor]:
        amounts = (code - members[0].home(code)) @ torch.cat([m.slope for m in members], 1)
        return tuple(amounts.split([m.slot.outputs for m in members], -1))

    def config(self) -> dict[str, Any]:
        return {"type": "Scale"}

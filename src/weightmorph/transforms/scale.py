"""Rows, biases and norm scales that follow the code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..parameters import ParameterSpace
from ..slots import Slot
from ..terms import Dense, RowScale, Term
from .base import CoefficientTransform

__all__ = ["Scale"]


class Scale(CoefficientTransform):
    r"""Scale each output's row of the weight, and shift biases.

    $$W_o(c) = W_o\,(1 + a_o \cdot (c - c_0)), \qquad b_o(c) = b_o + a_o \cdot (c - c_0)$$

    The first formula is for weights and the scales of norm layers, the second for every bias. $a$ starts at zero. A
    convolution whose output goes only to a conditioned norm layer (`condition`'s example shows it) is not scaled,
    because the norm scales and shifts the same channels. If it was selected by name, it is scaled as well.

    Shapes:
        weight `(*S)`, code `(*B, K)` -> `(*B, *S)`; $a$ is `(K, outputs)`.

    References:
        Lian et al., "Scaling & Shifting Your Features", NeurIPS 2022, arXiv:2210.08823.

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

    def coefficient(self, code: Tensor) -> Tensor:
        return (code - self.anchor_code(code)) @ self.slope

    def term(self, weight: Tensor, coefficient: Tensor) -> Term:
        if self.slot.kind == "bias":
            shape = self.slot.shape  # one number per row, whatever a row is
            if len(shape) == 1:
                return Dense(self.slot, coefficient)
            rows = coefficient.reshape(*coefficient.shape, *(1,) * (len(shape) - 1))
            return Dense(self.slot, rows.expand(*coefficient.shape[:-1], *shape) if shape else rows.squeeze(-1))
        return RowScale(self.slot, weight, coefficient)

    @classmethod
    def coefficients(cls, members: Sequence[Scale], code: Tensor) -> Sequence[Tensor]:
        amounts = (code - members[0].anchor_code(code)) @ torch.cat([m.slope for m in members], 1)
        return tuple(amounts.split([m.slot.outputs for m in members], -1))

    def config(self) -> dict[str, Any]:
        return {"type": "Scale"}

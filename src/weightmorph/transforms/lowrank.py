"""Low-rank updates whose gains depend on the code."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RankError
from ..slots import Slot
from ..terms import LowRankUpdate
from .base import CoefficientTransform
from .gains import check_hidden, gain_difference, gain_differences, gain_network

__all__ = ["LowRank"]


class LowRank(CoefficientTransform):
    r"""Add a rank-$r$ update whose gains depend on the code.

    $$W(c) = W + U\,\mathrm{diag}(g(c) - g(c_0))\,V$$

    The weight is read as an $(O, I)$ matrix, where $I$ is the product of all axes but the output's. A grouped weight is
    one such matrix per group, and all share the gains; a depthwise weight is one (channels, taps) matrix. $g$ is an MLP
    with one hidden layer. $U$ starts at zero, so untrained $W(c) = W$; at the anchor $c_0$ it always is.

    Shapes:
        weight `(*S)`, code `(*B, K)` -> `(*B, *S)`. `*B` may be empty and is never squeezed.

    Args:
        rank: $r$, from 1 to $\min(O, I)$. A slot that `condition` chose by default and that has no room for $r$ gets
            the largest rank it can hold; a tensor that was asked for by name is an error.
        hidden: units in the hidden layer of $g$.

    Raises:
        RankError: if `rank` is below 1 or does not fit the weight (names the layer, its shape and the largest rank).
        TransformError: if `hidden` is no whole number from 1.

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv:2106.09685.

    Example:
        >>> t = LowRank(2).build((6, 3, 3, 3), code_dim=4)
        >>> t(torch.zeros(6, 3, 3, 3), torch.ones(5, 4)).dense().shape
        torch.Size([5, 6, 3, 3, 3])
    """

    family = "lowrank"

    def __init__(self, rank: int, hidden: int = 16) -> None:
        super().__init__()
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise RankError(f"LowRank: expected a rank of 1 or more, got {rank!r}")
        check_hidden("LowRank", hidden)
        self.rank, self.hidden = rank, hidden

    @staticmethod
    def matrix(slot: Slot) -> tuple[int, int, int]:
        """How a slot reads as matrices: `(how many, rows, columns)`."""
        g, o, i, t = slot.canonical_shape
        return (1, g * o, t) if slot.depthwise else (g, o, i * t)

    def setup(self, slot: Slot, code_dim: int) -> None:
        count, rows, columns = self.matrix(slot)
        largest = min(rows, columns)
        if self.rank > largest and slot.explicit:
            raise RankError(
                f"layer {slot.layer or slot.name!r}: LowRank({self.rank}) does not fit a weight of shape {slot.shape}, "
                f"read as {rows} x {columns}: use a rank from 1 to {largest}"
            )
        r = min(self.rank, largest)
        self.left = nn.Parameter(torch.zeros(count, rows, r))
        self.right = nn.Parameter(torch.randn(count, r, columns) / columns**0.5)
        # The difference to the anchor would cancel a last bias.
        self.gains = gain_network(code_dim, r, self.hidden, bias=False)

    def coefficient(self, code: Tensor) -> Tensor:
        return gain_difference(self.gains, code, self.anchor_code(code))

    def term(self, weight: Tensor, coefficient: Tensor) -> LowRankUpdate:
        return LowRankUpdate(self.slot, self.left, coefficient, self.right)

    def batch_key(self) -> Hashable:
        return self.left.shape[-1], self.hidden

    @classmethod
    def coefficients(cls, members: Sequence[LowRank], code: Tensor) -> Sequence[Tensor]:
        return gain_differences([m.gains for m in members], code, members[0].anchor_code(code))

    def config(self) -> dict[str, Any]:
        return {"type": "LowRank", "rank": self.rank, "hidden": self.hidden}

    def extra_repr(self) -> str:
        return f"{self.rank}"

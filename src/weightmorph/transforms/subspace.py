"""Extra weight sets, mixed by the code."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TransformError
from ..slots import Slot
from ..terms import BasisMix
from .base import CoefficientTransform
from .gains import check_hidden, gain_difference, gain_differences, gain_network

__all__ = ["Subspace"]


class Subspace(CoefficientTransform):
    r"""Add a mix of $D$ extra weight sets: the method of Subspace-Configurable Networks, as a residual.

    $$W(c) = W + \sum_{d=1}^{D} (m_d(c) - m_d(c_0))\,B_d, \qquad m = \mathrm{softmax}(\mathrm{MLP}(c))$$

    Each $B_d$ has the shape of $W$ and starts at zero, so untrained $W(c) = W$. It stores $D$ times the base's
    numbers; where that is too many, [`LowRank`][weightmorph.LowRank] comes close with a fraction.

    Shapes:
        weight `(*S)`, code `(*B, K)` -> `(*B, *S)`.

    Args:
        dim: $D$, how many weight sets.
        hidden: units in the hidden layer of the MLP.

    Raises:
        TransformError: if `dim` is below 1.

    References:
        Wang et al., "Subspace-Configurable Networks", CoLLAs 2024, arXiv:2305.13536.

    Example:
        >>> t = Subspace(3).build((6, 3, 3, 3), code_dim=4)
        >>> t(torch.zeros(6, 3, 3, 3), torch.ones(5, 4)).dense().shape
        torch.Size([5, 6, 3, 3, 3])
    """

    family = "subspace"

    def __init__(self, dim: int, hidden: int = 16) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise TransformError(f"Subspace: expected 1 or more weight sets, got {dim!r}")
        check_hidden("Subspace", hidden)
        self.dim, self.hidden = dim, hidden

    def setup(self, slot: Slot, code_dim: int) -> None:
        self.bank = nn.Parameter(torch.zeros(self.dim, *slot.shape))
        # The softmax has one more output than there are weight sets: the share of the base alone. Without it a single
        # set would always have the share 1.
        self.mixer = gain_network(code_dim, self.dim + 1, self.hidden)

    def coefficient(self, code: Tensor) -> Tensor:
        return gain_difference(self.mixer, code, self.anchor_code(code), _shares)

    def term(self, weight: Tensor, coefficient: Tensor) -> BasisMix:
        return BasisMix(self.slot, self.bank, coefficient)

    def batch_key(self) -> Hashable:
        return self.dim, self.hidden

    @classmethod
    def coefficients(cls, members: Sequence[Subspace], code: Tensor) -> Sequence[Tensor]:
        return gain_differences([m.mixer for m in members], code, members[0].anchor_code(code), _shares)

    def config(self) -> dict[str, Any]:
        return {"type": "Subspace", "dim": self.dim, "hidden": self.hidden}

    def extra_repr(self) -> str:
        return f"{self.dim}"


def _shares(scores: Tensor) -> Tensor:
    """The share of each weight set: `(…, D + 1) -> (…, D)`."""
    return torch.softmax(scores, -1)[..., :-1]

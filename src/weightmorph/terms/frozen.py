"""The frozen weight itself, as the term that a sum starts from when no other absorbs it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..layers import LayerOp
from .base import Term

__all__ = ["Frozen"]


@dataclass(frozen=True, eq=False)
class Frozen(Term):
    """$W$. `weight (*S)`."""

    weight: Tensor

    coefficient_field = "weight"

    def dense(self) -> Tensor:
        return self.weight

    def apply(self, op: LayerOp, x: Tensor, y: Tensor | None) -> Tensor:
        own = op(x, self.weight)
        return own if y is None else y + own

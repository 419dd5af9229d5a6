"""Terms without structure: a dense Δ, and a weight that replaces the frozen one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..slots import Grow
from .base import Term

__all__ = ["Dense", "Replacement"]


@dataclass(frozen=True, eq=False)
class Dense(Term):
    """A Δ without structure. `delta (*B, *S)`."""

    delta: Tensor

    coefficient_field = "delta"
    is_dense = True

    @property
    def shift(self) -> Tensor | None:
        return self.delta if len(self.slot.shape) == 1 else None

    def dense(self) -> Tensor:
        return self.delta


@dataclass(frozen=True, eq=False)
class Replacement(Term):
    r"""$\Delta = V - W$: the transform gives the weight itself. `weight (*S)`, `value (*B, *S)`."""

    weight: Tensor
    value: Tensor

    coefficient_field = "value"
    is_dense = True
    replaces = True

    def dense(self) -> Tensor:
        return self.value - self.weight

    def frozen_plus(self, grow: Grow) -> tuple[Tensor, bool] | None:
        # V itself and not W + (V - W), which would round.
        rows = self.slot.shape[0] if self.slot.shape else 1
        return None if grow else (self.value.reshape(*self.batch, rows, -1), False)

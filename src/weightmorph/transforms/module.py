"""What the families have in common that call a module for the weight itself."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import TypeVar

from torch import Tensor, nn

from ..errors import TransformError
from ..terms import Dense, Replacement, Term
from .base import WeightTransform, zero_at_anchor

__all__ = ["ModuleTransform"]

Self = TypeVar("Self", bound="ModuleTransform")


class ModuleTransform(WeightTransform):
    r"""A family that computes a value $V(W, c)$ with a module, which replaces the weight or is added to it.

    $$W(c) = V(W, c) \qquad\text{or, anchored,}\qquad W(c) = W + V(W, c) - V(W, c_0)$$
    """

    module: nn.Module | None

    @abstractmethod
    def value(self, weight: Tensor, code: Tensor) -> Tensor:
        """$V$: weight `(*S)`, code `(*B, K)` -> `(*B, *S)`."""

    def delta(self, weight: Tensor, code: Tensor) -> Term:
        value = self.value(weight, code)
        if not self.anchored:
            return Replacement(self.slot, weight, value)
        anchor = self.anchor_code(code)
        return Dense(self.slot, zero_at_anchor(value - self.value(weight, anchor), code, anchor))

    def _copy(self: Self) -> Self:
        # All slots share a user's module, so that the gradient arrives in the very object that was passed.
        return copy.deepcopy(self, {id(self.module): self.module})

    def _checked(self, value: object, shape: tuple[int, ...], asked: str, advice: str = "") -> Tensor:
        """The module's output, if it has the shape that it must have; `asked` says which, for the message."""
        if isinstance(value, Tensor) and tuple(value.shape) == shape:
            return value
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TransformError(
            f"layer {self.slot.layer or self.slot.name!r}: {type(self.module).__name__} must {asked} {shape}, got "
            f"{got}{advice}"
        )

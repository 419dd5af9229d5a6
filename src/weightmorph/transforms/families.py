"""The built transforms of a model, as a module tree whose keys read: family, slot name, tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import NoGradientError, TransformError
from ..parameters import ParameterSpace
from ..slots import Slot
from ..weights import WeightExpression
from .base import WeightTransform

__all__ = ["Families"]


class _Branch(nn.Module):
    """A part of a dotted name."""


class Families(nn.Module):
    """For every slot, the transforms that want it, in the recipe's order.

    Two members of one family (`LowRank(2) + LowRank(8)`) are told apart by a number: `lowrank`, `lowrank_2`.
    """

    def __init__(self, recipe: WeightTransform, slots: Sequence[Slot], space: ParameterSpace) -> None:
        super().__init__()
        self.slots: dict[str, tuple[str, ...]] = {}
        # The same modules by slot, for a call must not walk dotted names. A plain dict registers nothing twice.
        self.built: dict[str, tuple[WeightTransform, ...]] = {}
        counts: dict[str, int] = {}
        for part in recipe.parts:
            counts[part.family] = counts.get(part.family, 0) + 1
            key = part.family if counts[part.family] == 1 else f"{part.family}_{counts[part.family]}"
            for slot in slots:
                if part.wants(slot, space):
                    built = part.build(slot, space=space)
                    self._put(f"{key}.{slot.name}", built)
                    self.slots[slot.name] = (*self.slots.get(slot.name, ()), f"{key}.{slot.name}")
                    self.built[slot.name] = (*self.built.get(slot.name, ()), built)

    def _put(self, path: str, module: nn.Module) -> None:
        *branches, leaf = path.split(".")
        here: nn.Module = self
        for name in branches:
            if name not in here._modules:
                # Past add_module, which refuses names that are attributes of nn.Module ("type", "half" …).
                here._modules[name] = _Branch()
            here = here._modules[name]  # type: ignore[assignment]
        here._modules[leaf] = module

    def of(self, slot: Slot) -> tuple[WeightTransform, ...]:
        """The transforms of one slot."""
        return self.built[slot.name]

    def named(self) -> dict[str, tuple[str, WeightTransform]]:
        """Every built transform by its path `family.slot`, with the slot's name."""
        return {
            path: (slot, built)
            for slot, paths in self.slots.items()
            for path, built in zip(paths, self.built[slot], strict=True)
        }

    def expression(self, slot: Slot, weight: Tensor, code: Tensor) -> WeightExpression:
        """W(θ) of one slot: weight `(*S)`, code `(*B, K)`."""
        return WeightExpression(slot, weight, tuple(t.delta(weight, code) for t in self.of(slot)))

    def check(self, slot: Slot, expression: WeightExpression) -> None:
        """Refuse an expression that lost its gradient or is not finite.

        Raises:
            NoGradientError: if a transform with trainable tensors gave one that does not depend on them.
            TransformError: if it holds NaN or infinity.
        """
        for transform, term in zip(self.of(slot), expression.terms, strict=True):
            name = type(transform).__name__
            inner = getattr(transform, "module", None)
            name = f"{name}({type(inner).__name__})" if inner is not None else name
            if any(p.requires_grad for p in transform.parameters()) and not any(t.requires_grad for t in term.tensors):
                raise NoGradientError(
                    f"layer {slot.layer or slot.name!r}: {name} gave a weight that does not depend on its trainable "
                    "tensors, so they would get no gradient. The likely cause is .data, torch.no_grad(), .detach() or "
                    "nn.Parameter(output) inside it; return the computed tensor itself"
                )
            made = [t.detach() for t in term.tensors if t.requires_grad]
            wrong = sum(int((~torch.isfinite(t)).sum()) for t in made)
            if wrong:
                raise TransformError(
                    f"layer {slot.layer or slot.name!r}: {name} gave a weight that is not finite "
                    f"({wrong:,} numbers of it are not); lower the learning rate, or look for a division or a "
                    "logarithm in a module of your own"
                )

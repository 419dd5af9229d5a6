"""The built transforms of a model, as a module tree whose keys read: family, slot name, tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NoGradientError, TransformError
from ..parameters import ParameterSpace
from ..slots import Slot
from ..terms import Term, WeightExpression
from .base import Carried, WeightTransform

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
        self.together = self._groups()

    def _groups(self) -> list[tuple[type[Carried], list[tuple[str, int]], list[Any]]]:
        """Transforms that make their carriers together: class, (slot, position among the slot's), the transforms."""
        places = [(name, n) for name, row in self.built.items() for n in range(len(row))]
        found: dict[Any, list[tuple[str, int]]] = {}
        for name, n in places:
            transform = self.built[name][n]
            # A class of the user's that only inherits the batched form may have changed what it stands for.
            if isinstance(transform, Carried) and "carriers" in vars(type(transform)):
                found.setdefault((type(transform), transform.alike()), []).append((name, n))
        return [(kind, row, [self.built[name][n] for name, n in row]) for (kind, _), row in found.items()]

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

    def expressions(
        self, slots: Sequence[Slot], weights: Mapping[str, Tensor], code: Tensor
    ) -> dict[str, WeightExpression]:
        """W(θ) of every slot, the code side of all of them together: the fast form of `expression`."""
        made: dict[tuple[str, int], Tensor] = {}
        for kind, places, members in self.together:
            made |= zip(places, kind.carriers(members, code), strict=True)

        def term(name: str, n: int, transform: WeightTransform) -> Term:
            carrier = made.get((name, n))
            if carrier is None or not isinstance(transform, Carried):
                return transform.delta(weights[name], code)
            return transform.term(weights[name], carrier)

        return {
            slot.name: WeightExpression(
                slot, weights[slot.name], tuple(term(slot.name, n, t) for n, t in enumerate(self.of(slot)))
            )
            for slot in slots
        }

    def check(self, expressions: Mapping[str, WeightExpression]) -> None:
        """Refuse expressions that lost their gradient or, on a CPU, are not finite.

        Elsewhere the values are not looked at, for that would wait for the device on every call.

        Raises:
            NoGradientError: if a transform with trainable tensors gave one that does not depend on them.
            TransformError: if it holds NaN or infinity.
        """
        known = {place for _, places, _ in self.together for place in places}
        for name, expression in expressions.items():
            for n, (transform, term) in enumerate(zip(self.built[name], expression.terms, strict=True)):
                # What makes its carriers together is ours, and keeps its gradient.
                if (name, n) not in known:
                    _refuse_lost_gradient(transform, term, expression.slot)
        values = [t.detach() for e in expressions.values() for term in e.terms for t in term.tensors if t.requires_grad]
        # A finite sum has no term that is not; one that is not is looked into.
        on_cpu = bool(values) and values[0].device.type == "cpu"
        if on_cpu and not math.isfinite(float(torch.stack([t.sum() for t in values]).sum())):
            _refuse_not_finite(self.built, expressions)


def _called(transform: WeightTransform) -> str:
    inner = getattr(transform, "module", None)
    name = type(transform).__name__
    return f"{name}({type(inner).__name__})" if inner is not None else name


def _refuse_lost_gradient(transform: WeightTransform, term: Term, slot: Slot) -> None:
    if any(p.requires_grad for p in transform.parameters()) and not any(t.requires_grad for t in term.tensors):
        raise NoGradientError(
            f"layer {slot.layer or slot.name!r}: {_called(transform)} gave a weight that does not depend on its "
            "trainable tensors, so they would get no gradient. The likely cause is .data, torch.no_grad(), .detach() "
            "or nn.Parameter(output) inside it; return the computed tensor itself"
        )


def _refuse_not_finite(
    built: Mapping[str, Sequence[WeightTransform]], expressions: Mapping[str, WeightExpression]
) -> None:
    for name, expression in expressions.items():
        for transform, term in zip(built[name], expression.terms, strict=True):
            made = [t.detach() for t in term.tensors if t.requires_grad]
            wrong = sum(int((~torch.isfinite(t)).sum()) for t in made)
            if wrong:
                raise TransformError(
                    f"layer {expression.slot.layer or name!r}: {_called(transform)} gave a weight that is not finite "
                    f"({wrong:,} numbers of it are not); lower the learning rate, or look for a division or a "
                    "logarithm in a module of your own"
                )

"""The built transforms of a model, as a module tree whose keys read: family, slot name, tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import NoGradientError, TransformError
from ..parameters import ParameterSpace
from ..slots import Slot
from ..terms import Term, WeightExpression
from .base import CoefficientTransform, WeightTransform

__all__ = ["Group", "TransformTree"]

Place = tuple[str, int]
"""A slot's name, and the position of a transform among the slot's transforms."""


class Group(NamedTuple):
    """Transforms of many slots whose coefficients are computed at once."""

    family: type[CoefficientTransform]
    places: list[Place]
    members: list[Any]


class _Branch(nn.Module):
    """A part of a dotted name."""


class TransformTree(nn.Module):
    """For every slot, the transforms that want it, in the recipe's order.

    Two members of one family (`LowRank(2) + LowRank(8)`) get numbered keys: `lowrank`, `lowrank_2`.

    Args:
        recipe: the transform or sum of transforms.
        slots: the conditioned tensors.
        space: the parameters.

    Attributes:
        paths: per slot name, the keys of its transforms in this tree.
        built: per slot name, the transforms.
        groups: the transforms whose coefficients are computed at once.

    Example:
        >>> from weightmorph import Angle, LowRank, Scale
        >>> space = ParameterSpace({"angle": Angle("deg")})
        >>> tree = TransformTree(LowRank(2) + Scale(), [Slot.of((6, 3), name="fc.weight")], space)
        >>> tree.paths["fc.weight"]
        ('lowrank.fc.weight', 'scale.fc.weight')
    """

    def __init__(self, recipe: WeightTransform, slots: Sequence[Slot], space: ParameterSpace) -> None:
        super().__init__()
        self.paths: dict[str, tuple[str, ...]] = {}
        # The same modules by slot, so that a call need not walk dotted names. A plain dict registers nothing twice.
        self.built: dict[str, tuple[WeightTransform, ...]] = {}
        counts: dict[str, int] = {}
        for part in recipe.parts:
            counts[part.family] = counts.get(part.family, 0) + 1
            key = part.family if counts[part.family] == 1 else f"{part.family}_{counts[part.family]}"
            for slot in slots:
                if part.wants(slot, space):
                    built = part.build(slot, space=space)
                    self._put(f"{key}.{slot.name}", built)
                    self.paths[slot.name] = (*self.paths.get(slot.name, ()), f"{key}.{slot.name}")
                    self.built[slot.name] = (*self.built.get(slot.name, ()), built)
        self.groups = self._grouped()

    def _put(self, path: str, module: nn.Module) -> None:
        *branches, leaf = path.split(".")
        here: nn.Module = self
        for name in branches:
            if name not in here._modules:
                # Not add_module, which refuses names that are attributes of nn.Module ("type", "half" …).
                here._modules[name] = _Branch()
            here = here._modules[name]  # type: ignore[assignment] # never None: it was just put there
        here._modules[leaf] = module

    def _grouped(self) -> list[Group]:
        groups: dict[Any, Group] = {}
        for name, row in self.built.items():
            for n, transform in enumerate(row):
                family = type(transform)
                # A user's class that only inherits `coefficients` may have another `coefficient`.
                if isinstance(transform, CoefficientTransform) and "coefficients" in vars(family):
                    group = groups.setdefault((family, transform.batch_key()), Group(type(transform), [], []))
                    group.places.append((name, n))
                    group.members.append(transform)
        return list(groups.values())

    def of(self, slot: Slot) -> tuple[WeightTransform, ...]:
        """The transforms of one slot."""
        return self.built[slot.name]

    def named(self) -> dict[str, tuple[str, WeightTransform]]:
        """Every built transform by its path `family.slot`, with the slot's name."""
        return {
            path: (slot, built)
            for slot, paths in self.paths.items()
            for path, built in zip(paths, self.built[slot], strict=True)
        }

    def expression(self, slot: Slot, weight: Tensor, code: Tensor) -> WeightExpression:
        """W(θ) of one slot: weight `(*S)`, code `(*B, K)`."""
        return WeightExpression(slot, weight, tuple(t.delta(weight, code) for t in self.of(slot)))

    def expressions(
        self, slots: Sequence[Slot], weights: Mapping[str, Tensor], code: Tensor
    ) -> dict[str, WeightExpression]:
        """W(θ) of every slot, with the coefficients of each group computed at once.

        Args:
            slots: the slots to give.
            weights: the frozen weights by slot name, each `(*S)`.
            code: `(*B, K)`.

        Returns:
            by slot name, what `expression` gives.
        """
        coefficients: dict[Place, Tensor] = {}
        for family, places, members in self.groups:
            coefficients |= zip(places, family.coefficients(members, code), strict=True)

        def term(name: str, n: int, transform: WeightTransform) -> Term:
            coefficient = coefficients.get((name, n))
            if coefficient is None or not isinstance(transform, CoefficientTransform):
                return transform.delta(weights[name], code)
            return transform.term(weights[name], coefficient)

        return {
            slot.name: WeightExpression(
                slot, weights[slot.name], tuple(term(slot.name, n, t) for n, t in enumerate(self.of(slot)))
            )
            for slot in slots
        }

    def check(self, expressions: Mapping[str, WeightExpression]) -> None:
        """Refuse expressions that lost their gradient or, on a CPU, are not finite.

        On other devices the values are not looked at, because that would wait for the device on every call.

        Raises:
            NoGradientError: if a transform with trainable tensors gave one that does not depend on them.
            TransformError: if it holds NaN or infinity.
        """
        grouped = {place for group in self.groups for place in group.places}
        for name, expression in expressions.items():
            for n, (transform, term) in enumerate(zip(self.built[name], expression.terms, strict=True)):
                # Families that compute their coefficients at once are our own and keep the gradient.
                if (name, n) not in grouped:
                    _refuse_lost_gradient(transform, term, expression.slot)
        values = [t.detach() for e in expressions.values() for term in e.terms for t in term.tensors if t.requires_grad]
        # If the sum of all numbers is finite, so is each of them; only if it is not are they looked at one by one.
        on_cpu = bool(values) and values[0].device.type == "cpu"
        if on_cpu and not math.isfinite(float(torch.stack([t.sum() for t in values]).sum())):
            _refuse_not_finite(self.built, expressions)


def _described(transform: WeightTransform) -> str:
    module = getattr(transform, "module", None)
    name = type(transform).__name__
    return f"{name}({type(module).__name__})" if module is not None else name


def _refuse_lost_gradient(transform: WeightTransform, term: Term, slot: Slot) -> None:
    if any(p.requires_grad for p in transform.parameters()) and not any(t.requires_grad for t in term.tensors):
        raise NoGradientError(
            f"layer {slot.layer or slot.name!r}: {_described(transform)} gave a weight that does not depend on its "
            "trainable tensors, so they would get no gradient. The likely cause is .data, torch.no_grad(), .detach() "
            "or nn.Parameter(output) inside it; return the computed tensor itself"
        )


def _refuse_not_finite(
    built: Mapping[str, Sequence[WeightTransform]], expressions: Mapping[str, WeightExpression]
) -> None:
    for name, expression in expressions.items():
        for transform, term in zip(built[name], expression.terms, strict=True):
            tensors = [t.detach() for t in term.tensors if t.requires_grad]
            wrong = sum(int((~torch.isfinite(t)).sum()) for t in tensors)
            if wrong:
                raise TransformError(
                    f"layer {expression.slot.layer or name!r}: {_described(transform)} gave a weight that is not "
                    f"finite ({wrong:,} numbers of it are not); lower the learning rate, or look for a division or a "
                    "logarithm in a module of your own"
                )

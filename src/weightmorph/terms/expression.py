"""The weight expression: a frozen weight, and the terms that are added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..errors import TransformError
from ..layers import full_precision
from ..slots import Grow, Slot
from .base import Term, TermKind, beyond, widen
from .frozen import Frozen
from .tap_mix import wider

__all__ = ["WeightExpression"]


@dataclass(frozen=True, eq=False)
class WeightExpression:
    r"""$W(\theta) = W + \sum_i \Delta_i$ of one slot.

    [`dense`][weightmorph.terms.WeightExpression.dense] is the slow and obvious tensor, the oracle of every route that
    never makes it; [`materialise`][weightmorph.terms.WeightExpression.materialise] is the fast way to that tensor.

    Attributes:
        slot: the tensor.
        base: the frozen weight `(*S)`.
        terms: what is added to it.
        batch: `*B`: empty if θ is shared, `(B,)` if there is one per sample.
        grow: taps by which W(θ) is wider than W; empty where it is not.
    """

    slot: Slot
    base: Tensor
    terms: tuple[Term, ...]
    batch: tuple[int, ...] = field(init=False, compare=False)
    grow: Grow = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # Computed once, because a call asks often.
        batch: tuple[int, ...] = ()
        grow: Grow = ()
        for term in self.terms:
            if batch and term.batch not in ((), batch):
                raise TransformError(
                    f"layer {self.slot.layer or self.slot.name!r}: the terms of one weight must have the same number "
                    f"of settings, got {batch[0]} and {term.batch[0]}"
                )
            batch = batch or term.batch
            if term.grow:
                grow = wider(grow, term.grow)
        object.__setattr__(self, "batch", batch)
        object.__setattr__(self, "grow", grow)

    @property
    def kinds(self) -> tuple[TermKind, ...]:
        """The terms for the cost rule."""
        return tuple([term.kind for term in self.terms])

    @property
    def requires_grad(self) -> bool:
        """Does anything in it carry a gradient?"""
        return any(v.requires_grad for t in self.terms for v in t.tensors)

    def dense(self) -> Tensor:
        """W(θ) term by term: `(*B, *S)`. At the anchor of an anchored transform it is `base`, bit for bit."""
        return self.total(self.base, self.terms)

    def total(self, start: Tensor | None, terms: Sequence[Term]) -> Tensor:
        """`start` (the base, or None) plus some of the terms, on the expression's common support."""
        first = next((t for t in terms if t.replaces), None)
        if first is not None and start is not None:
            # V itself and not W + (V - W), which would round.
            start, terms = first.coefficient, [t for t in terms if t is not first]
        total = None if start is None else widen(start, self.grow)
        for term in terms:
            piece = widen(term.dense(), beyond(self.grow, term.grow))
            total = piece if total is None else total + piece
        assert total is not None, "an expression has a base or a term"
        return total

    def materialise(self, terms: Sequence[Term] | None = None) -> Tensor:
        """W(θ) as a tensor, in as few passes over it as its terms allow: `(*B, *S)`.

        The computation is in the weights' own precision: under autocast the layer casts, as it casts the frozen weight.

        Args:
            terms: those to add; None for all.
        """
        with full_precision(self.base.device):
            return self._materialise(merge(self.terms if terms is None else terms))

    def _materialise(self, terms: Sequence[Term]) -> Tensor:
        slot, grow = self.slot, self.grow
        shape = (*slot.shape[:2], *slot.grown(grow)) if slot.kernel and slot.kind != "linear" else slot.shape
        start = next(((t, both) for t in terms if (both := t.frozen_plus(grow)) is not None), None)
        if start is None:
            rows = shape[0] if shape else 1
            total, owned, rest = widen(self.base, grow).reshape(rows, -1), False, terms
        else:
            first, (total, owned) = start
            rest = [t for t in terms if t is not first]
        for term in rest:
            total, owned = term.add_to(total, grow, owned), True
        return total.reshape((*total.shape[:-2], *shape))

    def simplified(self, join_patches: bool = False) -> tuple[Term, ...]:
        """Fewer terms, whose sum is W(θ) itself, in the order in which they are applied to activations.

        Terms of one class are merged, and one that can takes the frozen weight in.

        Args:
            join_patches: a tap mixing also takes in a low-rank update that reads the same patches.
        """
        terms = merge(self.terms)
        first: Term | None = None
        for term in terms:  # dynamo does not know `max` with a key
            if term.absorbs > (0 if first is None else first.absorbs):
                first = term
        if first is None:
            return (Frozen(self.slot, self.base), *terms)
        others = [t for t in terms if t is not first]
        start = first.with_frozen(self.grow)
        if not join_patches:
            return (start, *others)
        rest = []
        for term in others:
            joined = start.joined(term)
            if joined is None:
                rest.append(term)
            else:
                start = joined
        return (start, *rest)

    def expand_batch(self, size: int) -> WeightExpression:
        """A shared W(θ) as that of so many samples, without a copy."""
        return replace(self, terms=tuple(t.expand_batch(size) for t in self.terms))

    def take(self, index: Tensor) -> WeightExpression:
        """Row `index[i]` becomes row i (the way from distinct settings back to samples)."""
        return replace(self, terms=tuple(t.take(index) if t.batch else t for t in self.terms))


def merge(terms: Sequence[Term]) -> list[Term]:
    """The terms with those of one class merged where they can be."""
    if len({type(t) for t in terms}) == len(terms):
        return list(terms)
    merged: list[Term] = []
    for term in terms:
        for number, known in enumerate(merged):
            one = known.merged(term) if type(known) is type(term) else None
            if one is not None:
                merged[number] = one
                break
        else:
            merged.append(term)
    return merged

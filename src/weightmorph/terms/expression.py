r"""Weight expressions: $W(\theta) = W + \sum_i \Delta_i$, each $\Delta_i$ knowing its structure.

An expression can always say [`dense`][weightmorph.terms.WeightExpression.dense], the slow and obvious tensor; that
is the oracle of every route in [`execution`][weightmorph.execution] that never makes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..slots import Grow, Slot

__all__ = ["BasisMix", "Dense", "LowRankUpdate", "RowScale", "TapMix", "Term", "WeightExpression", "Whole", "beyond"]


@dataclass(frozen=True)
class Term(ABC):
    """One Δ, shared `()` or per sample `(B,)`. Fields named in `per_sample` carry the batch axis, if there is one."""

    slot: Slot

    @property
    @abstractmethod
    def carrier(self) -> tuple[Tensor, int]:
        """The tensor that depends on θ, and how many axes it has when θ is shared."""

    @property
    def batch(self) -> tuple[int, ...]:
        """`*B`: empty, or `(B,)`."""
        tensor, dims = self.carrier
        return tuple(tensor.shape[: tensor.dim() - dims])

    @property
    def grow(self) -> Grow:
        """Taps by which Δ is wider than W; empty where it is not."""
        return ()

    @abstractmethod
    def dense(self) -> Tensor:
        """The tensor: `(*B, *S)`, with the grown kernel if there is one."""

    def take(self, index: Tensor) -> Term:
        """Row `index[i]` of the batch becomes row i: `(D, …)` to `(B, …)`."""
        return self._carrying(self.carrier[0].index_select(0, index))

    def split(self, step: int, runs: int) -> list[Term]:
        """The batch in runs of so many samples, as views; a shared term for each run as it is."""
        return [self._carrying(t) for t in self.carrier[0].split(step)] if self.batch else [self] * runs

    def spread(self, size: int) -> Term:
        """A shared term as one of so many samples, all alike."""
        tensor = self.carrier[0]
        return self._carrying(tensor.expand(size, *tensor.shape))

    def _carrying(self, tensor: Tensor) -> Term:
        name = next(key for key, value in vars(self).items() if value is self.carrier[0])
        changed: dict[str, Any] = {name: tensor}
        return replace(self, **changed)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor of the term."""
        return tuple(v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor))


@dataclass(frozen=True)
class RowScale(Term):
    r"""$\Delta_{o} = s_o W_{o}$. `weight (*S)`, `gain (*B, G·O)`."""

    weight: Tensor
    gain: Tensor

    @property
    def carrier(self) -> tuple[Tensor, int]:
        return self.gain, 1

    def dense(self) -> Tensor:
        return self.slot.restore(self.slot.rows(self.gain) * self.slot.canonical(self.weight))


@dataclass(frozen=True)
class LowRankUpdate(Term):
    r"""$\Delta = U\,\mathrm{diag}(g)\,V$, one matrix per group.

    `left (G, O, r)`, `gain (*B, r)`, `right (G, r, I·T)`; a depthwise weight is one `(G·O, T)` matrix instead.
    """

    left: Tensor
    gain: Tensor
    right: Tensor

    @property
    def carrier(self) -> tuple[Tensor, int]:
        return self.gain, 1

    def dense(self) -> Tensor:
        product = (self.left * self.gain[..., None, None, :]) @ self.right
        return self.slot.restore(product.reshape(*self.batch, *self.slot.canonical_shape))


@dataclass(frozen=True)
class TapMix(Term):
    r"""$\Delta_{o,i,t'} = \sum_t W_{o,i,t} D_{t,t'}$, the same mixing for every filter of the layer.

    `weight (*S)`, `mix (*B, T, T')`; $T' > T$ where the support has grown by `more`.
    """

    weight: Tensor
    mix: Tensor
    more: Grow = ()

    @property
    def carrier(self) -> tuple[Tensor, int]:
        return self.mix, 2

    @property
    def grow(self) -> Grow:
        return self.more if any(map(any, self.more)) else ()

    def dense(self) -> Tensor:
        canonical = self.slot.canonical(self.weight)
        g, o, i, t = canonical.shape
        # One product with inner size T, whatever the batch.
        mixed = canonical.reshape(g * o * i, t) @ self.mix
        return self.slot.restore(mixed.reshape(*self.batch, g, o, i, -1), self.grow)


@dataclass(frozen=True)
class BasisMix(Term):
    r"""$\Delta = \sum_d m_d B_d$. `bank (D, *S)`, `mix (*B, D)`."""

    bank: Tensor
    mix: Tensor

    @property
    def carrier(self) -> tuple[Tensor, int]:
        return self.mix, 1

    def dense(self) -> Tensor:
        return (self.mix @ self.bank.flatten(1)).reshape(*self.batch, *self.slot.shape)


@dataclass(frozen=True)
class Dense(Term):
    """A Δ without structure. `delta (*B, *S)`."""

    delta: Tensor

    @property
    def carrier(self) -> tuple[Tensor, int]:
        return self.delta, len(self.slot.shape)

    def dense(self) -> Tensor:
        return self.delta


@dataclass(frozen=True)
class Whole(Term):
    r"""$\Delta = V - W$: a transform that gives the weight itself. `weight (*S)`, `value (*B, *S)`."""

    weight: Tensor
    value: Tensor

    @property
    def carrier(self) -> tuple[Tensor, int]:
        return self.value, len(self.slot.shape)

    def dense(self) -> Tensor:
        return self.value - self.weight


@dataclass(frozen=True)
class WeightExpression:
    """W(θ) of one slot: the frozen weight `base (*S)` and the terms that are added to it.

    Attributes:
        batch: `*B`: empty if θ is shared, `(B,)` if there is one per sample.
        grow: taps by which W(θ) is wider than W; empty where it is not.
    """

    slot: Slot
    base: Tensor
    terms: tuple[Term, ...]
    batch: tuple[int, ...] = field(init=False, compare=False)
    grow: Grow = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # Known from the start, for a call asks often.
        batch: tuple[int, ...] = ()
        grow: Grow = ()
        for term in self.terms:
            batch = batch or term.batch
            if term.grow:
                both = zip(grow or term.grow, term.grow, strict=True)
                grow = tuple((max(b, mine_b), max(a, mine_a)) for (b, a), (mine_b, mine_a) in both)
        object.__setattr__(self, "batch", batch)
        object.__setattr__(self, "grow", grow)

    @property
    def requires_grad(self) -> bool:
        """Does anything in it carry a gradient?"""
        return any(v.requires_grad for t in self.terms for v in t.tensors)

    def dense(self) -> Tensor:
        """The tensor W(θ): `(*B, *S)`. At the anchor of an anchored transform it is `base`, bit for bit."""
        return self.total(self.base, self.terms)

    def total(self, start: Tensor | None, terms: Sequence[Term]) -> Tensor:
        """`start` (the base, or None) plus some of the terms, on the expression's common support."""
        whole = next((t for t in terms if isinstance(t, Whole)), None)
        if whole is not None and start is not None:
            # V itself and not W + (V - W), which would round.
            start, terms = whole.value, [t for t in terms if t is not whole]
        sum_ = None if start is None else widen(start, self.grow)
        for term in terms:
            piece = widen(term.dense(), beyond(self.grow, term.grow))
            sum_ = piece if sum_ is None else sum_ + piece
        assert sum_ is not None, "an expression has a base or a term"
        return sum_

    def spread(self, size: int) -> WeightExpression:
        """A shared W(θ) as that of so many samples, all alike, without a copy."""
        return replace(self, terms=tuple(t.spread(size) for t in self.terms))

    def take(self, index: Tensor) -> WeightExpression:
        """Row `index[i]` becomes row i (the way from distinct settings back to samples)."""
        return replace(self, terms=tuple(t.take(index) if t.batch else t for t in self.terms))


def widen(weight: Tensor, grow: Grow) -> Tensor:
    """Zeros around a kernel: before and after each spatial axis."""
    if not any(map(any, grow)):
        return weight
    return F.pad(weight, [n for more in reversed(grow) for n in more])


def beyond(grow: Grow, own: Grow) -> Grow:
    """What is missing to `grow` where `own` is there."""
    if not own:
        return grow
    return tuple((b - mine_b, a - mine_a) for (b, a), (mine_b, mine_a) in zip(grow, own, strict=True))

"""A mixing of a kernel's taps, the same for every filter of a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..layers import Cost, LayerOp, LayerSize, current, reshape_owned
from ..slots import Grow, Slot
from .base import Term, beyond, widen

__all__ = ["TapMix", "embedding", "mix_filters"]


@dataclass(frozen=True, eq=False)
class TapMix(Term):
    r"""$\Delta_{o,i,t'} = \sum_t W_{o,i,t} D_{t,t'}$.

    `weight (*S)`, `mix (*B, T, T')`; $T' > T$ where the support has grown by `more`. On the activations: $W\,(D X)$,
    $X$ being what each tap sees.
    """

    weight: Tensor
    mix: Tensor
    more: Grow = ()

    coefficient_field = "mix"
    coefficient_dims = 2
    absorbs = 2

    @property
    def grow(self) -> Grow:
        return self.more if any(map(any, self.more)) else ()

    def dense(self) -> Tensor:
        canonical = self.slot.canonical(self.weight)
        g, o, i, t = canonical.shape
        # One product with inner size T, whatever the batch.
        mixed = canonical.reshape(g * o * i, t) @ self.mix
        return self.slot.restore(mixed.reshape(*self.batch, g, o, i, self.mix.shape[-1]), self.grow)

    def apply(self, op: LayerOp, x: Tensor, y: Tensor | None) -> Tensor:
        own = op.mixed_taps(x, self.slot, self.weight, self.mix, self.grow, None)
        return own if y is None else y + own

    def with_frozen(self, grow: Grow) -> TapMix:
        return replace(self, mix=embedding(self.slot, grow, self.mix) + self._on(grow), more=grow)

    def _on(self, grow: Grow) -> Tensor:
        """The mixing on a support that is grown by `grow`."""
        if self.grow == grow:
            return self.mix
        wide = self.mix.reshape(*self.mix.shape[:-1], *self.slot.grown(self.grow))
        return widen(wide, beyond(grow, self.grow)).flatten(self.mix.dim() - 1)

    def frozen_plus(self, grow: Grow) -> tuple[Tensor, bool] | None:
        if self.slot.kind not in ("conv", "linear") or self.grow != grow:
            return None
        mix = embedding(self.slot, grow, self.weight) + self.mix
        filters = self.weight.reshape(-1, self.slot.n_taps)
        rows = self.slot.shape[0]
        matrix = rows, filters.shape[0] // rows * mix.shape[-1]
        return reshape_owned(mix_filters(filters, mix), (*self.batch, *matrix)), True

    def merged(self, other: Any) -> TapMix:
        grow = wider(self.grow, other.grow)
        return replace(self, mix=self._on(grow) + other._on(grow), more=grow)

    def joined(self, other: Term) -> Term | None:
        factors = other.patch_factors(self.grow)
        return None if factors is None else _TapMixAndUpdate(self.slot, self, other)

    @classmethod
    def applies_to(cls, layer: LayerSize, constant: bool = False) -> bool:
        return layer.kind == "linear" or (layer.kind == "conv" and (constant or layer.groups == 1))

    @classmethod
    def cost_of_applying(cls, cost: Cost, size: int) -> None:
        layer = cost.layer
        seen = layer.groups * layer.inputs * layer.positions * layer.grown
        if layer.kind != "linear":
            cost.patches()
        cost.add(cost.machine.mix * layer.taps * seen, work=seen * layer.taps, moved=2 * seen, launches=3)
        cost.convolution(layer.frozen_work, weights=0, back=1.2, product=True)

    @classmethod
    def cost_of_adding(cls, cost: Cost, size: int) -> None:
        layer, n = cost.layer, cost.layer.numbers
        cost.add(cost.machine.tap_weight * layer.taps * n, work=n * layer.taps, moved=n, launches=3)


@dataclass(frozen=True, eq=False)
class _TapMixAndUpdate(Term):
    """A tap mixing, and a low-rank update that reads the same patches: made to be applied, and for nothing else."""

    mixing: TapMix
    update: Term

    @property
    def coefficient(self) -> Tensor:
        return self.mixing.coefficient

    @property
    def batch(self) -> tuple[int, ...]:
        return self.mixing.batch

    @property
    def grow(self) -> Grow:
        return self.mixing.grow

    def dense(self) -> Tensor:
        return self.mixing.dense() + widen(self.update.dense(), beyond(self.grow, self.update.grow))

    def apply(self, op: LayerOp, x: Tensor, y: Tensor | None) -> Tensor:
        mixing = self.mixing
        update = self.update.patch_factors(self.grow)
        own = op.mixed_taps(x, self.slot, mixing.weight, mixing.mix, self.grow, update)
        return own if y is None else y + own


def wider(one: Grow, other: Grow) -> Grow:
    """A support that holds both: taps before and after each axis."""
    if not one or not other:
        return one or other
    return tuple((max(b, other_b), max(a, other_a)) for (b, a), (other_b, other_a) in zip(one, other, strict=True))


def embedding(slot: Slot, grow: Grow, like: Tensor) -> Tensor:
    """Where each tap of W sits among those of W(θ): `(T, T')`, the identity unless the support has grown."""
    t = slot.n_taps
    one = torch.eye(t, dtype=like.dtype, device=like.device)
    return widen(one.reshape(t, 1, *slot.kernel), grow).reshape(t, -1) if grow else one


def mix_filters(filters: Tensor, mix: Tensor) -> Tensor:
    """Filters `(F, T)` times mixings `(*B, T, T')` -> `(*B, F, T')`.

    Example:
        >>> filters, mix = torch.randn(6, 9), torch.randn(4, 9, 9)
        >>> torch.allclose(mix_filters(filters, mix), filters @ mix, atol=1e-5)
        True
    """
    machine = current()
    f, t = filters.shape
    batch, wide = mix.shape[:-2], mix.shape[-1]
    n = machine.filter_chunks
    if not batch and mix.requires_grad and f >= machine.many_filters and f % n == 0 and torch.is_grad_enabled():
        # As one product, the gradient of the mixing would be computed on a single core.
        return reshape_owned(torch.bmm(filters.view(n, -1, t), mix.expand(n, t, wide)), (f, wide))
    thin = machine.thin_products_are_slow and wide < machine.wide_filters and f >= machine.few_filters
    k = 1 if not thin else 4 if wide <= machine.wide_filters // 3 else 2
    if k == 1 or f % k:
        return filters @ mix
    # Several filters at once, by a block-diagonal mixing, so that the product fills a vector unit.
    one = torch.eye(k, dtype=mix.dtype, device=mix.device).reshape(k, 1, k, 1)
    block = (one * mix.unsqueeze(-2).unsqueeze(-4)).reshape(*batch, k * t, k * wide)
    return (filters.reshape(f // k, k * t) @ block).reshape(*batch, f, wide)

"""Which route a layer takes under per-sample θ: a written cost rule.

Costs are multiply-adds per sample, weighted by how far a route falls short of a plain convolution's rate on a CPU. The
batch size does not enter: every cost is proportional to it, and a traced graph must not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..slots import Slot
from ..weights import BasisMix, LowRankUpdate, RowScale, TapMix, Term, WeightExpression, Whole
from .batch import Batch

__all__ = ["Dense", "Layer", "Plan", "Route", "expand", "on_activations", "plan", "split"]

Dense = Literal["grouped", "product"]
Route = Literal["factored", "grouped", "product"]


@dataclass(frozen=True)
class Plan:
    """The route of one layer, its cost relative to the frozen layer, and why.

    `dense` is the route of terms that need a dense weight per sample, also beside factored ones.
    """

    route: Route
    dense: Dense
    cost: float
    reason: str


@dataclass(frozen=True)
class Layer:
    """What the rule looks at: one sample's output positions and the canonical weight `(G, O, I, T)`."""

    positions: int
    groups: int
    outputs: int
    inputs: int
    taps: int
    grown: int
    transposed: bool = False
    tracing: bool = False

    @classmethod
    def of(cls, slot: Slot, positions: int, grow: Sequence[int]) -> Layer:
        """The layer of a slot that gives so many output positions."""
        g, o, i, t = slot.canonical_shape
        if slot.kind == "linear":
            o, i, t = o, i * t, 1
        grown = math.prod(slot.grown(grow)) if slot.kind != "linear" else 1
        return cls(positions, g, o, i, t, grown, slot.kind == "conv_transpose", torch.compiler.is_exporting())

    @property
    def frozen(self) -> int:
        """Multiply-adds of the frozen layer."""
        return self.positions * self.groups * self.outputs * self.inputs * self.taps


def expand(batch: Batch, expression: WeightExpression) -> WeightExpression:
    """One row per sample, where there is one per setting."""
    return expression if batch.index is None or not expression.batch else expression.take(batch.index)


def on_activations(term: Term, transposed: bool = False) -> bool:
    """Can the term's work be done on the activations?"""
    if isinstance(term, LowRankUpdate):
        return not term.slot.depthwise
    if isinstance(term, TapMix):
        return not transposed
    return isinstance(term, RowScale | BasisMix)


def _make(term: Term, layer: Layer) -> float:
    """Multiply-adds to make the term's dense tensor."""
    size = layer.groups * layer.outputs * layer.inputs * layer.taps
    if isinstance(term, TapMix):
        return size * layer.grown
    if isinstance(term, LowRankUpdate):
        return size * term.gain.shape[-1]
    if isinstance(term, BasisMix):
        return size * term.mix.shape[-1]
    return size


def _move(term: Term, layer: Layer) -> float:
    """Weighted multiply-adds of the term on the activations, beyond the frozen layer's own."""
    if isinstance(term, RowScale):
        return layer.positions * layer.groups * layer.outputs
    if isinstance(term, LowRankUpdate):
        r = term.gain.shape[-1]
        return 1.3 * layer.positions * layer.groups * r * (layer.inputs * layer.taps + layer.outputs)
    if isinstance(term, TapMix):
        # A depthwise convolution to T maps per channel, at a fraction of a full convolution's rate, and a 1x1 product.
        depthwise = 4.0 * layer.positions * layer.groups * layer.inputs * layer.taps * layer.grown
        return depthwise + layer.frozen
    if isinstance(term, BasisMix):
        return layer.frozen * term.mix.shape[-1]
    raise AssertionError(f"{type(term).__name__} has no route on activations")


def plan(expression: WeightExpression, layer: Layer) -> Plan:
    """The cheapest exact route for one layer.

    The dense routes make one weight per sample: a batched product over patches where one tap, few input channels or
    fewer positions than outputs make a grouped convolution slow (measured on 13 shapes), the grouped convolution
    elsewhere. The factored route leaves the frozen weight shared and does each term's work on the activations, making
    a dense weight only for terms that have no structure.
    """
    terms = expression.terms
    small = layer.taps == 1 or layer.inputs * layer.groups <= 3 or layer.positions < layer.outputs
    # A grouped convolution with a symbolic number of groups cannot be exported.
    product = layer.tracing or (small and not layer.transposed)
    route: Dense = "product" if product else "grouped"
    wide = layer.frozen * layer.grown / layer.taps
    if product:
        applied = 1.5 * wide + 2.0 * layer.positions * layer.groups * layer.inputs * layer.grown
    else:
        applied = (1.2 if not small else 6.0) * wide
    dense = (applied + sum(_make(t, layer) for t in terms)) / layer.frozen

    moved = [t for t in terms if on_activations(t, layer.transposed)]
    left = [t for t in terms if not on_activations(t, layer.transposed)]
    if not moved or any(isinstance(t, Whole) for t in terms):
        return Plan(route, route, dense, f"{dense:.2f}x the frozen layer, no term has structure")
    cost = layer.frozen + sum(_move(t, layer) for t in moved)
    if left:
        cost += applied + sum(_make(t, layer) for t in left)
    factored = cost / layer.frozen
    if factored < dense:
        return Plan("factored", route, factored, f"{factored:.2f}x the frozen layer against {dense:.2f}x dense")
    return Plan(route, route, dense, f"{dense:.2f}x the frozen layer against {factored:.2f}x factored")


def split(
    batch: Batch, where: str, expression: WeightExpression, chosen: Plan, transposed: bool = False
) -> tuple[list[Term], list[Term]]:
    """The terms that go on the activations and those that need a dense weight per sample; none of the first if all do.

    Where a dense weight would take more memory than the limit, the factored route is taken whatever it costs.

    Raises:
        MemoryLimitError: if there is no such way round.
    """
    terms = expression.terms
    moved = [t for t in terms if on_activations(t, transposed)]
    left = [t for t in terms if not on_activations(t, transposed)]
    whole = any(isinstance(t, Whole) for t in terms)
    numbers, itemsize = expression.base.numel(), expression.base.element_size()
    if chosen.route == "factored" or (not whole and not left and batch.too_large(numbers, itemsize)):
        if not left:
            return moved, left
        advice = "leave out the family that makes it, deselect the layer, or give one θ for the whole batch"
    else:
        moved, left = [], list(terms)
        advice = "use LowRank, Warp or Scale here, which need no dense weight, or give one θ for the whole batch"
    batch.check_memory(numbers, itemsize, where, advice)
    return moved, left

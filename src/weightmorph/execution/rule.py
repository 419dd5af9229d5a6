r"""Which route a layer takes under per-sample θ: a written cost rule.

Three routes are exact for a weight $W + s \odot W + W D + U g V + \dots$ that differs from sample to sample:

- `factored`: the frozen weight stays shared and each term's work moves to the activations: row scales to the output,
  the low rank to a narrow convolution and a small product, tap mixing to patches, a basis to its outputs;
- `grouped`: one dense weight per sample, applied as one convolution whose groups are the samples;
- `product`: one dense weight per sample, times patches.

Where few settings are distinct in a batch, a layer may instead be run setting by setting (`bucketed`).

The last two make weights for a few samples at a time. A low-rank term may stay on the activations beside them. The rule
compares estimates in nanoseconds of one core; only their ratios matter. [`Costs`][weightmorph.execution.costs.Costs]
holds what a step takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, NamedTuple

from ..slots import Grow, Slot
from ..terms import BasisMix, LowRankUpdate, RowScale, TapMix, Term, WeightExpression, Whole
from .costs import COSTS, Costs

__all__ = ["Kind", "Layer", "Plan", "Route", "candidates", "kinds", "plan", "remembered", "spreads"]

Route = Literal["factored", "grouped", "product"]
Side = Literal["activations", "weights"]


@dataclass(frozen=True)
class Plan:
    """The route of one layer, what it is estimated to cost relative to the frozen layer, and why.

    `low_rank` says where a low-rank term's work is done on the dense routes.
    """

    route: Route
    low_rank: Side
    cost: float
    reason: str
    flops: float = 0.0
    """Floating-point operations per sample: two a multiply-add."""
    numbers: float = 0.0
    """Numbers read and written per sample."""

    @property
    def name(self) -> str:
        """The route, and where the low rank goes if that is not said by it."""
        beside = self.route != "factored" and self.low_rank == "activations"
        return f"{self.route}, low rank on activations" if beside else self.route


@dataclass(frozen=True)
class Layer:
    """What the rule looks at: one sample's output positions and the canonical weight `(G, O, I, T)`.

    `run` is the length of a row of output positions, `batch` the number of samples where it may be looked at (a traced
    graph must not depend on it), `training` whether a backward follows, `tiles` whether a transposed convolution's
    outputs lie side by side.
    """

    positions: int
    groups: int
    outputs: int
    inputs: int
    taps: int
    grown: int
    kind: str = "conv"
    run: int = 8
    batch: int | None = None
    training: bool = False
    tracing: bool = False
    tiles: bool = False

    @classmethod
    def of(cls, slot: Slot, positions: int, grow: Grow, batch: int | None = None) -> Layer:
        """The layer of a slot that gives so many output positions."""
        g, o, i, t = slot.canonical_shape
        grown = math.prod(slot.grown(grow))
        if slot.kind == "linear":
            return cls(positions, 1, o, i, t, grown, "linear", batch=batch)
        run = max(1, round(positions ** (1 / max(1, slot.spatial))))
        return cls(positions, g, o, i, t, grown, slot.kind, run, batch)

    @property
    def numbers(self) -> int:
        """Of the weight, with its grown support."""
        return self.groups * self.outputs * self.inputs * self.grown

    @property
    def work(self) -> int:
        """Multiply-adds of the layer with the grown support."""
        return self.positions * self.numbers

    @property
    def depthwise(self) -> bool:
        """One input channel a group."""
        return self.groups > 1 and self.inputs == 1


class Kind(NamedTuple):
    """What the rule needs to know of a term: what it is, and its rank or number of weight sets."""

    name: Literal["rows", "rank", "taps", "basis", "dense", "whole"]
    size: int = 0


def kinds(expression: WeightExpression) -> tuple[Kind, ...]:
    """An expression's terms as the rule sees them."""
    return tuple(map(_kind, expression.terms))


def _kind(term: Term) -> Kind:
    if isinstance(term, LowRankUpdate):
        return Kind("rank", term.gain.shape[-1])
    if isinstance(term, BasisMix):
        return Kind("basis", term.mix.shape[-1])
    return Kind(
        "rows"
        if isinstance(term, RowScale)
        else "taps"
        if isinstance(term, TapMix)
        else "whole"
        if isinstance(term, Whole)
        else "dense"
    )


def structured(kind: Kind, layer: Layer) -> bool:
    """Can the term's work be done on the activations?"""
    if kind.name == "rank":
        return not layer.depthwise
    if kind.name == "taps":
        return layer.kind == "linear" or (layer.kind == "conv" and layer.groups == 1)
    return kind.name in ("rows", "basis")


@dataclass
class _Bill:
    """What a route does, added up: time, multiply-adds, numbers moved, operations."""

    layer: Layer
    time: float = 0.0
    work: float = 0.0
    moved: float = 0.0
    launches: float = 0.0
    costs: Costs = field(default_factory=lambda: COSTS)

    def add(
        self, time: float, *, work: float = 0.0, moved: float = 0.0, launches: float = 1.0, back: float = 2.0
    ) -> None:
        """One step; `back` is what its backward costs relative to it."""
        self.time += time * (1 + back if self.layer.training else 1)
        self.work += work
        self.moved += moved
        self.launches += launches * (2.5 if self.layer.training else 1)

    def convolution(self, work: float, *, weights: float, back: float, product: bool = False) -> None:
        """A convolution or a large product: `work` multiply-adds with a weight of so many numbers."""
        layer = self.layer
        rate = self.costs.depthwise if layer.depthwise else self.costs.multiply_add
        maps = layer.groups * (layer.inputs + layer.outputs) * layer.positions
        laid = 0.0 if product or layer.kind == "linear" else self.costs.stream * maps
        self.add(work * rate + laid, work=work, moved=maps + weights, back=back)

    def elements(self, numbers: float, passes: float = 1.0, back: float = 1.5) -> None:
        """Passes over a tensor."""
        self.add(self.costs.element * numbers * passes, work=numbers * passes, moved=2 * numbers * passes, back=back)

    def patches(self) -> None:
        """Copying what every tap sees; the backward copies it again and adds it up."""
        layer = self.layer
        size = layer.groups * layer.inputs * layer.grown * layer.positions
        self.add(size * (self.costs.patch + self.costs.run / layer.run), moved=2 * size, launches=2, back=2.5)

    def total(self) -> float:
        """Nanoseconds per sample."""
        batch = self.layer.batch
        return self.time + (self.launches * self.costs.launch / batch if batch else 0.0)


def frozen(layer: Layer) -> _Bill:
    """The frozen layer itself."""
    bill = _Bill(layer)
    work = layer.work / layer.grown * layer.taps
    bill.convolution(work, weights=layer.numbers / max(1, layer.batch or 1), back=1.0)
    return bill


def _narrow(bill: _Bill, rank: int) -> None:
    """A convolution to `rank` channels a group, and the product that takes them to the outputs."""
    layer, g = bill.layer, bill.layer.groups
    work = layer.positions * g * layer.inputs * layer.taps * rank
    lanes = work / rank * (rank + (bill.costs.narrow if layer.taps > 1 else bill.costs.narrow_product))
    back = 2.5 if layer.taps > 1 else 3.5
    bill.add(lanes * bill.costs.multiply_add, work=work, moved=layer.positions * g * layer.inputs, back=back)
    bill.elements(layer.positions * g * layer.outputs, back=1.0)
    bill.work += layer.positions * g * layer.outputs * rank
    bill.launches += 1


def _factored(terms: Sequence[Kind], layer: Layer) -> _Bill:
    bill, c = _Bill(layer), COSTS
    out = layer.positions * layer.groups * layer.outputs
    plain = layer.work / layer.grown * layer.taps
    mixes = any(t.name == "taps" for t in terms)
    if mixes:
        seen = layer.groups * layer.inputs * layer.positions * layer.grown
        if layer.kind != "linear":
            bill.patches()
        bill.add(c.mix * layer.taps * seen, work=seen * layer.taps, moved=2 * seen, launches=3)
        bill.convolution(plain, weights=0, back=1.2, product=True)
    if not mixes or any(t.name == "rows" for t in terms):
        bill.convolution(plain, weights=0, back=1.0)
    for term in terms:
        if term.name == "rows":
            bill.elements(out, 2.0 if mixes else 1.0, back=10.0)  # its gradient sums over positions
        elif term.name == "rank":
            _narrow(bill, term.size)
        elif term.name == "basis":
            for _ in range(term.size):
                bill.convolution(plain, weights=0, back=2.0)
                bill.elements(out, 2.0)
    return bill


def _dense(terms: Sequence[Kind], layer: Layer, route: Route, low_rank: Side) -> _Bill:
    bill, c, n = _Bill(layer), COSTS, layer.numbers
    _make(bill, terms, low_rank)
    if route == "grouped":
        lone = layer.inputs == 1 and not layer.depthwise
        bill.convolution(layer.work * (COSTS.lone if lone else 1.0), weights=n, back=2.0)
        bill.add(c.reorder * n, moved=n, launches=2)
    else:
        if layer.tiles:
            bill.elements(layer.groups * layer.outputs * layer.grown * layer.positions)
        elif layer.kind != "linear" and layer.grown > 1:
            bill.patches()
        bill.convolution(layer.work, weights=n, back=2.0, product=True)
    return bill


def _make(bill: _Bill, terms: Sequence[Kind], low_rank: Side) -> None:
    """Making one dense weight."""
    layer, c, n = bill.layer, bill.costs, bill.layer.numbers
    made = 1.0
    for term in terms:
        if term.name == "taps":
            bill.add(c.tap_weight * layer.taps * n, work=n * layer.taps, moved=n, launches=3)
        elif term.name == "rank" and low_rank == "activations":
            _narrow(bill, term.size)
            continue
        elif term.name == "rank":
            laid = 3.0 if layer.kind == "conv_transpose" else 1.0  # its weight is no matrix as it lies
            bill.add(laid * c.rank_weight * term.size * n, work=n * term.size, moved=made * n, launches=2)
        elif term.name == "basis":
            bill.add((2 * c.copy + c.basis_weight * term.size) * n, work=n * term.size, moved=2 * n)
        else:
            bill.add(c.copy * n, work=n, moved=2 * n)
        made = 2.0


@lru_cache(maxsize=4096)
def bucketed(terms: tuple[Kind, ...], layer: Layer, settings: int) -> bool:
    """Is a layer faster run setting by setting, each with a weight of its own, than by the best route per sample?"""
    if not layer.batch:
        return False
    bill, c = _Bill(layer), COSTS
    bill.convolution(layer.work, weights=layer.numbers * settings / layer.batch, back=2.0)
    bill.elements(layer.groups * (layer.inputs + 2 * layer.outputs) * layer.positions)
    one = c.setting_product if layer.kind == "linear" else c.setting
    making = _Bill(replace(layer, batch=None))
    _make(making, terms, "weights")
    making.add(c.reorder * layer.numbers + one, back=2.0)
    whole = bill.time * layer.batch + making.time * settings + making.launches * c.launch
    return whole < remembered(terms, layer).cost * frozen(layer).total() * layer.batch


@lru_cache(maxsize=4096)
def spreads(terms: tuple[Kind, ...], layer: Layer) -> bool:
    """Is making W(θ) for a shared θ dearer than leaving it unmade, for a whole batch of this size?"""
    if not layer.batch or not all(structured(t, layer) for t in terms):
        return False
    making = _Bill(replace(layer, batch=None))
    _make(making, terms, "weights")
    whole = layer.batch * frozen(layer).total() + making.time + making.launches * COSTS.launch
    return layer.batch * _factored(terms, layer).total() < 0.9 * whole


def candidates(terms: Sequence[Kind], layer: Layer) -> list[Plan]:
    """Every exact route of a layer with its cost, the cheapest first."""
    own = frozen(layer).total()

    def priced(route: Route, side: Side, bill: _Bill) -> Plan:
        return Plan(route, side, bill.total() / own, "", 2 * bill.work, bill.moved)

    found = []
    if all(structured(t, layer) for t in terms):
        found.append(priced("factored", "activations", _factored(terms, layer)))
    aside = not layer.depthwise and len(terms) > 1 and any(t.name == "rank" for t in terms)
    sides: list[Side] = ["weights", "activations"] if aside else ["weights"]
    # A grouped convolution with a symbolic number of groups cannot be exported.
    routes: list[Route] = ["product"]
    if layer.kind != "linear" and not layer.tracing:
        overlap = layer.kind == "conv_transpose" and not layer.tiles
        routes = ["grouped"] if overlap or layer.depthwise else ["grouped", "product"]
    found += [priced(route, side, _dense(terms, layer, route, side)) for route in routes for side in sides]
    return sorted(found, key=lambda p: p.cost)


def plan(terms: Sequence[Kind], layer: Layer) -> Plan:
    """The cheapest exact route for one layer, by the rule."""
    best, *others = candidates(terms, layer)
    against = ", ".join(f"{p.cost:.2f}x {p.name}" for p in others[:2])
    reason = f"{best.cost:.2f}x the frozen layer" + (f", against {against}" if others else ", the only route")
    return replace(best, reason=reason)


remembered = lru_cache(maxsize=4096)(plan)
"""`plan`, for a call must not weigh the same layer again."""

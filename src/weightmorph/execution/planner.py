r"""Which route a layer takes under per-sample θ: a measured plan where there is one, a written cost rule otherwise.

Four routes are exact for a weight $W + s \odot W + W D + U g V + \dots$ that differs from sample to sample:

- `factored`: the frozen weight stays shared and each term's work moves to the activations: row scales to the output,
  the low rank to a narrow convolution and a small product, tap mixing to patches, a basis to its outputs;
- `grouped`: one dense weight per sample, applied as one convolution whose groups are the samples;
- `product`: one dense weight per sample, times patches;
- `by setting`: where few settings are distinct in a batch, one call of the layer for each of them.

The dense routes materialise weights for a few samples at a time. A low-rank term may stay on the activations beside
them. The rule compares estimates in nanoseconds of one core, of which only the ratios matter;
[`Processor`][weightmorph.layers.processor.Processor] holds what a step takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import ExecutionError, MemoryLimitError
from ..layers import Cost, LayerSize, Processor, cached_unless_tracing, current, should_rematerialise
from ..terms import TermKind, WeightExpression
from .batch import Batch
from .plans import Plan, Route, Side

__all__ = ["candidates", "cheapest", "choose", "factored_pays_when_shared", "setting_by_setting_pays", "within_memory"]

Kinds = tuple[TermKind, ...]

BY_SETTING = Plan("by setting", "weights", 1.0, "one weight for all samples that share a setting")

ADVICE = (
    "bake one setting, which is all constant: model.bake(…); or leave that family out there with select=; or export "
    "without constant_weights"
)


def choose(batch: Batch, where: str, expression: WeightExpression, layer: LayerSize) -> Plan:
    """The plan for one call of one layer.

    Args:
        batch: the batch.
        where: the layer, for errors.
        expression: W(θ), with a row for each sample, or for each setting if the batch has few of them.
        layer: the layer in numbers.

    Raises:
        MemoryLimitError: if every route needs dense weights that would pass the limit.
        ExecutionError: if constant weights are asked for and a term has no form with them.
    """
    kinds = expression.kinds
    if batch.rows:
        # Also where one weight per sample would pass the limit, because one per setting may not.
        large = batch.too_large(layer.numbers, expression.base.element_size())
        if large or batch.route == "by setting" or setting_by_setting_pays(kinds, layer, len(batch.rows)):
            return BY_SETTING
    if batch.route is not None and batch.route != "by setting":
        return _forced(batch, where, kinds, layer)
    plan = _measured(batch, expression, layer) or cheapest(kinds, layer)
    return within_memory(batch, where, expression, plan, layer)


def _forced(batch: Batch, where: str, kinds: Kinds, layer: LayerSize) -> Plan:
    """The route that the batch asks for, where it exists."""
    constant = batch.route == "constant"
    plans = candidates(kinds, layer, constant)
    wanted = next((p for p in plans if p.route == ("factored" if constant else batch.route)), None)
    if wanted is None and constant:
        raise ExecutionError(f"{where}: constant_weights: there is no form with constant weights. Either {ADVICE}")
    return wanted or next(p for p in plans if p.route != "factored")


def _measured(batch: Batch, expression: WeightExpression, layer: LayerSize) -> Plan | None:
    """The plan that was measured for this layer, if it still fits its terms."""
    if layer.tracing or not batch.plans.entries:
        return None
    entry = batch.plans.nearest(expression.slot.name, layer)
    if entry is None:
        return None
    for plan in candidates(expression.kinds, layer):
        if (plan.route, plan.low_rank) == (entry.get("route"), entry.get("low_rank")):
            return replace(plan, reason="measured")
    return None  # measured for other families or another torch: the rule decides


def within_memory(batch: Batch, where: str, expression: WeightExpression, plan: Plan, layer: LayerSize) -> Plan:
    """The plan, or the factored one where dense weights of all samples would pass the limit.

    Weights are materialised for a few samples at a time, in the backward pass again. So only those count that are
    saved: terms that are dense as they come, and in training what is too little to be recomputed.

    Raises:
        MemoryLimitError: if there is no such way round.
    """
    dense = any(t.is_dense for t in expression.terms)
    numbers, itemsize = layer.numbers, expression.base.element_size()
    saved = dense or layer.tracing or (layer.training and not should_rematerialise(batch.size * numbers, itemsize))
    if plan.route == "factored" or not saved or not batch.too_large(numbers, itemsize):
        return plan
    for other in candidates(expression.kinds, layer):
        if other.route == "factored":
            return replace(other, reason="dense weights of all samples would pass the memory limit")
    advice = "leave out the family that makes it, deselect the layer, or give one θ for the whole batch"
    if dense:
        advice = "use LowRank, Warp or Scale here, which need no dense weight, or give one θ for the whole batch"
    batch.check_memory(numbers, itemsize, where, advice)
    raise MemoryLimitError(f"{where}: dense weights would pass the memory limit; {advice}")


# The cost rule.


def candidates(kinds: Sequence[TermKind], layer: LayerSize, constant: bool = False) -> list[Plan]:
    """Every exact route of a layer with its cost, the cheapest first.

    Args:
        kinds: the terms.
        layer: the layer in numbers.
        constant: count the factored route also where only constant weights are worth its cost.
    """
    frozen = Cost.of_frozen(layer).total()

    def priced(route: Route, side: Side, cost: Cost) -> Plan:
        return Plan(route, side, cost.total() / frozen, "", 2 * cost.work, cost.moved)

    plans = []
    if all(k.term.applies_to(layer, constant) for k in kinds):
        plans.append(priced("factored", "activations", _factored(kinds, layer)))
    aside = not layer.depthwise and len(kinds) > 1 and any(k.term.stays_aside for k in kinds)
    sides: list[Side] = ["weights", "activations"] if aside else ["weights"]
    # A grouped convolution with a symbolic number of groups cannot be exported.
    routes: list[Route] = ["product"]
    if layer.kind != "linear" and not layer.tracing:
        overlap = layer.kind == "conv_transpose" and not layer.tiles
        routes = ["grouped"] if overlap or layer.depthwise else ["grouped", "product"]
    plans += [priced(route, side, _dense(kinds, layer, route, side)) for route in routes for side in sides]
    return sorted(plans, key=lambda p: p.cost)


def cheapest(kinds: Kinds, layer: LayerSize) -> Plan:
    """The cheapest exact route of one layer, by the rule."""
    return _cheapest(kinds, layer, current())


@cached_unless_tracing
def _cheapest(kinds: Kinds, layer: LayerSize, machine: Processor) -> Plan:
    best, *others = candidates(kinds, layer)
    against = ", ".join(f"{p.cost:.2f}x {p.name}" for p in others[:2])
    reason = f"{best.cost:.2f}x the frozen layer" + (f", against {against}" if others else ", the only route")
    return replace(best, reason=reason)


def setting_by_setting_pays(kinds: Kinds, layer: LayerSize, settings: int) -> bool:
    """Is a layer faster run once per setting, each with a weight of its own, than by the best route per sample?"""
    return bool(layer.batch) and _setting_by_setting_pays(kinds, layer, settings, current())


@cached_unless_tracing
def _setting_by_setting_pays(kinds: Kinds, layer: LayerSize, settings: int, machine: Processor) -> bool:
    assert layer.batch
    cost = Cost(layer)
    cost.convolution(layer.work, weights=layer.numbers * settings / layer.batch, back=2.0)
    cost.elements(layer.groups * (layer.inputs + 2 * layer.outputs) * layer.positions)
    one_more = machine.setting_product if layer.kind == "linear" else machine.setting
    weight = _materialised(kinds, layer)
    weight.add(machine.reorder * layer.numbers + one_more, back=2.0)
    total = cost.time * layer.batch + weight.time * settings + weight.launches * machine.launch
    return total < cheapest(kinds, layer).cost * Cost.of_frozen(layer).total() * layer.batch


def factored_pays_when_shared(kinds: Kinds, layer: LayerSize) -> bool:
    """Is applying the terms to the activations cheaper than materialising W(θ), for a whole batch under one θ?"""
    return bool(layer.batch) and _factored_pays_when_shared(kinds, layer, current())


@cached_unless_tracing
def _factored_pays_when_shared(kinds: Kinds, layer: LayerSize, machine: Processor) -> bool:
    if not all(k.term.applies_to(layer) for k in kinds):
        return False
    assert layer.batch
    weight = _materialised(kinds, layer)
    total = layer.batch * Cost.of_frozen(layer).total() + weight.time + weight.launches * machine.launch
    return layer.batch * _factored(kinds, layer).total() < 0.9 * total


def _factored(kinds: Sequence[TermKind], layer: LayerSize) -> Cost:
    """Each term's work on the activations, and the frozen layer where no term absorbs it."""
    absorbed = any(k.term.absorbs > 1 for k in kinds)
    cost = Cost(layer, frozen_absorbed=absorbed)
    if not absorbed or any(k.term.reads_frozen_output for k in kinds):
        cost.convolution(layer.frozen_work, weights=0, back=1.0)
    for kind in kinds:
        kind.term.cost_of_applying(cost, kind.size)
    return cost


def _dense(kinds: Sequence[TermKind], layer: LayerSize, route: Route, side: Side) -> Cost:
    """One dense weight per sample, and the layer with it."""
    cost, machine, n = Cost(layer), current(), layer.numbers
    for kind in kinds:
        if kind.term.stays_aside and side == "activations":
            kind.term.cost_of_applying(cost, kind.size)
        else:
            kind.term.cost_of_adding(cost, kind.size)
    if route == "grouped":
        single = layer.inputs == 1 and not layer.depthwise
        cost.convolution(layer.work * (machine.single_channel if single else 1.0), weights=n, back=2.0)
        cost.add(machine.reorder * n, moved=n, launches=2)
        return cost
    if layer.tiles:
        cost.elements(layer.groups * layer.outputs * layer.grown * layer.positions)
    elif layer.kind != "linear" and layer.grown > 1:
        cost.patches()
    cost.convolution(layer.work, weights=n, back=2.0, product=True)
    return cost


def _materialised(kinds: Sequence[TermKind], layer: LayerSize) -> Cost:
    """One weight for all samples."""
    cost = Cost(replace(layer, batch=None))
    for kind in kinds:
        kind.term.cost_of_adding(cost, kind.size)
    return cost

"""The one place that decides: a measured plan where there is one, the cost rule otherwise; and what it decided."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..errors import MemoryLimitError
from ..terms import Dense, WeightExpression, Whole
from . import rule
from .batch import Batch, expand
from .desk import Run
from .kept import made_again
from .making import make
from .rule import Layer, Plan

__all__ = ["choose", "within_memory"]

Plain = Callable[[Tensor, Tensor], Tensor]


def choose(
    batch: Batch, where: str, x: Tensor, expression: WeightExpression, layer: Layer, run: Run, plain: Plain
) -> Tensor:
    """Decide on a route and take it.

    Args:
        batch: what is known of the batch.
        where: the layer, for errors.
        x: its input.
        expression: W(θ), with a row for each sample, or for each setting if the batch has few of them.
        layer: what the rule looks at.
        run: the layer on a route.
        plain: the layer with one weight for all samples.

    Raises:
        MemoryLimitError: if every route needs dense weights that would pass the limit.
    """
    terms = rule.kinds(expression)
    if batch.rows:
        # Also where one weight per sample would pass the limit, for one per setting may not.
        large = batch.too_large(layer.numbers, expression.base.element_size())
        if large or rule.bucketed(terms, layer, len(batch.rows)):
            dense = make(expression)
            return batch.restore([plain(x.index_select(0, r), w) for r, w in zip(batch.rows, dense, strict=True)])
        expression = expand(batch, expression)
    if layer.tracing:
        return run(x, expression, within_memory(batch, where, expression, rule.plan(terms, layer), layer))
    desk = batch.desk
    chosen = desk.measured(expression, layer) if desk.entries else None
    chosen = within_memory(batch, where, expression, chosen or rule.remembered(terms, layer), layer)
    return run(x, expression, chosen) if desk.watch is None else desk.watch(x, expression, layer, chosen, run)


def within_memory(batch: Batch, where: str, expression: WeightExpression, chosen: Plan, layer: Layer) -> Plan:
    """The plan, or the factored one where dense weights of all samples would pass the limit.

    Weights are made for a few samples at a time, in the backward again. So only those count that are kept: terms that
    are dense as they come, and in training what is too little to be made again.

    Raises:
        MemoryLimitError: if there is no such way round.
    """
    given = any(isinstance(t, Dense | Whole) for t in expression.terms)
    numbers, itemsize = layer.numbers, expression.base.element_size()
    kept = given or layer.tracing or (layer.training and not made_again(batch.size * numbers, itemsize))
    if chosen.route == "factored" or not kept or not batch.too_large(numbers, itemsize):
        return chosen
    for other in rule.candidates(rule.kinds(expression), layer):
        if other.route == "factored":
            reason = "dense weights of all samples would pass the memory limit"
            return Plan(other.route, other.low_rank, other.cost, reason, other.flops, other.numbers)
    advice = "leave out the family that makes it, deselect the layer, or give one θ for the whole batch"
    if given:
        advice = "use LowRank, Warp or Scale here, which need no dense weight, or give one θ for the whole batch"
    batch.check_memory(numbers, itemsize, where, advice)
    raise MemoryLimitError(f"{where}: dense weights would pass the memory limit; {advice}")

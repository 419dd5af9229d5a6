"""One layer under one θ per sample: the plan is chosen, and carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..layers import LayerOp, LayerSize, Part, chunk_length, should_rematerialise
from ..terms import Term, WeightExpression
from . import planner
from .batch import Batch, expand
from .plans import Plan

__all__ = ["Observer", "Step", "execute"]


@dataclass(frozen=True)
class Step:
    """One layer's work in one call: everything that a route needs, and the plan.

    Attributes:
        op: the layer operation.
        x: its input.
        expression: W(θ), one row per sample.
        layer: the layer in numbers.
        plan: the route that was chosen.
    """

    op: LayerOp
    x: Tensor
    expression: WeightExpression
    layer: LayerSize
    plan: Plan

    def run(self, plan: Plan | None = None) -> Tensor:
        """The output by the chosen plan, or by another one."""
        plan = plan or self.plan
        if plan.route == "factored":
            return factored(self.op, self.x, self.expression)
        return dense(self.op, self.x, self.expression, self.layer, plan)


Observer = Callable[[Step], Tensor]
"""Gets the step of a layer before it is carried out, carries it out, and returns its output."""


def execute(batch: Batch, where: str, op: LayerOp, x: Tensor, expression: WeightExpression) -> Tensor:
    """The layer with W(θ), by the route that the planner chooses.

    Args:
        batch: the batch.
        where: the layer, for errors.
        op: the layer operation.
        x: its input.
        expression: W(θ), with a row for each sample, or for each setting if the batch has few of them.
    """
    if not op.traced and not x.shape[0]:
        return op(x, expression.base)  # no sample, no weight: the output has the right shape
    training = torch.is_grad_enabled() and (x.requires_grad or expression.requires_grad)
    layer = op.size(x, expression.slot, expression.grow, training)
    plan = planner.choose(batch, where, expression, layer)
    if plan.route == "by setting":
        return by_setting(batch, op, x, expression)
    step = Step(op, x, expand(batch, expression), layer, plan)
    return step.run() if batch.observer is None else batch.observer(step)


def by_setting(batch: Batch, op: LayerOp, x: Tensor, expression: WeightExpression) -> Tensor:
    """One call of the layer for each setting, with the samples that have it."""
    weights, grow = expression.materialise(), expression.grow
    rows = zip(batch.rows, weights, strict=True)
    return batch.restore([op(x.index_select(0, samples), weight, grow=grow) for samples, weight in rows])


def factored(op: LayerOp, x: Tensor, expression: WeightExpression) -> Tensor:
    r"""The frozen weight stays shared, and each term's work moves to the activations.

    $\mathrm{op}(x, W + s \odot W + U g V + W D) = s \odot \mathrm{op}(x, W) + U (g \odot \mathrm{op}(x, V)) + W
    ((1 + D) X)$, with $X$ the patches of x.
    """
    y: Tensor | None = None
    for term in expression.simplified(op.shares_patches):
        y = term.apply(op, x, y)
    assert y is not None, "a weight expression has at least its frozen weight"
    return y


def dense(op: LayerOp, x: Tensor, expression: WeightExpression, layer: LayerSize, plan: Plan) -> Tensor:
    """One dense weight per sample, materialised a few samples at a time; a low-rank term may stay aside."""
    aside = [t for t in expression.terms if t.stays_aside] if plan.low_rank == "activations" else []
    terms = [t for t in expression.terms if not t.stays_aside] if aside else expression.terms
    numbers = op.working_set(x, layer, plan.route)
    recompute = not layer.tracing and should_rematerialise(x.shape[0] * numbers, x.element_size())
    parts = _parts(x, expression, terms, None if layer.tracing else numbers * x.element_size())
    y = op.per_sample(x, parts, plan.route, expression.grow, recompute)
    for term in aside:
        y = term.apply(op, x, y)
    return y


def _parts(x: Tensor, expression: WeightExpression, terms: Sequence[Term], bytes_each: int | None) -> Sequence[Part]:
    """Chunks of the input, each with the function that materialises its weights.

    All of them are split off at once, because the gradient of a slice is as large as the tensor it was sliced from.
    """
    step = x.shape[0] if bytes_each is None else chunk_length(x.shape[0], bytes_each, x.device)
    if bytes_each is None or step == x.shape[0]:
        return [(x, partial(expression.materialise, terms))]
    inputs = x.split(step)
    own = [t.split(step, len(inputs)) for t in terms]
    return [(part, partial(expression.materialise, [row[i] for row in own])) for i, part in enumerate(inputs)]

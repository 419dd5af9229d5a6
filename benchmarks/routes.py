"""The one place where the benchmarks reach into the engine: forcing a route, and weights as quickly as it makes them.

Everything else here uses the public interface.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from torch import Tensor

import weightmorph as wm
from weightmorph.execution import planner, rule
from weightmorph.execution.batch import Batch
from weightmorph.execution.making import make
from weightmorph.terms import WeightExpression

ASIDE = ", low rank on activations"
ROUTES = ("factored", "grouped", f"grouped{ASIDE}", "product", f"product{ASIDE}")
"""The routes that are tried on every layer under one θ per sample."""


@contextlib.contextmanager
def taking(route: str | None) -> Iterator[list[str]]:
    """Within it, convolutions and linear layers take one of [`ROUTES`][], or what the planner says for None.

    Yields:
        a list that gathers the route that each such layer took. Where a layer or a family has not the one that was
        asked for, it is the planner's.
    """
    taken: list[str] = []
    decide = planner.within_memory  # what the rule or a measured plan chose passes through it

    def decided(
        batch: Batch, where: str, expression: WeightExpression, chosen: rule.Plan, layer: rule.Layer
    ) -> rule.Plan:
        known = rule.candidates(rule.kinds(expression), layer) if route else []
        chosen = next((plan for plan in known if plan.name == route), chosen)
        chosen = decide(batch, where, expression, chosen, layer)
        taken.append(chosen.name)
        return chosen

    with mock.patch.object(planner, "within_memory", decided):
        yield taken


def made(model: wm.Conditioned, angle: Tensor) -> dict[str, Tensor]:
    """`model.weights(angle=angle)`, made as the engine makes them and not as its oracle does: `(B, *S)` by name.

    A peer that runs with our weights must not wait for slower ones than we do.
    """
    slots = list(model.slots.values())
    base = model.base.frozen
    code = model.encode(angle=angle)
    return {name: make(expression) for name, expression in model.transform.expressions(slots, base, code).items()}

"""The one place where the benchmarks reach into the engine: forcing a route, and weights as quickly as it makes them.

Everything else here uses the public interface.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

import weightmorph as wm
from weightmorph.execution import Observer, Step, candidates

ASIDE = ", low rank on activations"
ROUTES = ("factored", "grouped", f"grouped{ASIDE}", "product", f"product{ASIDE}")
"""The routes that are tried on every layer under one θ per sample."""


def taking(model: wm.Conditioned, route: str | None) -> tuple[Callable[..., Tensor], list[str]]:
    """The model's call, with its convolutions and linear layers on one of [`ROUTES`][].

    Args:
        model: the model.
        route: the route; None leaves the choice to the planner.

    Returns:
        the call, and a list that gathers the route that each such layer took. Where a layer or a family does not have
        the route that was asked for, it is the planner's.
    """
    taken: list[str] = []

    def observer(step: Step) -> Tensor:
        plans = candidates(step.expression.kinds, step.layer) if route else []
        plan = next((plan for plan in plans if plan.name == route), step.plan)
        taken.append(plan.name)
        return step.run(plan)

    return observed(model, observer), taken


def observed(model: wm.Conditioned, observer: Observer) -> Callable[..., Tensor]:
    """The model's call under an observer, which carries out each layer with one θ per sample."""
    return model.observed(observer)


def made(model: wm.Conditioned, angle: Tensor) -> dict[str, Tensor]:
    """`model.weights(angle=angle)`, made as the engine makes them and not as its oracle does: `(B, *S)` by name.

    A peer that runs with our weights must not wait for slower ones than we do.
    """
    code = model.encode(angle=angle)
    expressions = model.transform.expressions(list(model.slots.values()), model.base.frozen, code)
    return {name: e.materialise() for name, e in expressions.items()}

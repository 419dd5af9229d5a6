"""Observers of a model's layers: one notes what was decided, one measures what every route really takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..layers import LayerSize, should_rematerialise
from . import planner
from .plans import Entry, Plan
from .routes import Step

__all__ = ["Recorder", "Row", "Tuner"]


@dataclass(frozen=True)
class Row:
    """One call of one layer: the slot's name, the layer in numbers, and the plan."""

    name: str
    layer: LayerSize
    plan: Plan


@dataclass
class Recorder:
    """An observer that notes every plan."""

    rows: list[Row] = field(default_factory=list)

    def __call__(self, step: Step) -> Tensor:
        self.rows.append(Row(step.expression.slot.name, step.layer, step.plan))
        return step.run()


@dataclass
class Tuner:
    """An observer that runs every route of every layer on its real input, interleaved, and keeps the fastest.

    Args:
        rounds: measurements per route; medians are compared.
        limit: bytes that a route's dense weights may take; a route beyond it is not tried where all weights are saved.
    """

    rounds: int = 5
    limit: int = 2**62
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    def __call__(self, step: Step) -> Tensor:
        layer, name = step.layer, step.expression.slot.name
        runs = {p: _rehearsal(step, p) for p in self._plans(step) or [step.plan]}
        times: dict[Plan, list[float]] = {p: [] for p in runs}
        for number in range(self.rounds + 1):
            for plan, run in runs.items():
                taken = _seconds(run, step.x.device)
                if number:  # the first is a warm-up
                    times[plan].append(taken)
        medians = {p: statistics.median(t) for p, t in times.items()}
        best = min(medians, key=lambda p: medians[p])
        entry = {
            "positions": layer.positions, "batch": layer.batch, "training": layer.training, "route": best.route,
            "low_rank": best.low_rank,
        }  # fmt: skip
        if entry not in self.entries.setdefault(name, []):
            self.entries[name].append(entry)
        self.seconds[name] = {p.name: medians[p] for p in medians}
        return step.run(best)

    def _plans(self, step: Step) -> list[Plan]:
        """The routes to try: those whose dense weights fit the limit, or are not all saved."""
        numbers, itemsize = step.x.shape[0] * step.layer.numbers, step.expression.base.element_size()
        saved = step.layer.training and not should_rematerialise(numbers, itemsize)
        fits = numbers * itemsize <= self.limit or not saved
        return [p for p in planner.candidates(step.expression.kinds, step.layer) if fits or p.route == "factored"]


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    """One call's time, the device's queue included."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _rehearsal(step: Step, plan: Plan) -> Callable[[], Any]:
    """A forward pass, with its backward pass when training, apart from the model's own graph."""
    training = step.layer.training
    expression = replace(step.expression, terms=tuple(t.detached() for t in step.expression.terms))
    apart = replace(step, x=step.x.detach().requires_grad_(training and step.x.requires_grad), expression=expression)
    leaves = [t for t in (apart.x, *(v for term in expression.terms for v in term.tensors)) if t.requires_grad]

    def run() -> None:
        y = apart.run(plan)
        if training and leaves:
            torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)

    return run

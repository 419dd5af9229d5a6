"""Watching a model's layers: what was decided, and what every route really takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..terms import Term, WeightExpression
from . import rule
from .desk import Entry, Run
from .kept import made_again
from .rule import Layer, Plan

__all__ = ["Recorder", "Row", "Tuner"]


@dataclass(frozen=True)
class Row:
    """One call of one layer: its plan, and the layer it was made for."""

    name: str
    layer: Layer
    plan: Plan


@dataclass
class Recorder:
    """A watch that notes every decision and lets it pass."""

    rows: list[Row] = field(default_factory=list)

    def __call__(self, x: Tensor, expression: WeightExpression, layer: Layer, plan: Plan, run: Run) -> Tensor:
        self.rows.append(Row(expression.slot.name, layer, plan))
        return run(x, expression, plan)


@dataclass
class Tuner:
    """A watch that runs every route of every layer on its real input, interleaved, and keeps the fastest.

    Args:
        rounds: measurements per route; medians are compared.
        limit: bytes that a route's dense weights may take; larger ones are not tried where all of them are kept.
    """

    rounds: int = 5
    limit: int = 2**62
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    def __call__(self, x: Tensor, expression: WeightExpression, layer: Layer, plan: Plan, run: Run) -> Tensor:
        numbers, itemsize = x.shape[0] * layer.numbers, expression.base.element_size()
        kept = layer.training and not made_again(numbers, itemsize)
        known = [
            p for p in rule.candidates(rule.kinds(expression), layer)
            if p.route == "factored" or numbers * itemsize <= self.limit or not kept
        ]  # fmt: skip
        steps = {p: _step(x, expression, layer, p, run) for p in known or [plan]}
        found: dict[Plan, list[float]] = {p: [] for p in steps}
        for number in range(self.rounds + 1):
            for p, step in steps.items():
                taken = _seconds(step, x.device)
                if number:  # the first is a warm-up
                    found[p].append(taken)
        medians = {p: statistics.median(times) for p, times in found.items()}
        best = min(medians, key=lambda p: medians[p])
        name = expression.slot.name
        entry = {
            "positions": layer.positions, "batch": layer.batch, "training": layer.training, "route": best.route,
            "low_rank": best.low_rank,
        }  # fmt: skip
        if entry not in self.entries.setdefault(name, []):
            self.entries[name].append(entry)
        self.seconds[name] = {p.name: medians[p] for p in medians}
        return run(x, expression, best)


def _seconds(step: Callable[[], Any], device: torch.device) -> float:
    """One call's time, the device's queue included."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _step(x: Tensor, expression: WeightExpression, layer: Layer, plan: Plan, run: Run) -> Callable[[], Any]:
    """A forward, with its backward when training, apart from the model's own graph."""
    alone = x.detach().requires_grad_(layer.training and x.requires_grad)
    apart = replace(expression, terms=tuple(_apart(t) for t in expression.terms))
    wanted = [t for t in (alone, *(v for term in apart.terms for v in term.tensors)) if t.requires_grad]

    def step() -> None:
        if not layer.training or not wanted:
            run(alone, apart, plan)
        else:
            y = run(alone, apart, plan)
            torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)

    return step


def _apart(term: Term) -> Term:
    tensors: dict[str, Any] = {
        f.name: value.detach().requires_grad_(value.requires_grad)
        for f in fields(term)
        if isinstance(value := getattr(term, f.name), Tensor)
    }
    return replace(term, **tensors)

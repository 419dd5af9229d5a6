"""What was measured of a model's layers, and who watches while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..terms import WeightExpression
from . import rule
from .rule import Layer, Plan

__all__ = ["Desk", "Entry", "Run", "Watch"]

VERSION = 1
"""Of the plain data; another one's is passed over."""

Run = Callable[[Tensor, WeightExpression, Plan], Tensor]
"""One route of one call: input and expression in, output out."""

Watch = Callable[[Tensor, WeightExpression, Layer, Plan, Run], Tensor]
"""`(input, expression, layer, plan, run)`: called in place of the chosen route, and gives its output."""

Entry = Mapping[str, Any]
"""A measured choice as plain data: positions, batch, training, route, low_rank."""


@dataclass
class Desk:
    """Where decisions are made for one model: what was measured before, and what is watched now.

    Attributes:
        entries: slot name to measured choices, from `autotune` or a checkpoint.
        watch: sees, and takes, every route.
    """

    entries: Mapping[str, Sequence[Entry]] = field(default_factory=dict)
    watch: Watch | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any] | None) -> Desk:
        """From plain data, perhaps another machine's or another release's: what does not read is passed over."""
        layers = data.get("layers") if isinstance(data, Mapping) and data.get("version") == VERSION else None
        rows = layers.items() if isinstance(layers, Mapping) else ()
        return cls({str(name): [e for e in row if isinstance(e, Mapping)] for name, row in rows if _listed(row)})

    def data(self) -> dict[str, Any] | None:
        """As plain data; None where nothing was measured."""
        if not self.entries:
            return None
        return {"version": VERSION, "layers": {name: [dict(e) for e in row] for name, row in self.entries.items()}}

    def with_entries(self, more: Mapping[str, Sequence[Entry]]) -> Desk:
        """New measurements in place of older ones of the same layers at the same size."""

        def same(a: Entry, b: Entry) -> bool:
            return all(a.get(key) == b.get(key) for key in ("positions", "batch", "training"))

        merged = {name: list(row) for name, row in self.entries.items()}
        for name, row in more.items():
            kept = [e for e in merged.get(name, ()) if not any(same(e, new) for new in row)]
            merged[name] = [*kept, *row]
        return replace(self, entries=merged)

    def measured(self, expression: WeightExpression, layer: Layer) -> Plan | None:
        """The choice measured for this layer at the nearest batch size, if it still fits."""
        rows = [e for e in self.entries.get(expression.slot.name, ()) if _fits(e, layer)]
        if not rows:
            return None
        batch = layer.batch or 1
        entry = min(rows, key=lambda e: abs(e["batch"] - batch))
        for known in rule.candidates(rule.kinds(expression), layer):
            if (known.route, known.low_rank) == (entry.get("route"), entry.get("low_rank")):
                return Plan(known.route, known.low_rank, known.cost, "measured", known.flops, known.numbers)
        return None  # made for other families or another torch: the rule decides


def _listed(row: Any) -> bool:
    return isinstance(row, Sequence) and not isinstance(row, str)


def _fits(entry: Entry, layer: Layer) -> bool:
    """Was it measured for such a layer? Anything else that a file may hold is passed over."""
    try:
        near = 0.5 <= entry["batch"] / (layer.batch or 1) <= 2.0
        return bool(near and entry["positions"] == layer.positions and entry["training"] == layer.training)
    except (KeyError, TypeError):
        return False

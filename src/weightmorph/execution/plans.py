"""Plans: the route of one layer, and the routes that `autotune` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..layers import LayerSize

__all__ = ["Entry", "MeasuredPlans", "Plan", "Route", "Side"]

VERSION = 1
"""Version of the plain data; data of another version are ignored."""

Route = Literal["factored", "grouped", "product", "by setting"]
Side = Literal["activations", "weights"]

Entry = Mapping[str, Any]
"""A measured choice as plain data: positions, batch, training, route, low_rank."""


@dataclass(frozen=True)
class Plan:
    """The route of one layer, its estimated cost relative to the frozen layer, and why it was chosen.

    Attributes:
        route: see [`weightmorph.execution.planner`][].
        low_rank: where a low-rank term's work is done on the dense routes.
        cost: relative to the frozen layer.
        reason: why, for people.
        flops: floating-point operations per sample: two a multiply-add.
        numbers: numbers read and written per sample.
    """

    route: Route
    low_rank: Side
    cost: float
    reason: str
    flops: float = 0.0
    numbers: float = 0.0

    @property
    def name(self) -> str:
        """The route, and where the low rank's work is done if the route does not say it."""
        beside = self.route != "factored" and self.low_rank == "activations"
        return f"{self.route}, low rank on activations" if beside else self.route


@dataclass(frozen=True)
class MeasuredPlans:
    """Routes that were measured before, by slot name; from `autotune` or a file."""

    entries: Mapping[str, Sequence[Entry]] = field(default_factory=dict)

    @classmethod
    def from_data(cls, data: Mapping[str, Any] | None) -> MeasuredPlans:
        """Read plain data, perhaps another machine's or another release's; what does not fit is ignored."""
        layers = data.get("layers") if isinstance(data, Mapping) and data.get("version") == VERSION else None
        rows = layers.items() if isinstance(layers, Mapping) else ()
        return cls({str(name): [e for e in row if isinstance(e, Mapping)] for name, row in rows if _listed(row)})

    def data(self) -> dict[str, Any] | None:
        """The entries as plain data; None where nothing was measured."""
        if not self.entries:
            return None
        return {"version": VERSION, "layers": {name: [dict(e) for e in row] for name, row in self.entries.items()}}

    def updated(self, more: Mapping[str, Sequence[Entry]]) -> MeasuredPlans:
        """With new measurements in place of older ones of the same layers at the same size."""

        def same(a: Entry, b: Entry) -> bool:
            return all(a.get(key) == b.get(key) for key in ("positions", "batch", "training"))

        merged = {name: list(row) for name, row in self.entries.items()}
        for name, row in more.items():
            others = [e for e in merged.get(name, ()) if not any(same(e, new) for new in row)]
            merged[name] = [*others, *row]
        return replace(self, entries=merged)

    def nearest(self, name: str, layer: LayerSize) -> Entry | None:
        """The entry of a slot measured at this size and the nearest batch size, if there is one near enough."""
        rows = [e for e in self.entries.get(name, ()) if _fits(e, layer)]
        batch = layer.batch or 1
        return min(rows, key=lambda e: abs(e["batch"] - batch), default=None)


def _listed(row: Any) -> bool:
    return isinstance(row, Sequence) and not isinstance(row, str)


def _fits(entry: Entry, layer: LayerSize) -> bool:
    """Was the entry measured for such a layer? A file may hold anything else, which is ignored."""
    try:
        near = 0.5 <= entry["batch"] / (layer.batch or 1) <= 2.0
        return bool(near and entry["positions"] == layer.positions and entry["training"] == layer.training)
    except (KeyError, TypeError):
        return False

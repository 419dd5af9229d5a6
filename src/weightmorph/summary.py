"""The table that `Conditioned.summary` prints."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .execution import Plan, plan
from .execution.rule import Layer, kinds
from .parameters import ParameterSpace
from .slots import Slot
from .transforms import Families

__all__ = ["table"]


def route(families: Families, slot: Slot, space: ParameterSpace, positions: int) -> Plan | None:
    """What the rule says of a slot under per-sample θ, for an output of so many positions."""
    if slot.kind not in ("conv", "conv_transpose", "linear") or not positions:
        return None
    parameter = next(families.parameters(), torch.zeros(()))
    weight = torch.empty(slot.shape, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        home = torch.tensor([space.anchor_code], dtype=parameter.dtype, device=parameter.device)
        expression = families.expression(slot, weight, home)
    return plan(kinds(expression), Layer.of(slot, positions, expression.grow, batch=32))


def table(
    families: Families, slots: Mapping[str, Slot], space: ParameterSpace, total: int, positions: Mapping[str, int]
) -> str:
    """Slots, families, trainable numbers, memory per sample and route, as text."""
    rows = [("tensor", "shape", "reads as", "families", "trainable", "dense/sample", "route per sample")]
    for name, slot in slots.items():
        built = families.of(slot)
        numbers = sum(p.numel() for t in built for p in t.parameters())
        size = next(families.parameters(), torch.zeros(())).element_size()
        chosen = route(families, slot, space, positions.get(name, 0))
        kernel = f" {'x'.join(map(str, slot.kernel))}" if slot.kernel else ""
        told = f"{chosen.route}: {chosen.reason}" if chosen else "per channel" if slot.kind in ("norm", "bias") else "-"
        rows.append(
            (
                name,
                "x".join(map(str, slot.shape)),
                f"{slot.kind}{kernel}",
                " + ".join(t.family for t in built),
                f"{numbers:,}",
                f"{_numel(slot) * size / 1024:,.1f} KiB",
                told,
            )
        )
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    trainable = sum(p.numel() for p in families.parameters())
    lines.insert(1, "-" * max(map(len, lines)))
    lines.append(f"conditioned on {', '.join(space)}; {trainable:,} trainable numbers beside {total:,} frozen ones")
    return "\n".join(lines)


def _numel(slot: Slot) -> int:
    g, o, i, t = slot.canonical_shape
    return g * o * i * t

"""The tables that `Conditioned.summary` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..execution import Plan, plan
from ..execution.rule import Layer, frozen, kinds
from ..execution.tuning import Row
from ..parameters import ParameterSpace
from ..slots import Slot
from ..transforms import TransformTree

__all__ = ["plan_table", "table"]


def route(families: TransformTree, slot: Slot, space: ParameterSpace, positions: int) -> Plan | None:
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
    families: TransformTree, slots: Mapping[str, Slot], space: ParameterSpace, total: int, positions: Mapping[str, int]
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
    lines = _aligned(rows)
    trainable = sum(p.numel() for p in families.parameters())
    lines.append(f"conditioned on {', '.join(space)}; {trainable:,} trainable numbers beside {total:,} frozen ones")
    return "\n".join(lines)


def plan_table(slots: Mapping[str, Slot], taken: Sequence[Row], size: int | None) -> str:
    """The routes that one call took, and what they cost against the frozen layers, as text."""
    rows = [("tensor", "route", "multiply-adds", "bytes", "why")]
    base_work = base_bytes = work = moved = 0.0
    for row in taken:
        own = frozen(row.layer)
        base_work, base_bytes = base_work + own.work, base_bytes + own.moved
        work, moved = work + row.plan.flops / 2, moved + row.plan.numbers
        times = f"{row.plan.flops / 2 / own.work:.2f}x", f"{row.plan.numbers / own.moved:.2f}x"
        rows.append((row.name, row.plan.name, *times, row.plan.reason))
    named = {row.name for row in taken}
    for name, slot in slots.items():
        if name not in named:
            rows.append((name, *_unplanned(slot, size)))
    lines = _aligned(rows)
    if taken:
        lines.append(
            f"{len(taken)} layers with one θ per sample, {size} samples: {work / base_work:.2f}x the frozen layers' "
            f"multiply-adds ({base_work / 1e6:,.1f} million a sample), {moved / base_bytes:.2f}x their bytes"
        )
    elif size is None:
        lines.append("one θ for the batch: every weight is made once, and the layers run as they are")
    else:
        lines.append(f"few distinct settings among {size} samples: layers run setting by setting, with shared weights")
    return "\n".join(lines)


def _unplanned(slot: Slot, size: int | None) -> tuple[str, str, str, str]:
    if slot.kind in ("norm", "bias") and size is not None:
        return "per channel", "-", "-", "a multiply or an add of the output"
    if size is None:
        return "shared weight", "-", "-", "one weight for all samples"
    return "setting by setting", "-", "-", "one weight for all samples that share a setting"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines in columns, the first underlined."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def _numel(slot: Slot) -> int:
    g, o, i, t = slot.canonical_shape
    return g * o * i * t

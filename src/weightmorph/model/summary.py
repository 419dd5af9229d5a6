"""The tables that `Conditioned.summary` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..base import inspect_base
from ..execution import Plan, Recorder, Row, cheapest
from ..layers import Cost, LayerSize
from ..slots import Slot
from .call import bind
from .weights import call_weights

if TYPE_CHECKING:
    from .conditioned import Conditioned

__all__ = ["summarise"]


def summarise(model: Conditioned, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The table of a model's tensors, or, if θ is among the keywords, of the routes that a call takes."""
    if any(name in kwargs for name in model.space):
        recorder = Recorder()
        with torch.no_grad():
            call = bind(model, args, kwargs, recorder)
            model.base.run(call_weights(model, call), call)
        return route_table(model.slots, recorder.rows, None if call.batch is None else call.batch.size)
    inspection = model.spec.inspection
    if args or kwargs:
        inspection = inspect_base(model.frozen(), list(model.slots.values()), args, kwargs)
    return tensor_table(model, {} if inspection is None else inspection.positions)


def tensor_table(model: Conditioned, positions: Mapping[str, int]) -> str:
    """Slots, families, trainable numbers, memory per sample and route, as text."""
    rows = [("tensor", "shape", "reads as", "families", "trainable", "dense/sample", "route per sample")]
    parameters = list(model.transform.parameters())
    itemsize = parameters[0].element_size() if parameters else torch.zeros(()).element_size()
    for name, slot in model.slots.items():
        families = model.transform.of(slot)
        chosen = _ruled(model, slot, positions.get(name, 0))
        kernel = f" {'x'.join(map(str, slot.kernel))}" if slot.kernel else ""
        without = "per channel" if slot.kind in ("norm", "bias") else "-"
        g, o, i, t = slot.canonical_shape
        rows.append(
            (
                name,
                "x".join(map(str, slot.shape)),
                f"{slot.kind}{kernel}",
                " + ".join(family.family for family in families),
                f"{sum(p.numel() for family in families for p in family.parameters()):,}",
                f"{g * o * i * t * itemsize / 1024:,.1f} KiB",
                f"{chosen.route}: {chosen.reason}" if chosen else without,
            )
        )
    lines = _aligned(rows)
    trainable = sum(p.numel() for p in parameters)
    lines.append(
        f"conditioned on {', '.join(model.space)}; {trainable:,} trainable numbers beside {model.view.total:,} frozen "
        "ones"
    )
    return "\n".join(lines)


def _ruled(model: Conditioned, slot: Slot, positions: int) -> Plan | None:
    """The route that the cost rule gives a slot with one θ per sample, for an output of so many positions."""
    if slot.kind not in ("conv", "conv_transpose", "linear") or not positions:
        return None
    parameter = next(model.transform.parameters(), torch.zeros(()))
    weight = torch.empty(slot.shape, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        code = torch.tensor([model.space.anchor_code], dtype=parameter.dtype, device=parameter.device)
        expression = model.transform.expression(slot, weight, code)
    return cheapest(expression.kinds, LayerSize.of(slot, positions, expression.grow, batch=32))


def route_table(slots: Mapping[str, Slot], taken: Sequence[Row], samples: int | None) -> str:
    """The routes that one call took, and what they cost against the frozen layers, as text."""
    rows = [("tensor", "route", "multiply-adds", "bytes", "why")]
    base_work = base_bytes = work = moved = 0.0
    for row in taken:
        base = Cost.of_frozen(row.layer)
        base_work, base_bytes = base_work + base.work, base_bytes + base.moved
        work, moved = work + row.plan.flops / 2, moved + row.plan.numbers
        times = f"{row.plan.flops / 2 / base.work:.2f}x", f"{row.plan.numbers / base.moved:.2f}x"
        rows.append((row.name, row.plan.name, *times, row.plan.reason))
    named = {row.name for row in taken}
    rows += [(name, *_unplanned(slot, samples)) for name, slot in slots.items() if name not in named]
    lines = _aligned(rows)
    if taken:
        lines.append(
            f"{len(taken)} layers with one θ per sample, {samples} samples: {work / base_work:.2f}x the frozen layers' "
            f"multiply-adds ({base_work / 1e6:,.1f} million a sample), {moved / base_bytes:.2f}x their bytes"
        )
    elif samples is None:
        lines.append("one θ for the batch: every weight is made once, and the layers run as they are")
    else:
        lines.append(
            f"few distinct settings among {samples} samples: layers run setting by setting, with shared weights"
        )
    return "\n".join(lines)


def _unplanned(slot: Slot, samples: int | None) -> tuple[str, str, str, str]:
    if slot.kind in ("norm", "bias") and samples is not None:
        return "per channel", "-", "-", "a multiply or an add of the output"
    if samples is None:
        return "shared weight", "-", "-", "one weight for all samples"
    return "setting by setting", "-", "-", "one weight for all samples that share a setting"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines in columns, the first underlined."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return lines

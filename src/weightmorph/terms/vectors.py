"""Many small vectors materialised at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .base import Term
from .expression import WeightExpression

__all__ = ["materialise_vectors"]


def materialise_vectors(expressions: Mapping[str, WeightExpression]) -> dict[str, Tensor]:
    """Those among shared expressions that merely scale or shift a vector, all made in a few operations.

    They are exactly the frozen vectors where scales and shifts are zero.
    """
    ready: dict[str, Tensor] = {}
    ways: tuple[Callable[[Term], Tensor | None], ...] = (lambda t: t.scale, lambda t: t.shift)
    for number, change_of in enumerate(ways):
        rows: dict[str, tuple[Tensor, Tensor]] = {}
        for name, e in expressions.items():
            change = change_of(e.terms[0]) if len(e.terms) == 1 and e.base.dim() == 1 else None
            if change is not None:
                rows[name] = e.base, change
        if len(rows) < 2:
            continue
        base = torch.cat([b for b, _ in rows.values()])
        change = torch.cat([c for _, c in rows.values()])
        total = torch.addcmul(base, base, change) if number == 0 else base + change
        ready |= zip(rows, total.split([b.shape[0] for b, _ in rows.values()]), strict=True)
    return ready

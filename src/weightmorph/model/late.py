"""Which shared weights are made when the base reads them, and which are not made at all."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..base.inspect import Trace
from ..execution import factored_pays_when_shared
from ..layers import LayerSize, current
from ..slots import Slot
from ..terms import WeightExpression

__all__ = ["read_once", "unmade"]


def read_once(slots: Mapping[str, Slot], seen: Trace) -> frozenset[str]:
    """Slots with a large weight that one function reads: it is made then."""
    uses = seen.uses
    return frozenset(n for n, s in slots.items() if uses.get(n) == 1 and math.prod(s.shape) >= current().lazy_weight)


def unmade(expressions: Mapping[str, WeightExpression], seen: Trace, batch: int) -> frozenset[str]:
    """Slots whose layers see so little that making their shared weight would cost more than using it."""
    return frozenset(
        name
        for name, e in expressions.items()
        if seen.positions.get(name)
        and factored_pays_when_shared(e.kinds, LayerSize.of(e.slot, seen.positions[name], e.grow, batch))
    )

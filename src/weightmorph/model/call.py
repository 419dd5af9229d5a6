"""What a call looks at before and after the base runs: θ's batch, its distinct settings, the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import BatchSizeError, ExecutionError
from ..execution import StandIn
from ..parameters import Theta
from ..slots import Slot

__all__ = ["MIN_PER_BUCKET", "batch_size", "buckets", "refuse_folded", "refuse_weights"]

MIN_PER_BUCKET = 4
"""Samples that must share a setting on average for a batch to be run setting by setting."""


def batch_size(theta: Theta) -> int | None:
    """B, or None where θ is shared."""
    value = next(iter(theta.values()))
    return value.shape[0] if value.dim() else None


def buckets(theta: Theta, size: int) -> tuple[Theta, Tensor | None]:
    """The distinct settings and each sample's, where few are distinct and counting them costs no synchronisation."""
    values = list(theta.values())
    if values[0].device.type != "cpu" or size < MIN_PER_BUCKET or any(v.requires_grad for v in values):
        return theta, None
    # Mostly all of them are distinct, which a single parameter shows in a tenth of the time of all together.
    if any(len(torch.unique(v)) * MIN_PER_BUCKET > size for v in values):
        return theta, None
    settings, index = torch.unique(torch.stack(values, -1), dim=0, return_inverse=True)
    if len(settings) * MIN_PER_BUCKET > size:
        return theta, None
    return dict(zip(theta, settings.unbind(-1), strict=True)), index


def refuse_folded(slots: Mapping[str, Slot], folded: Sequence[str] | None) -> None:
    """One θ per sample needs the batch first in every conditioned layer."""
    if folded:
        raise BatchSizeError(
            f"layer {slots[folded[0]].layer!r} reads an input whose first axis is not the batch "
            f"(seen with the example at two batch sizes; {len(folded)} such tensors), so it cannot have one θ "
            "per sample. Give one θ for the whole batch, or deselect it with select="
        )


def refuse_weights(output: Any) -> Any:
    """An output must not hold a weight: it would carry a hidden batch axis."""
    if isinstance(output, StandIn):
        raise ExecutionError(f"the base returns {output!r}, a weight; read it with model.weights(…)")
    for item in output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ():
        refuse_weights(item)
    return output

"""The linear layer as a layer operation: a convolution without space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..slots import Grow, Slot
from .base import LayerOp, Part
from .cost import LayerSize
from .memory import rematerialise, reshape_owned

__all__ = ["Linear"]


@dataclass(frozen=True)
class Linear(LayerOp):
    """$y_b = x_b W^T$: x `(B, …, I)` -> `(B, …, O)`."""

    kind = "linear"
    traced: bool = False
    groups: int = 1

    def __call__(self, x: Tensor, weight: Tensor, *, grow: Grow = ()) -> Tensor:
        return F.linear(x, weight)

    def size(self, x: Tensor, slot: Slot, grow: Grow, training: bool) -> LayerSize:
        t = slot.n_taps
        outputs, columns = slot.shape
        batch = None if self.traced else x.shape[0]
        return LayerSize(
            x.shape[1:-1].numel(), 1, outputs, columns // t, t, t, "linear", batch=batch, training=training,
            tracing=self.traced,
        )  # fmt: skip

    def per_output(self, value: Tensor, y: Tensor) -> Tensor:
        if value.dim() == 1:
            return value.to(y.dtype)
        return value.to(y.dtype).reshape(value.shape[0], *(1,) * (y.dim() - 2), value.shape[-1])

    def low_rank(self, x: Tensor, narrow: Tensor, left: Tensor, gain: Tensor, y: Tensor | None) -> Tensor:
        inner = F.linear(x, narrow)
        update = F.linear(inner * self.per_output(gain, inner), left[0])
        return update if y is None else y + update

    def weight_sets(self, x: Tensor, bank: Tensor, mix: Tensor, y: Tensor | None) -> Tensor:
        sets = F.linear(x, bank.movedim(0, 1).flatten(0, 1)).unflatten(-1, (bank.shape[1], bank.shape[0]))
        total: Tensor = (sets * self.per_output(mix, sets[..., 0]).unsqueeze(-2)).sum(-1)
        return total if y is None else y + total

    def mixed_taps(
        self, x: Tensor, slot: Slot, weight: Tensor, mix: Tensor, grow: Grow, update: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        rows = torch.bmm(x.reshape(x.shape[0], -1, mix.shape[-1]), mix.to(x.dtype).transpose(1, 2))
        return F.linear(rows.reshape(x.shape), weight)

    def per_sample(self, x: Tensor, parts: Sequence[Part], route: str, grow: Grow, recompute: bool) -> Tensor:
        outputs = []
        for part, materialise in parts:
            weight = materialise()
            with rematerialise((weight, materialise), when=recompute):
                outputs.append(_product(part, weight))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """Rows times one weight `(O, I)`, or one per sample `(B, O, I)`."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    y = torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), weight.to(x.dtype).transpose(1, 2))
    return reshape_owned(y, (*x.shape[:-1], weight.shape[1]))

"""The code side of many slots in a handful of operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import anchored

__all__ = ["networks"]


def networks(
    members: Sequence[nn.Sequential], code: Tensor, home: Tensor, after: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, ...]:
    """$h(g_s(c)) - h(g_s(c_0))$ of many gain networks $g_s$ of one size, exactly zero at the anchor.

    One product for all their first layers and one batched product for all their last ones, the anchor being one more
    row.

    Shapes:
        code `(*B, K)`, home `(K,)` -> per network `(*B, outputs)`.
    """
    rows = torch.cat((code.reshape(-1, code.shape[-1]), home.unsqueeze(0)))
    first, last = zip(*[(m[0], m[2]) for m in members], strict=True)
    inner = F.linear(rows, torch.cat([m.weight for m in first]), torch.cat([m.bias for m in first]))
    hidden = torch.tanh(inner).unflatten(-1, (len(members), -1)).transpose(0, 1)
    out = torch.bmm(hidden, torch.stack([m.weight for m in last]).transpose(1, 2))
    if last[0].bias is not None:
        out = out + torch.stack([m.bias for m in last]).unsqueeze(1)
    out = out if after is None else after(out)
    difference = (out[:, :-1] - out[:, -1:]).reshape(len(members), *code.shape[:-1], out.shape[-1])
    return anchored(difference, code, home, lead=1).unbind()

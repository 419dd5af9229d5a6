"""The code side of many slots in a handful of operations."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import anchored

__all__ = ["grouped", "networks"]

T = TypeVar("T")


def grouped(members: Sequence[T], key: Callable[[T], Hashable]) -> list[list[int]]:
    """Positions of the members that share a key, the keys in the order in which they first occur.

    Example:
        >>> grouped(["a", "bb", "c"], len)
        [[0, 2], [1]]
    """
    found: dict[Hashable, list[int]] = {}
    for number, member in enumerate(members):
        found.setdefault(key(member), []).append(number)
    return list(found.values())


def networks(
    members: Sequence[nn.Sequential], code: Tensor, home: Tensor, after: Callable[[Tensor], Tensor] | None = None
) -> list[Tensor]:
    """$h(g_s(c)) - h(g_s(c_0))$ of many gain networks $g_s$, exactly zero at the anchor.

    Networks of one size go together: one product for all their first layers and one batched product for all their last
    ones, the anchor being one more row.

    Shapes:
        code `(*B, K)`, home `(K,)` -> per network `(*B, outputs)`.
    """
    made: dict[int, Tensor] = {}
    rows = torch.cat((code.reshape(-1, code.shape[-1]), home.unsqueeze(0)))
    for numbers in grouped(members, lambda m: (tuple(m[0].weight.shape), tuple(m[2].weight.shape))):
        first, last = [members[n][0] for n in numbers], [members[n][2] for n in numbers]
        inner = F.linear(rows, torch.cat([m.weight for m in first]), torch.cat([m.bias for m in first]))
        hidden = torch.tanh(inner).unflatten(-1, (len(numbers), -1)).transpose(0, 1)
        out = torch.bmm(hidden, torch.stack([m.weight for m in last]).transpose(1, 2))
        if last[0].bias is not None:
            out = out + torch.stack([m.bias for m in last]).unsqueeze(1)
        out = out if after is None else after(out)
        difference = (out[:, :-1] - out[:, -1:]).reshape(len(numbers), *code.shape[:-1], out.shape[-1])
        made |= zip(numbers, anchored(difference, code, home, lead=1).unbind(), strict=True)
    return [made[number] for number in range(len(members))]

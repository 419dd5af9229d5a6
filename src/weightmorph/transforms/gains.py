"""Gain networks: the small MLPs that turn a code into gains, one at a time or those of many slots at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import TransformError
from .base import zero_at_anchor

__all__ = ["check_hidden", "gain_difference", "gain_differences", "gain_network"]

Activation = Callable[[Tensor], Tensor]


def check_hidden(family: str, hidden: object) -> None:
    """Refuse a size of the hidden layer that is no whole number from 1.

    Raises:
        TransformError: naming the family.
    """
    if isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 1:
        raise TransformError(f"{family}: expected 1 or more hidden units, got {hidden!r}")


def gain_network(code_dim: int, outputs: int, hidden: int, bias: bool = True) -> nn.Sequential:
    """An MLP with one hidden layer: code `(*B, K)` -> gains `(*B, outputs)`."""
    return nn.Sequential(nn.Linear(code_dim, hidden), nn.Tanh(), nn.Linear(hidden, outputs, bias=bias))


def gain_difference(
    network: nn.Sequential, code: Tensor, anchor_code: Tensor, after: Activation | None = None
) -> Tensor:
    """$h(g(c)) - h(g(c_0))$ of one gain network $g$, exactly zero at the anchor; $h$ is `after`.

    Shapes:
        code `(*B, K)`, anchor_code `(K,)` -> `(*B, outputs)`.
    """
    here, at_anchor = network(code), network(anchor_code)
    difference = here - at_anchor if after is None else after(here) - after(at_anchor)
    return zero_at_anchor(difference, code, anchor_code)


def gain_differences(
    networks: Sequence[nn.Sequential], code: Tensor, anchor_code: Tensor, after: Activation | None = None
) -> tuple[Tensor, ...]:
    """`gain_difference` of many networks of one size.

    All first layers are one product and all last layers are one batched product; the anchor is one more row.

    Shapes:
        code `(*B, K)`, anchor_code `(K,)` -> per network `(*B, outputs)`.
    """
    rows = torch.cat((code.reshape(-1, code.shape[-1]), anchor_code.unsqueeze(0)))
    first, last = zip(*[(network[0], network[2]) for network in networks], strict=True)
    inner = F.linear(rows, torch.cat([m.weight for m in first]), torch.cat([m.bias for m in first]))
    hidden = torch.tanh(inner).unflatten(-1, (len(networks), -1)).transpose(0, 1)
    out = torch.bmm(hidden, torch.stack([m.weight for m in last]).transpose(1, 2))
    if last[0].bias is not None:
        out = out + torch.stack([m.bias for m in last]).unsqueeze(1)
    out = out if after is None else after(out)
    difference = (out[:, :-1] - out[:, -1:]).reshape(len(networks), *code.shape[:-1], out.shape[-1])
    return zero_at_anchor(difference, code, anchor_code, lead=1).unbind()

"""The density over θ that a model's head gives for every sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..estimator import Estimator
from ..parameters import Theta
from .calls import Calls

__all__ = ["HeadDensity"]


class HeadDensity:
    r"""$\log q(\theta \mid x)$ of all samples, relative to the uniform density.

    Args:
        head: the model's estimator.
        calls: the model and the samples. The base runs up to the head's last layer, once for each sample.
    """

    def __init__(self, head: Estimator, calls: Calls) -> None:
        self.head = head
        parts = []
        for rows in calls.inputs.chunks(calls.limit):
            args, kwargs = calls.inputs.take(rows)
            parts.append(head(head.read(calls.model.frozen(), args, kwargs)))
        self.weights = {name: torch.cat([part[name] for part in parts]).float().cpu() for name in parts[0]}

    def over(self, settings: Mapping[str, Tensor]) -> Tensor:
        """The log density of every sample at the same settings, name to `(K,)`: `(B, K)`."""
        return self.head.log_density(self.weights, {name: value.unsqueeze(0) for name, value in settings.items()})

    def at(self, theta: Mapping[str, Tensor]) -> Tensor:
        """The log density of each sample at its own θ `(B,)`, or at a shared one `()`: `(B,)`."""
        weights = {name: self.weights[name] for name in theta}
        return self.head.log_density(weights, {name: v.reshape(-1, 1) for name, v in theta.items()}).squeeze(1)

    def most_likely(self, names: list[str], *, pooled: bool) -> Theta:
        """The maximum of the density of each parameter: name to `(B,)`, or to `(1,)` if all samples share θ."""
        return self.head.most_likely(self.weights, names, pooled=pooled)

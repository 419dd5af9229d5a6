"""How far estimates of θ are from the truth."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..estimation import Inferred
from ..parameters import ParameterSpace

__all__ = ["EstimateErrors"]


class EstimateErrors:
    """How far estimates of θ were from the truth, gathered over the settings.

    Args:
        space: the parameters.
    """

    def __init__(self, space: ParameterSpace) -> None:
        self.space = space
        self.clear()

    def clear(self) -> None:
        """Forget what was gathered."""
        self._distances: dict[str, list[Tensor]] = {}
        self._abstained: list[Tensor] = []

    def add(self, found: Inferred, theta: Mapping[str, float]) -> None:
        """Add the estimates at one setting."""
        for name, value in found.theta.items():
            estimate = torch.atleast_1d(value).cpu().double()
            self._distances.setdefault(name, []).append(self.space[name].distance(estimate, theta[name]))
        self._abstained.append(torch.atleast_1d(found.abstain).cpu())

    @property
    def typical(self) -> dict[str, float]:
        """The median distance of each parameter, in its unit; of a Categorical the share that was wrong."""
        distances = {name: torch.cat(parts) for name, parts in self._distances.items()}
        return {
            name: float(values.mean() if self.space[name].discrete else values.quantile(0.5))
            for name, values in distances.items()
        }

    @property
    def abstained(self) -> float:
        """The share of estimates that were abstained from."""
        return float(torch.cat(self._abstained).double().mean())

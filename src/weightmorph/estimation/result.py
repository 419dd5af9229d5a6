"""The result of `infer`, and the summary of a posterior over candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import UnknownParameterError, near
from ..parameters import Theta
from .candidates import Candidates

__all__ = ["Inferred", "Method", "Pool", "close_to", "spread_of"]

Method: TypeAlias = Literal["head", "search", "both"]
"""Where the evidence comes from."""

Pool: TypeAlias = Literal["image", "batch", "stream"]
"""Which samples share θ: none, all, or neighbours in time."""

CERTAIN = 2 / 3
"""An estimate has `abstain` set if less than this share of the probability lies near it."""

NEAR = 12
"""By default, values within 1/12 of the range to either side are near: 30° of a circle."""


@dataclass(frozen=True)
class Inferred:
    r"""Estimates of θ from data, how certain they are, and the network's outputs at them.

    Attributes:
        theta: the estimates, by name: `(B,)`, or `()` where the whole batch shares one. Any call takes them:
            `model(x, **found.theta)`.
        spread: the posterior's standard deviation about its mean, in the parameter's unit (for a `LogInterval`, at the
            estimate); circular for an angle, $\sqrt{-2 \log R}$. It is at least the resolution of the candidates, and
            at most the standard deviation of the uniform distribution. For a `Categorical`, the probability of another
            category. Shapes as `theta`.
        confidence: the posterior's share near the estimate in all parameters: within 1/12 of the range to either side,
            or within `tolerance`. Shape as `theta`.
        abstain: whether `confidence` is below 2/3. An object that looks the same from two sides, such as a 6 that may
            be a 9, has about half of the posterior at either; a disc has a little everywhere.
        score: the objective at the estimate, lower is better, the mean over the samples that share it; for the method
            `"head"`, minus the head's log density.
        outputs: the network's outputs at the estimate, as a call gives them.
        posterior: probabilities of the candidates: `(B, K)`, or `(K,)` where the whole batch shares θ.
        candidates: name to `(K,)`.
        method: `"head"`, `"search"` or `"both"`.
        pool: `"image"`, `"batch"` or `"stream"`.
        runs: runs of the network per sample, including the one that gave the outputs.

    Example:
        >>> import weightmorph as wm
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
        >>> found = wm.infer(model, torch.rand(2, 1, 4, 4))  # an untrained transform: every angle is equally likely
        >>> print(found)
        angle ± 1e+02, inferred per image by search; 2 of 2 abstained from; 37 network runs a sample
    """

    theta: Theta
    spread: Theta
    confidence: Tensor
    abstain: Tensor
    score: Tensor
    outputs: Any = field(repr=False)
    posterior: Tensor = field(repr=False)
    candidates: Theta = field(repr=False)
    method: Method
    pool: Pool
    runs: float

    def __getitem__(self, name: str) -> Tensor:
        """The estimates of one parameter."""
        if name not in self.theta:
            raise UnknownParameterError(
                f"nothing was inferred of {name!r}; known: {', '.join(self.theta)}{near(name, self.theta)}"
            )
        return self.theta[name]

    def to(self, device: torch.device | str) -> Inferred:
        """The same result with its tensors on a device; the outputs stay where they are."""

        def moved(theta: Theta) -> Theta:
            return {name: value.to(device) for name, value in theta.items()}

        return replace(
            self,
            theta=moved(self.theta),
            spread=moved(self.spread),
            confidence=self.confidence.to(device),
            abstain=self.abstain.to(device),
            score=self.score.to(device),
            posterior=self.posterior.to(device),
            candidates=moved(self.candidates),
        )

    def __str__(self) -> str:
        whose = {"image": "per image", "batch": "for the batch", "stream": "along the stream"}[self.pool]
        parts = []
        for name, value in self.theta.items():
            spread = float(self.spread[name].double().median())
            parts.append(f"{name} {float(value):.4g} ± {spread:.2g}" if not value.dim() else f"{name} ± {spread:.2g}")
        many = self.abstain.numel()
        left = f"{int(self.abstain.sum())} of {many} abstained from" if many > 1 else ""
        left = left or ("abstained from" if bool(self.abstain) else "not abstained from")
        return f"{', '.join(parts)}, inferred {whose} by {self.method}; {left}; {self.runs:.3g} network runs a sample"


def spread_of(candidates: Candidates, posterior: Tensor, theta: Mapping[str, Tensor]) -> Theta:
    """Standard deviation of each parameter under a posterior `(B, K)`: name to `(B,)`."""
    spreads: Theta = {}
    for name, axis in candidates.axes.items():
        if axis.discrete:
            same = candidates.theta[name] == theta[name].unsqueeze(1)
            spreads[name] = 1 - (posterior * same).sum(1)
            continue
        here = candidates.coordinates[name].double()
        p = posterior.double()
        if axis.period is not None:
            radians = here * (math.tau / axis.period)
            length = torch.hypot(p @ radians.cos(), p @ radians.sin()).clamp(1e-12, 1.0)
            variance = -2 * length.log() * (axis.period / math.tau) ** 2
        else:
            variance = (p @ here**2 - (p @ here) ** 2).clamp_min(0)
        # A candidate represents its cell, whose own variance is added.
        sigma = (variance + candidates.spacing[name] ** 2 / 12).clamp_max(axis.span**2 / 12).sqrt()
        at = axis.coordinate(theta[name].double())
        values = [candidates.parameters[name].from_coordinate(at + side * 0.5 * sigma) for side in (1, -1)]
        spreads[name] = (values[0] - values[1]).abs().float()
    return spreads


def close_to(
    candidates: Candidates, posterior: Tensor, theta: Mapping[str, Tensor], tolerance: Mapping[str, float]
) -> Tensor:
    """The share of a posterior `(B, K)` within the tolerance of the estimate in every parameter: `(B,)`."""
    inside = torch.ones_like(posterior, dtype=torch.bool)
    for name, axis in candidates.axes.items():
        away = axis.difference(candidates.coordinates[name], axis.coordinate(theta[name]).unsqueeze(1)).abs()
        reach = 0.5 if axis.discrete else axis.span / NEAR
        if name in tolerance and not axis.discrete:
            reach = candidates.in_coordinate(name, tolerance[name])
        inside &= away <= reach * (1 + 1e-6) + 1e-6
    return (posterior * inside).sum(1)

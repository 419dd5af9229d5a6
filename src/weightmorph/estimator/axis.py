"""An axis: the range of one parameter as an even grid, with a kernel at each of its values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..parameters import Parameter

__all__ = ["Axis", "peak"]

WIDTH = 0.7
"""Standard deviation of a kernel in steps of the grid: narrow, but without gaps between two kernels."""


class Axis:
    r"""An even grid over one parameter, from end to end or round the circle, with a kernel at every value.

    A kernel is a density in the parameter's coordinate: von Mises with concentration $1/\sigma^2$ for an angle, a
    normal density truncated to the range for an interval, one category for a `Categorical`. Densities are relative to
    the uniform one, so that a density of 1 carries no information.

    Args:
        parameter: the parameter.
        size: number of values K; a `Categorical` has one value per name.

    Attributes:
        values: `(K,)` in float32.
        coordinates: coordinates of the values, `(K,)`.
        period: period of the coordinate, or None.
        discrete: whether the values are names.
        span: length of the range in the coordinate; K for a `Categorical`.
        step: distance of two neighbours in the coordinate.

    Example:
        >>> from weightmorph import Angle
        >>> axis = Axis(Angle("deg"), 36)
        >>> axis.difference(axis.coordinate(torch.tensor(350.0)), axis.coordinate(torch.tensor(10.0))).rad2deg().round()
        tensor(-20.)
    """

    def __init__(self, parameter: Parameter, size: int) -> None:
        self.parameter = parameter
        with torch.device("cpu"):  # whatever the default device is, because these numbers are read on the host
            self.values = parameter.grid(size)
            self.coordinates = self.coordinate(self.values)
        self.period = parameter.period
        self.discrete = parameter.discrete
        size = len(self.values)
        ends = float(self.coordinates[-1] - self.coordinates[0])
        self.span = float(size) if self.discrete else self.period or ends
        self.step = self.span / (size if self.discrete or self.period else max(size - 1, 1))

    def __len__(self) -> int:
        return len(self.values)

    def coordinate(self, value: Tensor) -> Tensor:
        """Values `(*B)` to coordinates `(*B)`."""
        return self.parameter.coordinate(self.parameter.encode(value))

    def value(self, coordinate: Tensor) -> Tensor:
        """Coordinates `(*B)` to values `(*B)`; an angle lies within one turn from the anchor on."""
        if self.period is not None:
            coordinate = torch.remainder(coordinate, self.period)
        return self.parameter.from_coordinate(coordinate)

    def difference(self, one: Tensor, other: Tensor) -> Tensor:
        """`one - other` in coordinates, the short way round the circle."""
        if self.period is None:
            return one - other
        half = self.period / 2
        return torch.remainder(one - other + half, self.period) - half

    def log_kernels(self, value: Tensor) -> Tensor:
        """Log density of every kernel at values `(*V)`: `(*V, K)`, relative to the uniform density. Differentiable."""
        centres = self.coordinates.to(value)
        away = self.difference(self.coordinate(value).unsqueeze(-1), centres)
        if self.discrete:
            return torch.where(away.abs() < 0.5, math.log(len(self)), -torch.inf)
        sigma = WIDTH * self.step
        if self.period is not None:
            kappa = torch.tensor((self.period / math.tau / sigma) ** 2, dtype=torch.float64)
            height = float(torch.special.i0e(kappa).log())
            return float(kappa) * (torch.cos(away * (math.tau / self.period)) - 1) - height
        low, high = (centres[0] - centres) / sigma, (centres[-1] - centres) / sigma
        inside = torch.special.ndtr(high) - torch.special.ndtr(low)
        return -0.5 * (away / sigma) ** 2 - torch.log(inside * (sigma * math.sqrt(math.tau) / self.span))


def peak(values: Tensor, best: Tensor, circular: bool) -> Tensor:
    r"""The offset of a smooth function's maximum from its best grid point, by a parabola through three points.

    $$\delta = \tfrac12 \frac{f_{-1} - f_{+1}}{f_{-1} - 2 f_0 + f_{+1}}$$

    Args:
        values: `(B, K)` along evenly spaced points.
        best: `(B,)` indices of the highest value.
        circular: whether the last point is a neighbour of the first.

    Returns:
        offsets `(B,)` in steps, from -0.5 to 0.5; 0 at an end of the range.

    Example:
        >>> peak(torch.tensor([[0.0, 3.0, 4.0, 1.0]]), torch.tensor([2]), circular=False)
        tensor([-0.2500])
    """
    size = values.shape[1]
    before, after = (best - 1) % size, (best + 1) % size
    low, mid, high = (values.gather(1, at.unsqueeze(1)).squeeze(1) for at in (before, best, after))
    bend = low - 2 * mid + high
    move = torch.where(bend < 0, 0.5 * (low - high) / bend, torch.zeros_like(bend))
    inside = torch.ones_like(best, dtype=torch.bool) if circular else (best > 0) & (best < size - 1)
    sound = inside & torch.isfinite(move)
    return torch.where(sound, move, torch.zeros_like(move)).clamp(-0.5, 0.5)

"""Candidates: the values of θ that are tried, as a grid, or as a Sobol sequence where a grid would be too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from ..errors import InputError, ParameterError, ParameterValueError, near
from ..estimator import Axis, peak
from ..parameters import Parameter, ParameterSpace, Theta, Value

__all__ = ["Candidates", "lay_out"]

EACH: Mapping[int, int] = {1: 36, 2: 12}
"""Number of unknown parameters to values of each of them. With more unknown parameters the candidates are …"""

SCATTERED = 256
"""… so many points of a Sobol sequence."""

FINE: Mapping[int, int] = {1: 180, 2: 36}
"""The same as `EACH` where no network runs for a candidate."""


class Candidates:
    """Settings of the unknown parameters, and which of them are neighbours.

    Attributes:
        parameters: the unknown parameters, by name.
        axes: the grid over each.
        theta: the settings: name to `(K,)`.
        shape: values of each parameter if the settings are all combinations of them, in their order; otherwise empty.
        neighbours: `(K, J)` indices: one step along each parameter in both directions (at an end, the candidate
            itself); of scattered settings, the nearest ones.
        spacing: name to the distance of neighbours, in the parameter's coordinate.
    """

    def __init__(self, parameters: Mapping[str, Parameter], axes: Mapping[str, Axis], theta: Theta, grid: bool) -> None:
        self.parameters, self.axes, self.theta = dict(parameters), dict(axes), theta
        self.shape = tuple(len(axis) for axis in axes.values()) if grid else ()
        self.coordinates = {name: axes[name].coordinate(value) for name, value in theta.items()}
        if grid:
            self.spacing = {name: axis.step for name, axis in axes.items()}
            self.neighbours = self._grid_neighbours()
        else:
            share = len(self) ** (1 / len(axes))
            self.spacing = {name: axis.span / max(share, 2.0) for name, axis in axes.items()}
            self.neighbours = self.distances().argsort(stable=True, dim=1)[:, 1 : 1 + 2 * len(axes)]

    def __len__(self) -> int:
        return len(next(iter(self.theta.values())))

    def setting(self, index: int) -> dict[str, float]:
        """One candidate as numbers."""
        return {name: float(value[index]) for name, value in self.theta.items()}

    def _grid_neighbours(self) -> Tensor:
        index = torch.arange(len(self)).reshape(self.shape)
        columns = []
        for number, axis in enumerate(self.axes.values()):
            for step in (1, -1):
                moved = index.roll(step, number)
                if axis.period is None:
                    end = 0 if step == 1 else self.shape[number] - 1
                    moved.select(number, end).copy_(index.select(number, end))
                columns.append(moved.flatten())
        return torch.stack(columns, 1)

    def distances(self) -> Tensor:
        """Squared distances of all candidates, `(K, K)`: in units of each range, 1 between two categories."""
        total = torch.zeros(len(self), len(self))
        for name, axis in self.axes.items():
            here = self.coordinates[name]
            away = axis.difference(here.unsqueeze(1), here.unsqueeze(0))
            total += (away.abs() > 0.5).float() if axis.discrete else (away / axis.span) ** 2
        return total

    def peaks(self, evidence: Tensor, most: int) -> Tensor:
        """The highest local maxima of evidence `(B, K)`, best first: `(B, min(most, K))` indices.

        Where there are fewer local maxima, the best other candidates follow them.
        """
        is_peak = evidence >= evidence[:, self.neighbours].amax(-1)
        penalty = (evidence.amin(1, keepdim=True) - evidence.amax(1, keepdim=True)) - 1.0
        return torch.where(is_peak, evidence, evidence + penalty).topk(min(most, len(self)), 1).indices

    def between(self, evidence: Tensor, best: Tensor) -> Theta:
        """The best candidates `(B,)`, on a grid moved to the top of a parabola through neighbours: name to `(B,)`."""
        theta: Theta = {}
        rows = torch.arange(len(best), device=best.device)
        for number, (name, axis) in enumerate(self.axes.items()):
            value = self.theta[name].to(evidence)[best]
            if self.shape and not axis.discrete:
                cube = evidence.reshape(-1, *self.shape).movedim(1 + number, -1)
                where = list(torch.unravel_index(best, self.shape))
                at = where.pop(number)
                move = peak(cube[tuple([rows, *where])], at, axis.period is not None) * axis.step
                value = axis.value(self.coordinates[name].to(value)[best] + move)
            theta[name] = value
        return theta

    def diffusion(self, drift: Mapping[str, float]) -> Tensor:
        r"""Transition probabilities of θ from one frame to the next: `(K, K)`, row i from candidate i.

        θ walks at random, with standard deviation `drift` in each parameter, in its unit (of a `LogInterval`, at the
        anchor); an angle goes round the circle. For a `Categorical`, `drift` is the probability of a change. If
        $\sigma$ is below half the step $\Delta$ between candidates, $\sigma^2 / (2 \Delta^2)$ of the probability goes
        to either side, which keeps the variance.
        """
        total = torch.zeros(len(self), len(self), dtype=torch.float64)
        for name, axis in self.axes.items():
            here = self.coordinates[name].double()
            away = axis.difference(here.unsqueeze(0), here.unsqueeze(1)).abs()
            step = self.spacing[name]
            if axis.discrete:
                moved = torch.where(away < 0.5, 1 - drift[name], drift[name] / max(len(axis) - 1, 1))
            else:
                sigma = self.in_coordinate(name, drift[name])
                moved = torch.exp(-0.5 * (away / max(sigma, step / 2)) ** 2)
                if sigma < step / 2:
                    share = sigma**2 / (2 * step**2)
                    moved = torch.where(away < step / 2, 1 - 2 * share, share * (away < 1.5 * step))
            total += torch.log(moved.clamp_min(1e-300))
        return total.softmax(1).float()

    def in_coordinate(self, name: str, amount: float) -> float:
        """A difference in a parameter's unit (of a `LogInterval`, from the anchor) as one of its coordinate."""
        parameter, axis = self.parameters[name], self.axes[name]
        if axis.period is not None and parameter.turn is not None:
            return amount * axis.period / parameter.turn
        ends = torch.tensor([parameter.anchor_value, parameter.anchor_value + amount], dtype=torch.float64)
        anchor, there = axis.coordinate(ends).tolist()
        return float(abs(there - anchor))

    def range_of(self, name: str) -> float:
        """The length of a parameter's range in its unit; 1 for a `Categorical`, as a probability."""
        parameter = self.parameters[name]
        if parameter.discrete:
            return 1.0
        low, high = parameter.bounds or (0.0, parameter.turn or 0.0)
        return high - low


def lay_out(
    space: ParameterSpace,
    unknown: Sequence[str],
    wanted: int | Mapping[str, int] | Mapping[str, Value] | None = None,
    fine: bool = False,
) -> Candidates:
    """Candidates for some parameters of a space.

    Args:
        space: all parameters.
        unknown: names of the parameters to be inferred.
        wanted: number of values of each parameter; or a number per parameter; or the settings themselves, one list per
            parameter, all of one length. Unless given, 36 values of one parameter, 12 each of two, and 256 scattered
            points for more.
        fine: whether no network runs for a candidate, so that more candidates cost nothing.

    Raises:
        ParameterError: if the settings do not fit the parameters.
        InputError: if a number is too small.

    References:
        Sobol, "On the distribution of points in a cube and the approximate evaluation of integrals", 1967, for the
        scattered points; scrambled, with a fixed seed.

    Example:
        >>> from weightmorph import Angle, Interval
        >>> both = lay_out(ParameterSpace({"angle": Angle("deg"), "blur": Interval(0.0, 4.0)}), ["angle", "blur"])
        >>> len(both), both.shape, round(both.setting(1)["blur"], 3)
        (144, (12, 12), 0.364)
    """
    parameters = {name: space[name] for name in unknown}
    if isinstance(wanted, Mapping):
        for name in (*wanted, *parameters):
            if name not in parameters or name not in wanted:
                raise ParameterError(
                    f"candidates: expected {', '.join(parameters)}, got {', '.join(wanted)}{near(name, parameters)}"
                )
        if not all(isinstance(value, int) for value in wanted.values()):
            return _given(parameters, wanted)
    sizes = _sizes(parameters, wanted, fine)
    axes = {name: Axis(parameter, sizes.get(name, SCATTERED)) for name, parameter in parameters.items()}
    if sizes:
        mesh = torch.meshgrid(*[axis.values for axis in axes.values()], indexing="ij")
        return Candidates(parameters, axes, {n: m.flatten() for n, m in zip(axes, mesh, strict=True)}, grid=True)
    points = SobolEngine(len(parameters), scramble=True, seed=0).draw(SCATTERED).unbind(1)
    return Candidates(parameters, axes, {n: _scaled(axes[n], u) for n, u in zip(axes, points, strict=True)}, False)


def _sizes(parameters: Mapping[str, Parameter], wanted: object, fine: bool) -> dict[str, int]:
    """Number of values of each parameter; empty where the settings are to be scattered."""
    sizes: dict[str, object]
    if isinstance(wanted, Mapping):
        sizes = dict(wanted)
    elif wanted is None:
        each = (FINE if fine else EACH).get(len(parameters))
        sizes = {} if each is None else dict.fromkeys(parameters, each)
    else:
        sizes = dict.fromkeys(parameters, wanted)
    checked: dict[str, int] = {}
    for name, size in sizes.items():
        least = 1 if parameters[name].discrete else 3
        if isinstance(size, bool) or not isinstance(size, int) or size < least:
            raise InputError(f"candidates: expected {least} values or more of {name!r}, or the settings, got {size!r}")
        checked[name] = size
    return checked


def _given(parameters: Mapping[str, Parameter], wanted: Mapping[str, Value]) -> Candidates:
    """The settings that the user listed."""
    settings = {name: torch.atleast_1d(parameters[name].tensor(name, wanted[name])) for name in parameters}
    lengths = {name: len(value) for name, value in settings.items()}
    if len(set(lengths.values())) != 1 or min(lengths.values()) < 2:
        raise ParameterValueError(
            f"candidates: expected two settings or more, as one list per parameter and all of one length, got {lengths}"
        )
    for name, value in settings.items():
        parameters[name].check(name, value)
    size = next(iter(lengths.values()))
    axes = {name: Axis(parameter, max(size, 3)) for name, parameter in parameters.items()}
    return Candidates(parameters, axes, {name: value.float() for name, value in settings.items()}, grid=False)


def _scaled(axis: Axis, unit: Tensor) -> Tensor:
    """Points of the unit interval to values over the whole range."""
    if axis.discrete:
        return axis.values[(unit * len(axis)).long().clamp(max=len(axis) - 1)]
    return axis.parameter.from_coordinate(axis.coordinates[0] + unit * axis.span)

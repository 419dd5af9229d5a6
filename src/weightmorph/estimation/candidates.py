"""The values of θ that are tried: a grid, or a Halton sequence where a grid would be too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import InputError, ParameterError, ParameterValueError, near
from ..estimator import Axis, peak
from ..parameters import Categorical, Parameter, ParameterSpace, Theta, Value

__all__ = ["Candidates", "halton", "lay_out"]

EACH: Mapping[int, int] = {1: 36, 2: 12}
"""Values of each parameter, by how many are unknown; for more of them, …"""

SCATTERED = 256
"""… so many points of a Halton sequence."""

FINE: Mapping[int, int] = {1: 180, 2: 36}
"""The same where no network is run for a candidate."""

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)


def halton(size: int, axes: int) -> Tensor:
    """The first points of the Halton sequence, evenly spread over the unit cube: `(size, axes)` in float64.

    References:
        Halton, "On the efficiency of certain quasi-random sequences of points", 1960.

    Example:
        >>> halton(3, 2)[:, 0].tolist()
        [0.5, 0.25, 0.75]
    """
    if axes > len(PRIMES):
        raise InputError(f"candidates: at most {len(PRIMES)} parameters can be inferred together, got {axes}")
    columns = []
    for base in PRIMES[:axes]:
        column = []
        for number in range(1, size + 1):
            value, digit = 0.0, 1.0
            while number:
                digit /= base
                number, rest = divmod(number, base)
                value += rest * digit
            column.append(value)
        columns.append(torch.tensor(column, dtype=torch.float64))
    return torch.stack(columns, 1)


class Candidates:
    """Settings of the unknown parameters, and who is near whom.

    Attributes:
        parameters: the unknown ones, by name.
        axes: how each is laid out.
        theta: the settings, name to `(K,)`.
        shape: values of each parameter if the settings are all combinations of them, in their order; otherwise empty.
        neighbours: `(K, J)` indices: one step along each parameter both ways (at an end, the candidate itself).
        spacing: name to the distance of neighbours, in the parameter's coordinate.
    """

    def __init__(self, parameters: Mapping[str, Parameter], axes: Mapping[str, Axis], theta: Theta, grid: bool) -> None:
        self.parameters, self.axes, self.theta = dict(parameters), dict(axes), theta
        self.shape = tuple(len(axis) for axis in axes.values()) if grid else ()
        self.coordinates = {name: axes[name].coordinate(value) for name, value in theta.items()}
        if grid:
            self.spacing = {name: axis.step for name, axis in axes.items()}
            self.neighbours = self._along()
        else:
            share = len(self) ** (1 / len(axes))
            self.spacing = {name: axis.span / max(share, 2.0) for name, axis in axes.items()}
            self.neighbours = self.distances().argsort(stable=True, dim=1)[:, 1 : 1 + 2 * len(axes)]

    def __len__(self) -> int:
        return len(next(iter(self.theta.values())))

    def setting(self, index: int) -> dict[str, float]:
        """One candidate as numbers."""
        return {name: float(value[index]) for name, value in self.theta.items()}

    def _along(self) -> Tensor:
        index = torch.arange(len(self)).reshape(self.shape)
        found = []
        for number, axis in enumerate(self.axes.values()):
            for step in (1, -1):
                moved = index.roll(step, number)
                if axis.period is None:
                    end = 0 if step == 1 else self.shape[number] - 1
                    moved.select(number, end).copy_(index.select(number, end))
                found.append(moved.flatten())
        return torch.stack(found, 1)

    def distances(self) -> Tensor:
        """Between all candidates, `(K, K)`: squared, each parameter in units of its range, categories 1 apart."""
        total = torch.zeros(len(self), len(self))
        for name, axis in self.axes.items():
            here = self.coordinates[name]
            away = axis.difference(here.unsqueeze(1), here.unsqueeze(0))
            total += (away.abs() > 0.5).float() if axis.discrete else (away / axis.span) ** 2
        return total

    def peaks(self, evidence: Tensor, most: int) -> Tensor:
        """The best local maxima of `(B, K)`, the highest first: `(B, min(most, K))` indices.

        Where there are fewer, what is left goes to the best of the others.
        """
        top = evidence >= evidence[:, self.neighbours].amax(-1)
        low = (evidence.amin(1, keepdim=True) - evidence.amax(1, keepdim=True)) - 1.0
        return torch.where(top, evidence, evidence + low).topk(min(most, len(self)), 1).indices

    def between(self, evidence: Tensor, best: Tensor) -> Theta:
        """The best candidates `(B,)`, moved to the top of a parabola through their neighbours: name to `(B,)`."""
        found: Theta = {}
        rows = torch.arange(len(best), device=best.device)
        for number, (name, axis) in enumerate(self.axes.items()):
            value = self.theta[name].to(evidence)[best]
            if self.shape and not axis.discrete:
                cube = evidence.reshape(-1, *self.shape).movedim(1 + number, -1)
                where = list(torch.unravel_index(best, self.shape))
                at = where.pop(number)
                move = peak(cube[tuple([rows, *where])], at, axis.period is not None) * axis.step
                value = axis.value(self.coordinates[name].to(value)[best] + move)
            found[name] = value
        return found

    def diffusion(self, drift: Mapping[str, float]) -> Tensor:
        r"""How θ moves from one frame to the next: `(K, K)`, row i the probabilities from candidate i.

        A random walk of standard deviation `drift` in each parameter, in its unit (of a `LogInterval`, at the anchor);
        round the circle for an angle. Of a `Categorical` it is the probability to change. A walk shorter than half a
        step $\Delta$ between candidates keeps its variance all the same: $\sigma^2 / (2 \Delta^2)$ goes to each side.
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
        """An amount of a parameter, in its unit (of a `LogInterval`, at the anchor), in its coordinate."""
        parameter, axis = self.parameters[name], self.axes[name]
        ends = torch.tensor([parameter.anchor_value, parameter.anchor_value + amount], dtype=torch.float64)
        if axis.period is not None:  # a coordinate of more than half a turn would come back the other way
            turn = float(parameter.from_coordinate(torch.tensor(axis.period))) - parameter.anchor_value
            return amount * axis.period / turn
        home, there = axis.coordinate(ends).tolist()
        return float(abs(there - home))


def lay_out(
    space: ParameterSpace,
    unknown: Sequence[str],
    wanted: int | Mapping[str, int] | Mapping[str, Value] | None = None,
    fine: bool = False,
) -> Candidates:
    """Candidates for some parameters of a space.

    Args:
        space: all parameters.
        unknown: those to be inferred.
        wanted: values of each; or a number per parameter; or the settings themselves, one list per parameter, all of
            one length. Unless given, 36 of one, 12 each of two, and 256 scattered points for more.
        fine: no network is run for a candidate, so that there may be more.

    Raises:
        ParameterError: if the settings do not fit the parameters.
        InputError: if a number is too small.

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
    numbers = _numbers(parameters, wanted, fine)
    axes = {name: Axis(parameter, numbers.get(name, SCATTERED)) for name, parameter in parameters.items()}
    if numbers:
        mesh = torch.meshgrid(*[axis.values for axis in axes.values()], indexing="ij")
        return Candidates(parameters, axes, {n: m.flatten() for n, m in zip(axes, mesh, strict=True)}, grid=True)
    points = halton(SCATTERED, len(parameters)).float().unbind(1)
    return Candidates(parameters, axes, {n: _scatter(axes[n], u) for n, u in zip(axes, points, strict=True)}, False)


def _numbers(parameters: Mapping[str, Parameter], wanted: object, fine: bool) -> dict[str, int]:
    """How many values of each; none where they are to be scattered."""
    numbers: dict[str, object]
    if isinstance(wanted, Mapping):
        numbers = dict(wanted)
    elif wanted is None:
        each = (FINE if fine else EACH).get(len(parameters))
        numbers = {} if each is None else dict.fromkeys(parameters, each)
    else:
        numbers = dict.fromkeys(parameters, wanted)
    checked: dict[str, int] = {}
    for name, number in numbers.items():
        least = 1 if isinstance(parameters[name], Categorical) else 3
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(
                f"candidates: expected {least} values or more of {name!r}, or the settings, got {number!r}"
            )
        checked[name] = number
    return checked


def _given(parameters: Mapping[str, Parameter], wanted: Mapping[str, Value]) -> Candidates:
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


def _scatter(axis: Axis, unit: Tensor) -> Tensor:
    """Points of the unit interval to values."""
    if axis.discrete:
        return axis.values[(unit * len(axis)).long().clamp(max=len(axis) - 1)]
    return axis.parameter.from_coordinate(axis.coordinates[0] + unit * axis.span)

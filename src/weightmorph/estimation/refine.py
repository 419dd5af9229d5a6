"""A few steps downhill from a candidate, by the sign of the energy's gradient with respect to θ."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..parameters import Theta
from .calls import Calls
from .candidates import Candidates

__all__ = ["refine"]

FIRST, GROW, SHRINK = 0.25, 1.2, 0.5
"""The first step, in distances between candidates; its factor after a step that helped, and after one that did not."""


def refine(
    calls: Calls,
    candidates: Candidates,
    theta: Theta,
    prior: Callable[[Tensor | slice, Mapping[str, Tensor]], Tensor] | None,
    temperature: float,
    steps: int,
    *,
    network: bool = True,
) -> Theta:
    r"""Go downhill on $E(\theta) / \tau - \log q(\theta \mid x)$ and keep what was lowest.

    Each parameter of each sample has a step of its own, in the direction in which the energy falls: entropies of
    different samples differ by orders of magnitude, so a length that fits one gradient fits no other. A step that does
    not help is taken back and halved (Riedmiller and Braun, "RPROP", 1993).

    Args:
        calls: the model and the samples.
        candidates: from which the start was taken; they say how far a step may be.
        theta: the start, `(B,)` each, or `()` where all samples share one.
        prior: $\log q$ of some samples at θ, or None.
        temperature: $\tau$.
        steps: how many.
        network: without it, $\log q$ alone is followed.

    Returns:
        the lowest point seen, in the shapes of `theta`.
    """
    names = [name for name, axis in candidates.axes.items() if not axis.discrete]
    if not names or not steps:
        return theta
    fixed = {name: value for name, value in theta.items() if name not in names}
    place = torch.stack([candidates.axes[name].coordinate(theta[name].double()) for name in names], -1)
    scale = torch.tensor([candidates.spacing[name] for name in names], dtype=torch.float64)
    length = (FIRST * scale).expand(place.shape).clone()

    def at(place: Tensor) -> Theta:
        moved = {name: candidates.axes[name].value(place[..., i]) for i, name in enumerate(names)}
        return {name: (moved[name].float() if name in moved else fixed[name]) for name in theta}

    def slope(place: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """The energy, `(B,)` or `()`, and its gradient, which is not needed after the last step."""
        energy = place.new_zeros(place.shape[:-1])
        gradient = torch.zeros_like(place)
        for rows in calls.inputs.chunks(calls.limit):
            here = (place[rows] if place.dim() > 1 else place).detach().requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                value = _energy(calls, candidates, rows, at(here), names, prior, temperature, network).double()
                total = value.sum()
            if place.dim() == 1:
                energy += total.detach()
            else:
                energy[rows] = value.detach()
            if not last:
                (found,) = torch.autograd.grad(total, here)
                gradient[rows if place.dim() > 1 else ...] += found
        return energy, gradient

    energy, gradient = slope(place, last=False)
    for step in range(steps):
        moved = _inside(candidates, names, place - length * gradient.nan_to_num().sign())
        there, slope_there = slope(moved, last=step == steps - 1)
        better = there < energy
        energy = torch.where(better, there, energy)
        better = better.unsqueeze(-1)
        place, gradient = torch.where(better, moved, place), torch.where(better, slope_there, gradient)
        length = torch.where(better, length * GROW, length * SHRINK)
    return at(place)


def _energy(
    calls: Calls,
    candidates: Candidates,
    rows: slice,
    theta: Theta,
    names: list[str],
    prior: Callable[[Tensor | slice, Mapping[str, Tensor]], Tensor] | None,
    temperature: float,
    network: bool,
) -> Tensor:
    """For some samples, `(b,)`."""
    total = torch.zeros(())
    if network:
        around = [theta]
        for name in names if calls.energy.neighbours else ():
            axis = candidates.axes[name]
            here = axis.coordinate(theta[name])
            for side in (1, -1):
                moved = candidates.parameters[name].from_coordinate(here + side * candidates.spacing[name])
                around.append({**theta, name: _clamped(candidates, name, moved)})
        answers = torch.stack([calls.answer(rows, one) for one in around], 1)
        total = calls.energy.score(answers).cpu() / temperature
    if prior is not None:
        total = total - prior(rows, theta).cpu()
    return total


def _inside(candidates: Candidates, names: list[str], place: Tensor) -> Tensor:
    """Coordinates within their ranges."""
    columns = []
    for i, name in enumerate(names):
        axis, column = candidates.axes[name], place[..., i]
        if axis.period is None:
            column = column.clamp(float(axis.coordinates[0]), float(axis.coordinates[-1]))
        columns.append(column)
    return torch.stack(columns, -1)


def _clamped(candidates: Candidates, name: str, value: Tensor) -> Tensor:
    bounds = candidates.parameters[name].bounds
    return value if bounds is None else value.clamp(*bounds)

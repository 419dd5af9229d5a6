"""The check of the analytic prior: its loss is compared with that of the frozen weights before it is used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ConditioningWarning, OutOfRangeWarning
from ..model import Conditioned
from ..modes import eval_mode
from ..objectives import Objective
from ..parameters import Theta
from ..slots import Slot
from ..transforms import Warp
from .data import Batch, Batches, generator
from .plan import Plan

__all__ = ["PriorCheck", "check"]

SETTINGS = 12
"""Values of θ at which the prior is compared with the frozen weights."""

BATCHES = 2
"""Batches of images on which they are compared."""

CLEAR = 0.1
"""Another reading of θ is clearly better if it lowers the loss by more than this share …"""

ERRORS = 3.0
"""… and by more than so many standard errors."""

Reading = Callable[[Tensor], Tensor]
"""The declared values of a parameter to what they would be under another convention."""


@dataclass(frozen=True)
class PriorCheck:
    """The result of the prior check: what was measured before training, and what was chosen.

    Attributes:
        prior: mean loss over θ with the prior in every layer that has one.
        identity: mean loss with the frozen weights.
        chosen: mean loss with the choice.
        kept: group of layers to whether the prior is used there.
        layers: group to the names of its layers.
        readings: other readings of θ (the opposite sense, the other unit) to their loss.
        better: the reading that fits clearly better than the declared one, or the empty string.
        settings: number of values of θ.
        images: mean number of images at each value.

    Example:
        >>> import weightmorph as wm
        >>> from torch import nn
        >>> from weightmorph.inputs import Rotate
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> model = wm.condition(net, Rotate().parameters, wm.Warp())
        >>> done = wm.fit(model, torch.rand(24, 1, 9, 9), Rotate(), "distillation", steps=0, progress=False)
        >>> list(done.prior.kept)
        ['convolutions']
    """

    prior: float
    identity: float
    chosen: float
    kept: dict[str, bool]
    layers: dict[str, list[str]] = field(repr=False)
    readings: dict[str, float]
    better: str
    settings: int
    images: float

    @classmethod
    def of(cls, data: dict[str, Any] | None) -> PriorCheck | None:
        """The check whose fields a checkpoint holds, or None."""
        return None if data is None else cls(**data)

    @property
    def advice(self) -> str:
        """What the user should look at if another reading of θ fits clearly better; otherwise empty."""
        if not self.better:
            return ""
        name, _, reading = self.better.partition(" ")
        what = (
            "the input transform seems to go the other way than the model expects: with the opposite sense of "
            f"{name!r} the analytic prior gives"
            if reading == "reversed"
            else f"the input transform seems to take {name!r} in another unit than the model expects: {reading}, the "
            "analytic prior gives"
        )
        return (
            f"{what} a loss of {self.readings[self.better]:.4g} against {self.chosen:.4g} as it is (the frozen "
            f"network: {self.identity:.4g}). Check the sign, or the unit (deg or rad); nothing has been switched"
        )

    def __str__(self) -> str:
        groups = "; ".join(
            f"{group} ({len(self.layers[group])}): {'prior' if kept else 'identity'}"
            for group, kept in self.kept.items()
        )
        lines = [
            f"analytic prior, before training: loss {self.prior:.4g}, the frozen weights {self.identity:.4g}, chosen "
            f"{self.chosen:.4g} ({self.settings} settings, {self.images:.0f} images each)",
            f"  {groups}",
        ]
        if self.readings:
            lines.append("  tried: " + "; ".join(f"{name}: {loss:.4g}" for name, loss in self.readings.items()))
        if self.better:
            lines.append(f"  WARNING: {self.advice}")
        return "\n".join(lines)


def with_prior(model: Conditioned) -> dict[str, list[tuple[Slot, Warp]]]:
    """The warps that have an analytic prior, by group of layers."""
    groups: dict[str, list[tuple[Slot, Warp]]] = {}
    for name, transform in model.transform.named().values():
        slot = model.slots[name]
        if isinstance(transform, Warp) and transform.has_prior(slot, model.space):
            groups.setdefault(_group(slot), []).append((slot, transform))
    return groups


def _group(slot: Slot) -> str:
    if slot.kind == "linear":
        return "linear layers over a map"
    return "depthwise convolutions" if slot.depthwise else "convolutions"


def check(
    model: Conditioned,
    batches: Sequence[Batch],
    input_transform: Callable[..., Tensor],
    objective: Objective,
    seed: int = 0,
) -> PriorCheck | None:
    """Choose the prior or the frozen weights for each group of layers, whichever has the lower loss.

    All losses are computed on the same images at the same settings; each setting gets an equal share of the images.
    First the prior in every layer is compared with the prior in none. Then each group is switched alone, and left
    where the loss is lower. Then, with the prior in every layer, the opposite sense of each geometric parameter is
    tried, and the other unit of each angle.

    Args:
        model: the conditioned model; the `trust` of its warps is set, and nothing else changes.
        batches: inputs and labels, on the model's device.
        input_transform: $T_θ$.
        objective: the loss that is compared.
        seed: seed of the settings, if there are several parameters.

    Returns:
        the result, or None for a model without an analytic prior.

    Warns:
        ConditioningWarning: if another reading of θ is clearly better than the declared one.
    """
    groups = with_prior(model)
    if not groups:
        return None
    trial = _Trial(model, groups, batches, input_transform, objective, seed)
    every, none = dict.fromkeys(groups, True), dict.fromkeys(groups, False)
    prior, identity = trial.mean(every), trial.mean(none)
    choice, best = (every, prior) if prior <= identity else (none, identity)
    for group in groups if len(groups) > 1 else ():
        other = choice | {group: not choice[group]}
        loss = trial.mean(other)
        if loss < best:
            choice, best = other, loss
    readings, better = {}, ""
    lowest = best
    for name, reading in _readings(model):
        scores = trial.scores(every, name.partition(" ")[0], reading)
        loss = readings[name] = _mean(scores)
        if loss < lowest and _clear(trial.scores(choice), scores):
            better, lowest = name, loss
    trial.set_trust(choice)
    names = {group: [slot.layer for slot, _ in members] for group, members in groups.items()}
    images = sum(len(x) for x, _ in batches) / trial.settings
    result = PriorCheck(prior, identity, best, choice, names, readings, better, trial.settings, images)
    if better:
        warnings.warn(result.advice, ConditioningWarning, stacklevel=2)
    return result


def check_first(plan: Plan, move: Callable[[Batch], Batch] = lambda batch: batch) -> PriorCheck | None:
    """The check on the first batches of a plan, in eval mode; None for a plain network."""
    model = plan.module
    if not isinstance(model, Conditioned):
        return None
    batches = [move(batch) for batch in Batches(plan.source, 0, BATCHES)]
    with eval_mode(model):
        return check(model, batches, plan.input_transform, plan.objective, plan.seed)


class _Trial:
    """The same images at the same settings, scored under one choice of groups after another.

    Attributes:
        settings: number of settings.
        cases: transformed images, their setting, their labels, and the frozen network's output for the clean images.
        cached: the scores of every choice so far.
    """

    def __init__(
        self,
        model: Conditioned,
        groups: dict[str, list[tuple[Slot, Warp]]],
        batches: Sequence[Batch],
        input_transform: Callable[..., Tensor],
        objective: Objective,
        seed: int,
    ) -> None:
        self.model, self.groups, self.objective = model, groups, objective
        space = model.space
        theta = space.grid(SETTINGS) if len(space) == 1 else space.sample(SETTINGS, generator(seed, "prior"))
        self.settings = len(next(iter(theta.values())))
        frozen = model.frozen() if objective.needs_frozen else None
        self.cases: list[tuple[Tensor, Theta, Any, Any]] = []
        with torch.no_grad():
            for x, y in batches:
                for k in range(self.settings):
                    share = x[k :: self.settings]
                    if len(share):
                        here = {name: value[k] for name, value in theta.items()}
                        labels = None if y is None else y[k :: self.settings]
                        case = input_transform(share, **here), here, labels, None if frozen is None else frozen(share)
                        self.cases.append(case)
        self.cached: dict[tuple[bool, ...], list[float]] = {}

    def set_trust(self, choice: dict[str, bool]) -> None:
        """Switch the prior of each group on or off."""
        for group, members in self.groups.items():
            for _, warp in members:
                warp.get_buffer("trust").fill_(float(choice[group]))

    def scores(self, choice: dict[str, bool], name: str = "", reading: Reading | None = None) -> list[float]:
        """The loss of each case, the parameter `name` being read in another way if `reading` is given."""
        key = tuple(choice.values())
        if reading is None and key in self.cached:
            return self.cached[key]
        self.set_trust(choice)
        losses = []
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", OutOfRangeWarning)  # a mirrored value may lie outside its range
            for x, theta, y, frozen in self.cases:
                read = theta if reading is None else theta | {name: reading(theta[name])}
                losses.append(self.objective(self.model(x, **read), y, frozen))
        values: list[float] = torch.stack(losses).tolist()
        if reading is None:
            self.cached[key] = values
        return values

    def mean(self, choice: dict[str, bool]) -> float:
        """The mean loss over all cases; infinite if it is not finite."""
        return _mean(self.scores(choice))


def _mean(scores: Sequence[float]) -> float:
    mean = sum(scores) / len(scores)
    return mean if math.isfinite(mean) else math.inf


def _clear(now: Sequence[float], then: Sequence[float]) -> bool:
    """Whether `then` is lower than `now` by a clear share and by several standard errors, case by case."""
    gains = [a - b for a, b in zip(now, then, strict=True)]
    gain = _mean(gains)
    error = math.sqrt(sum((g - gain) ** 2 for g in gains) / max(1, len(gains) - 1) / len(gains))
    return gain > CLEAR * abs(_mean(now)) and gain > ERRORS * error


def _readings(model: Conditioned) -> list[tuple[str, Reading]]:
    """Other readings of each parameter that moves the image: its name, a blank and the reading; and the function."""
    readings: list[tuple[str, Reading]] = []
    for name, parameter in model.space.items():
        if parameter.affine is None or parameter.discrete:
            continue
        readings.append((f"{name} reversed", parameter.mirrored))
        if parameter.affine == "rotation":
            declared, other = ("deg", "rad") if parameter.unit == "deg" else ("rad", "deg")
            factor = 180 / math.pi if declared == "deg" else math.pi / 180
            readings.append((f"{name} read as {other} instead of {declared}", _times(factor)))
    return readings


def _times(factor: float) -> Reading:
    return lambda value: value * factor

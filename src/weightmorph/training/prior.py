"""Is the analytic prior any good here? Measured before it is trusted."""

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
from ..objectives import Objective
from ..parameters import Categorical, LogInterval, Parameter, Theta
from ..slots import Slot
from ..transforms import Warp
from .data import Batch, Batches, generator
from .plan import Plan

__all__ = ["PriorCheck", "check"]

SETTINGS = 12
"""Values of θ at which the prior is compared with the identity."""

BATCHES = 2
"""Batches of images that are looked at."""

CLEAR = 0.1
"""A reading of θ fits clearly better if it lowers the loss by more than this share of it …"""

ERRORS = 3.0
"""… and by more than so many standard errors."""

Reading = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PriorCheck:
    """What was measured before training, and what was chosen.

    Attributes:
        prior: mean loss over θ with the prior in every layer that has one.
        identity: with the frozen weights.
        chosen: with what was chosen.
        kept: group of layers to whether the prior was kept there.
        layers: group to the names of its layers.
        readings: other readings of θ that were tried (the opposite sense, the other unit), and their loss.
        better: the reading that fits clearly better than the declared one, or the empty string.
        settings: values of θ.
        images: images at each of them, on average.
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
        """Made again from its fields."""
        return None if data is None else cls(**data)

    @property
    def advice(self) -> str:
        """What to look at, where another reading of θ fits clearly better; otherwise empty."""
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
    """The warps that have an analytic prior, by kind of layer."""
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
    """Keep the prior or the identity, whichever fits better, group by group, and say what was found.

    The same images at the same settings are scored throughout, each setting with its share of the images. First every
    layer with the prior is compared with none, then each group is switched on its own and left where it is better.
    Then, with the prior everywhere, the opposite sense of every geometric parameter is tried, and of an angle the other
    unit.

    Args:
        model: the conditioned model; the `trust` of its warps is set, nothing else.
        batches: inputs and labels, on the model's device.
        input_transform: $T_θ$.
        objective: what is compared.
        seed: for the settings, where there are several parameters.

    Returns:
        the account, or None for a model without an analytic prior.
    """
    groups = with_prior(model)
    if not groups:
        return None
    trial = _Trial(model, groups, batches, input_transform, objective, seed)
    every, none = dict.fromkeys(groups, True), dict.fromkeys(groups, False)
    prior, identity = trial.mean(every), trial.mean(none)
    kept, best = (every, prior) if prior <= identity else (none, identity)
    for group in groups if len(groups) > 1 else ():
        other = kept | {group: not kept[group]}
        loss = trial.mean(other)
        if loss < best:
            kept, best = other, loss
    readings, better = {}, ""
    lowest = best
    for name, reading in _readings(model):
        scores = trial.scores(every, name.partition(" ")[0], reading)
        loss = readings[name] = _mean(scores)
        if loss < lowest and _clear(trial.scores(kept), scores):
            better, lowest = name, loss
    trial.place(kept)
    names = {group: [slot.layer for slot, _ in members] for group, members in groups.items()}
    images = sum(len(x) for x, _ in batches) / trial.settings
    found = PriorCheck(prior, identity, best, kept, names, readings, better, trial.settings, images)
    if better:
        warnings.warn(found.advice, ConditioningWarning, stacklevel=2)
    return found


def check_first(plan: Plan, move: Callable[[Batch], Batch] = lambda batch: batch) -> PriorCheck | None:
    """[`check`][] on the first batches of a plan, with the transform in eval mode."""
    model = plan.module
    if not isinstance(model, Conditioned):
        return None
    batches = [move(batch) for batch in Batches(plan.source, 0, BATCHES)]
    flags = {part: part.training for part in model.modules()}
    model.eval()
    try:
        return check(model, batches, plan.input_transform, plan.objective, plan.seed)
    finally:
        for part, flag in flags.items():
            part.training = flag


class _Trial:
    """The same images at the same settings, scored under one choice after another."""

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
        self.seen: dict[tuple[bool, ...], list[float]] = {}

    def place(self, kept: dict[str, bool]) -> None:
        """Set the trust of every warp."""
        for group, members in self.groups.items():
            for _, warp in members:
                warp.get_buffer("trust").fill_(float(kept[group]))

    def scores(self, kept: dict[str, bool], name: str = "", reading: Reading | None = None) -> list[float]:
        """The loss of each case."""
        key = tuple(kept.values())
        if reading is None and key in self.seen:
            return self.seen[key]
        self.place(kept)
        losses = []
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", OutOfRangeWarning)  # the opposite of a value may lie outside its range
            for x, theta, y, frozen in self.cases:
                read = theta if reading is None else theta | {name: reading(theta[name])}
                losses.append(self.objective(self.model(x, **read), y, frozen))
        values: list[float] = torch.stack(losses).tolist()
        if reading is None:
            self.seen[key] = values
        return values

    def mean(self, kept: dict[str, bool]) -> float:
        return _mean(self.scores(kept))


def _mean(scores: Sequence[float]) -> float:
    mean = sum(scores) / len(scores)
    return mean if math.isfinite(mean) else math.inf


def _clear(now: Sequence[float], then: Sequence[float]) -> bool:
    """Is `then` lower than `now` by more than chance and by more than a little? The cases are the same."""
    gains = [a - b for a, b in zip(now, then, strict=True)]
    gain = _mean(gains)
    spread = math.sqrt(sum((g - gain) ** 2 for g in gains) / max(1, len(gains) - 1) / len(gains))
    return gain > CLEAR * abs(_mean(now)) and gain > ERRORS * spread


def _readings(model: Conditioned) -> list[tuple[str, Reading]]:
    """Other ways to read each parameter that moves the image: the name of the parameter, a blank, and the reading."""
    found: list[tuple[str, Reading]] = []
    for name, parameter in model.space.items():
        if parameter.affine is None or isinstance(parameter, Categorical):
            continue
        found.append((f"{name} reversed", _reversed(parameter)))
        if parameter.affine == "rotation":
            declared, other = ("deg", "rad") if parameter.unit == "deg" else ("rad", "deg")
            factor = 180 / math.pi if declared == "deg" else math.pi / 180
            found.append((f"{name} read as {other} instead of {declared}", _times(factor)))
    return found


def _times(factor: float) -> Reading:
    return lambda value: value * factor


def _reversed(parameter: Parameter) -> Reading:
    """The value as far from the anchor on the other side."""
    anchor = parameter.anchor_value
    if isinstance(parameter, LogInterval):
        return lambda value: anchor * anchor / value
    return lambda value: 2 * anchor - value

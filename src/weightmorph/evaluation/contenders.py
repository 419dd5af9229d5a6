"""Who is judged: the conditioned network, the baselines, further networks, and how each is run at a setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, ParameterError, near
from ..estimation import Inferred, infer
from ..estimator import estimator_of
from ..inputs import Compose, InputTransform
from ..model import Conditioned
from ..parameters import Parameter, ParameterSpace
from .advice import IMAGE
from .result import Role

__all__ = ["BASELINES", "Contender", "Entry", "Errors", "Run", "entries", "inferring", "told_wrong"]

BASELINES = ("frozen", "inverse")

Run = Callable[[Tensor, Tensor], Any]
"""Images as they are seen, and the same with the transform undone, to an output."""

TAKEN = frozenset(("model", "x", "pool"))
"""Options of `infer` that `evaluate` gives itself."""


@dataclass(frozen=True)
class Contender:
    """A finished network with what its training took.

    Args:
        module: the network; a [`Conditioned`][weightmorph.Conditioned] one follows θ, and so does any that has its
            method `at(**theta)`; every other one sees only the transformed input.
        trainable: numbers that were trained; unless given, those of the parameters that require a gradient now (of a
            conditioned network: its transform's), unknown if there are none.
        seconds: of training.
        stored: bytes that have to be kept beside the base.

    Example:
        >>> Contender(nn.Linear(3, 2), seconds=12.0).trained
        8
    """

    module: nn.Module
    trainable: int | None = None
    seconds: float | None = None
    stored: int | None = None

    @property
    def trained(self) -> int | None:
        """Trained numbers as far as known."""
        if self.trainable is not None:
            return self.trainable
        if isinstance(self.module, Conditioned):
            return sum(p.numel() for p in self.module.transform.parameters()) or None
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad) or None

    @property
    def told(self) -> bool:
        """Does the network depend on θ?"""
        return isinstance(self.module, Conditioned) or callable(getattr(self.module, "at", None))

    def network(self, theta: Mapping[str, float]) -> nn.Module:
        """What runs at a setting, its weights made once."""
        if not self.told:
            return self.module
        network: nn.Module = self.module.at(**theta)  # type: ignore[operator]
        return network


class Errors:
    """How far estimates of θ were from the truth, gathered over the passes."""

    def __init__(self, space: ParameterSpace) -> None:
        self.space = space
        self.clear()

    def clear(self) -> None:
        """Forget what was gathered."""
        self.away: dict[str, list[Tensor]] = {}
        self.abstained: list[Tensor] = []

    def add(self, found: Inferred, theta: Mapping[str, float]) -> None:
        """The estimates at one setting."""
        for name, value in found.theta.items():
            away = self.space[name].distance(torch.atleast_1d(value).cpu().double(), theta[name])
            self.away.setdefault(name, []).append(away)
        self.abstained.append(torch.atleast_1d(found.abstain).cpu())

    @property
    def typical(self) -> dict[str, float]:
        """The median deviation of each parameter, in its unit; of a Categorical the share that was wrong."""
        found = {}
        for name, parts in self.away.items():
            away = torch.cat(parts)
            found[name] = float(away.mean() if self.space[name].discrete else away.quantile(0.5))
        return found

    @property
    def share(self) -> float:
        """Of estimates that were abstained from."""
        return float(torch.cat(self.abstained).double().mean())


@dataclass(frozen=True)
class Entry:
    """One row in the making.

    Attributes:
        name: as the table shows it.
        role: see [`Row`][weightmorph.evaluation.Row].
        contender: the network.
        prepare: the runs at a setting, whose scores are averaged; unless given, one with the network told θ.
        timed: the call whose time is taken, with how many images share a θ; None where that is another row's.
        errors: of estimated θ.
    """

    name: str
    role: Role
    contender: Contender
    prepare: Callable[[Mapping[str, float]], Sequence[Run]] | None = None
    timed: tuple[Callable[[Tensor], object], bool] | None = None
    errors: Errors | None = field(default=None, compare=False)

    def runs(self, theta: Mapping[str, float]) -> Sequence[Run]:
        """What is run at a setting."""
        if self.prepare is not None:
            return self.prepare(theta)
        network = self.contender.network(theta)
        if self.role == "inverse":
            return (lambda seen, undone: network(undone),)
        return (_seen(network),)


def entries(
    ours: Contender,
    conditioned: Conditioned,
    transform: InputTransform,
    others: Mapping[str, nn.Module | Contender],
    baselines: Sequence[str],
) -> tuple[list[Entry], dict[str, str]]:
    """The rows, in order, and the baselines that cannot be run with the reason."""
    wanted = (baselines,) if isinstance(baselines, str) else tuple(baselines)
    for name in wanted:
        if name not in BASELINES:
            raise InputError(f"baselines: expected 'frozen' or 'inverse', got {name!r}{near(str(name), BASELINES)}")
    nothing = 0 if ours.stored is not None else None
    frozen = Contender(conditioned.frozen(), trainable=0, seconds=0.0, stored=nothing)
    found, absent = [Entry("conditioned", "conditioned", ours)], {}
    if "frozen" in wanted:
        found.append(Entry("frozen", "frozen", frozen))
    if "inverse" in wanted:
        if transform.inverse() is None:
            parts = transform.transforms if isinstance(transform, Compose) else (transform,)
            stuck = ", ".join(type(part).__name__ for part in parts if part.inverse() is None)
            absent["inverse"] = f"what {stuck} does to an image cannot be undone"
        else:
            found.append(Entry("inverse", "inverse", frozen))
    for name, other in others.items():
        contender = other if isinstance(other, Contender) else Contender(other)
        if name in ("conditioned", *BASELINES) or not isinstance(name, str):
            raise InputError(f"others: {name!r} is not free; give the network another name")
        if not isinstance(contender.module, nn.Module):
            raise InputError(f"others: expected {name!r} to be a network or a Contender, got {other!r}")
        if isinstance(contender.module, Conditioned):
            check_transform(contender.module.space, transform)
        found.append(Entry(name, "other", contender))
    return found, absent


def check_transform(space: ParameterSpace, transform: InputTransform) -> None:
    """Refuse an input transform whose parameters are not those of the model."""
    if not isinstance(transform, InputTransform):
        raise InputError(
            f"input_transform: expected one of weightmorph.inputs, or a subclass of InputTransform, got {transform!r}"
        )
    space.require_same(transform.parameters, f"the input transform {type(transform).__name__}", InputError)


def told_wrong(ours: Contender, space: ParameterSpace, offsets: Mapping[str, Any]) -> list[Entry]:
    """Rows in which the network is told a θ that is off, to either side, each for half of the score.

    Raises:
        ParameterError: for a parameter that is not there or has no distances, or a distance that is not positive.
    """
    found = []
    for name, amounts in offsets.items():
        if name not in space or space[name].discrete:
            raise ParameterError(f"offsets: {name!r} is no parameter with distances{near(name, space)}")
        parameter = space[name]
        for amount in [amounts] if isinstance(amounts, int | float) else amounts:
            if not amount > 0:
                raise ParameterError(f"offsets: expected distances above 0 for {name!r}, got {amount!r}")
            title = f"{name} off by {parameter.format(amount, 6)}"
            found.append(Entry(title, "offset", replace(ours, seconds=None), _off(ours, name, parameter, amount)))
    return found


def _off(
    ours: Contender, name: str, parameter: Parameter, amount: float
) -> Callable[[Mapping[str, float]], Sequence[Run]]:
    def prepare(theta: Mapping[str, float]) -> Sequence[Run]:
        low, high = parameter.bounds or (-math.inf, math.inf)
        wrong = [min(max(theta[name] + side * amount, low), high) for side in (1, -1)]
        return [_seen(ours.network({**theta, name: value})) for value in wrong]

    return prepare


def _seen(network: nn.Module) -> Run:
    """The network on the images as they are."""
    return lambda seen, undone: network(seen)


def inferring(
    ours: Contender, conditioned: Conditioned, pools: str | int | Sequence[str | int], options: Mapping[str, Any]
) -> list[Entry]:
    """Rows in which nobody tells the network θ: it is inferred per image, or for so many images together.

    Raises:
        InputError: for a pool that is neither `"image"` nor a number.
    """
    taken = TAKEN & set(options)
    if taken:
        raise InputError(f"infer_options: {sorted(taken)[0]!r} is set by evaluate; use inferred=('image', 64)")
    found = []
    for pool in (pools,) if isinstance(pools, str | int) else pools:
        if pool != "image" and (isinstance(pool, bool) or not isinstance(pool, int) or pool < 2):
            raise InputError(f"inferred: expected 'image', or how many images share a θ, got {pool!r}")
        errors = Errors(conditioned.space)
        title = IMAGE if pool == "image" else f"θ inferred per {pool} images"
        prepare, timed = _inferred(conditioned, pool, options, errors)
        head = None if options.get("method") == "search" else estimator_of(conditioned)
        more = 0 if head is None else sum(p.numel() for p in head.parameters())
        both = replace(ours, trainable=(ours.trained or 0) + more, seconds=None)
        found.append(Entry(title, "inferred", both, prepare, timed, errors))
    return found


def _inferred(
    model: Conditioned, pool: str | int, options: Mapping[str, Any], errors: Errors
) -> tuple[Callable[[Mapping[str, float]], Sequence[Run]], tuple[Callable[[Tensor], object], bool]]:
    def at(x: Tensor) -> list[Any]:
        if pool == "image":
            return [infer(model, x, **options)]
        return [infer(model, part, pool="batch", **options) for part in x.split(int(pool))]

    def prepare(theta: Mapping[str, float]) -> Sequence[Run]:
        def run(seen: Tensor, undone: Tensor) -> Any:
            parts = at(seen)
            for part in parts:
                errors.add(part, theta)
            return _together([part.outputs for part in parts])

        return (run,)

    return prepare, (at, pool != "image")


def _together(outputs: Sequence[Any]) -> Any:
    """Outputs of several runs, from which a metric reads scores: tensors, or objects with logits."""
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat([getattr(output, "logits", output) for output in outputs])

"""The rows to be scored: the conditioned network, the baselines, other networks, and a wrong or unknown θ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, ParameterError, near
from ..estimation import infer
from ..estimator import estimator_of
from ..inputs import Compose, InputTransform
from ..model import Conditioned
from ..parameters import Parameter, ParameterSpace
from .contenders import Contender
from .estimates import EstimateErrors
from .figures import IMAGE, Role

__all__ = ["BASELINES", "Entry", "Forward", "check_transform", "entries", "inferred_entries", "offset_entries"]

BASELINES = ("frozen", "inverse")

Forward = Callable[[Tensor, Tensor], Any]
"""The transformed images, and the same with the transform undone, to an output."""

TAKEN = frozenset(("model", "x", "pool"))
"""Options of `infer` that `evaluate` sets itself."""


@dataclass(frozen=True)
class Entry:
    """A row before it is scored.

    Attributes:
        name: as the table shows it.
        role: see [`Row`][weightmorph.evaluation.Row].
        contender: the network.
        prepare: the calls at a setting, whose scores are averaged; unless given, one call with the true θ.
        timed: the call whose time is taken, and whether its images share a θ; None where `contender` says it.
        errors: of estimated θ.
    """

    name: str
    role: Role
    contender: Contender
    prepare: Callable[[Mapping[str, float]], Sequence[Forward]] | None = None
    timed: tuple[Callable[[Tensor], object], bool] | None = None
    errors: EstimateErrors | None = field(default=None, compare=False)

    @property
    def needs_theta(self) -> bool:
        """Whether θ must be supplied to the row."""
        return self.role in ("conditioned", "inverse", "offset") or (
            self.role == "other" and self.contender.needs_theta
        )

    def calls(self, theta: Mapping[str, float]) -> Sequence[Forward]:
        """The calls at a setting."""
        if self.prepare is not None:
            return self.prepare(theta)
        network = self.contender.network(theta)
        if self.role == "inverse":
            return (lambda seen, undone: network(undone),)
        return (_on_seen(network),)


def _on_seen(network: nn.Module) -> Forward:
    """The network on the transformed images."""
    return lambda seen, undone: network(seen)


def check_transform(space: ParameterSpace, transform: InputTransform) -> None:
    """Refuse an input transform whose parameters are not those of the model."""
    if not isinstance(transform, InputTransform):
        raise InputError(
            f"input_transform: expected one of weightmorph.inputs, or a subclass of InputTransform, got {transform!r}"
        )
    space.require_same(transform.parameters, f"the input transform {type(transform).__name__}", InputError)


def entries(
    ours: Contender,
    conditioned: Conditioned,
    transform: InputTransform,
    others: Mapping[str, nn.Module | Contender],
    baselines: Sequence[str],
) -> tuple[list[Entry], dict[str, str]]:
    """The rows in which θ is known, in order, and the baselines that cannot be run, each with the reason."""
    wanted = (baselines,) if isinstance(baselines, str) else tuple(baselines)
    for name in wanted:
        if name not in BASELINES:
            raise InputError(f"baselines: expected 'frozen' or 'inverse', got {name!r}{near(str(name), BASELINES)}")
    stored = 0 if ours.stored is not None else None
    frozen = Contender(conditioned.frozen(), trainable=0, seconds=0.0, stored=stored)
    listed, absent = [Entry("conditioned", "conditioned", ours)], {}
    if "frozen" in wanted:
        listed.append(Entry("frozen", "frozen", frozen))
    if "inverse" in wanted and transform.inverse() is not None:
        listed.append(Entry("inverse", "inverse", frozen))
    elif "inverse" in wanted:
        parts = transform.transforms if isinstance(transform, Compose) else (transform,)
        stuck = ", ".join(type(part).__name__ for part in parts if part.inverse() is None)
        absent["inverse"] = f"what {stuck} does to an image cannot be undone"
    listed += [_other(name, other, transform) for name, other in others.items()]
    return listed, absent


def _other(name: str, other: nn.Module | Contender, transform: InputTransform) -> Entry:
    """The row of a network that the user supplies."""
    contender = other if isinstance(other, Contender) else Contender(other)
    if name in ("conditioned", *BASELINES) or not isinstance(name, str):
        raise InputError(f"others: {name!r} is not free; give the network another name")
    if not isinstance(contender.module, nn.Module):
        raise InputError(f"others: expected {name!r} to be a network or a Contender, got {other!r}")
    if isinstance(contender.module, Conditioned):
        check_transform(contender.module.space, transform)
    return Entry(name, "other", contender)


def offset_entries(ours: Contender, space: ParameterSpace, offsets: Mapping[str, Any]) -> list[Entry]:
    """Rows in which the network is given a wrong θ, to either side, each for half of the score.

    Raises:
        ParameterError: for a parameter that is not there or has no distances, or a distance that is not positive.
    """
    listed = []
    for name, amounts in offsets.items():
        if name not in space or space[name].discrete:
            raise ParameterError(f"offsets: {name!r} is no parameter with distances{near(name, space)}")
        for amount in [amounts] if isinstance(amounts, int | float) else amounts:
            if not amount > 0:
                raise ParameterError(f"offsets: expected distances above 0 for {name!r}, got {amount!r}")
            title = f"{name} off by {space[name].format(amount, 6)}"
            prepare = _prepare_offset(ours, name, space[name], amount)
            listed.append(Entry(title, "offset", replace(ours, seconds=None), prepare))
    return listed


def _prepare_offset(
    ours: Contender, name: str, parameter: Parameter, amount: float
) -> Callable[[Mapping[str, float]], Sequence[Forward]]:
    low, high = parameter.bounds or (-math.inf, math.inf)

    def prepare(theta: Mapping[str, float]) -> Sequence[Forward]:
        wrong = [min(max(theta[name] + side * amount, low), high) for side in (1, -1)]
        return [_on_seen(ours.network({**theta, name: value})) for value in wrong]

    return prepare


def inferred_entries(
    ours: Contender, conditioned: Conditioned, pools: str | int | Sequence[str | int], options: Mapping[str, Any]
) -> list[Entry]:
    """Rows in which the network is given no θ: it is inferred for each image, or for several images at once.

    Raises:
        InputError: for a pool that is neither `"image"` nor a number.
    """
    taken = TAKEN & set(options)
    if taken:
        raise InputError(f"infer_options: {sorted(taken)[0]!r} is set by evaluate; use inferred=('image', 64)")
    head = None if options.get("method") == "search" else estimator_of(conditioned)
    more = 0 if head is None else sum(p.numel() for p in head.parameters())
    listed = []
    for pool in (pools,) if isinstance(pools, str | int) else pools:
        if pool != "image" and (isinstance(pool, bool) or not isinstance(pool, int) or pool < 2):
            raise InputError(f"inferred: expected 'image', or how many images share a θ, got {pool!r}")
        title = IMAGE if pool == "image" else f"θ inferred per {pool} images"
        contender = replace(ours, trainable=(ours.trained or 0) + more, seconds=None)
        listed.append(_inferred(title, contender, conditioned, pool, options))
    return listed


def _inferred(
    title: str, contender: Contender, model: Conditioned, pool: str | int, options: Mapping[str, Any]
) -> Entry:
    errors = EstimateErrors(model.space)

    def estimates(x: Tensor) -> list[Any]:
        if pool == "image":
            return [infer(model, x, **options)]
        return [infer(model, part, pool="batch", **options) for part in x.split(int(pool))]

    def prepare(theta: Mapping[str, float]) -> Sequence[Forward]:
        def call(seen: Tensor, undone: Tensor) -> Any:
            parts = estimates(seen)
            for part in parts:
                errors.add(part, theta)
            return _concatenated([part.outputs for part in parts])

        return (call,)

    return Entry(title, "inferred", contender, prepare, (estimates, pool != "image"), errors)


def _concatenated(outputs: Sequence[Any]) -> Any:
    """Outputs of several calls as one that a metric can read: tensors, or objects with logits."""
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat([getattr(output, "logits", output) for output in outputs])

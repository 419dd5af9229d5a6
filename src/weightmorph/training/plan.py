"""What a run does, settled before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from ..errors import TrainingError
from ..estimator import Estimator, estimator_of
from ..model import Conditioned
from ..objectives import Objective, resolve
from ..parameters import ParameterSpace, Theta
from .data import Data, Source

__all__ = ["DEFAULT_STEPS", "Plan", "Predict", "Schedule", "settle", "total_steps"]

Schedule: TypeAlias = Literal["cosine", "constant"] | Callable[[float], float]
"""The learning rate's factor over the run: by name, or a function of the share done, from 0 to 1."""

Predict: TypeAlias = bool | Literal["only"]
"""Is a head trained that estimates θ, and nothing else?"""

DEFAULT_STEPS = 1000
"""Steps where neither steps nor epochs are given."""


@dataclass
class Plan:
    """Everything that a run depends on."""

    module: nn.Module
    space: ParameterSpace
    input_transform: Callable[..., Tensor]
    objective: Objective
    source: Source
    total: int
    settings: int | None
    lr: float
    weight_decay: float
    schedule: Schedule
    seed: int
    folder: Path | None
    check_prior: bool
    reference: nn.Module | None = None
    predict: Predict = False

    def call(self, x: Tensor, theta: Theta) -> Any:
        """The output for transformed inputs; a plain network is not told θ."""
        return self.module(x, **theta) if isinstance(self.module, Conditioned) else self.module(x)

    def frozen(self) -> nn.Module:
        """What gives the output on the clean input, on the device where the module is now."""
        if isinstance(self.module, Conditioned):
            return self.module.frozen()
        assert self.reference is not None
        return self.reference.to(next(self.module.parameters()).device)

    def rate(self, step: int) -> float:
        """The learning rate of a step: a function of the step alone, so there is no scheduler to restore."""
        done = step / self.total
        if callable(self.schedule):
            return self.lr * float(self.schedule(done))
        return self.lr * (0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0)

    @property
    def estimator(self) -> Estimator | None:
        """The head that estimates θ, whether or not it is trained."""
        return estimator_of(self.module)

    def trained(self) -> list[nn.Parameter]:
        """What is trained."""
        head = [] if self.estimator is None else list(self.estimator.parameters())
        mine = {id(p) for p in head}
        rest = [] if self.predict == "only" else [p for p in self.module.parameters() if id(p) not in mine]
        return [p for p in (*rest, *(head if self.predict else ())) if p.requires_grad]

    def record(self) -> dict[str, Any]:
        """What a checkpoint must agree with; the number of steps may grow."""
        return {
            "space": self.space.config(),
            "recipe": self.module.recipe if isinstance(self.module, Conditioned) else type(self.module).__name__,
            "objective": repr(self.objective),
            "samples": self.source.samples,
            "batch_size": self.source.batch_size,
            "settings": self.settings,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "schedule": self.schedule if isinstance(self.schedule, str) else "a function",
            "seed": self.seed,
            **({"predict_parameter": self.predict, "estimator": self._head()} if self.predict else {}),
        }

    def _head(self) -> dict[str, Any] | None:
        return None if self.estimator is None else self.estimator.config()


def total_steps(source: Source, epochs: int | None, steps: int | None) -> int:
    """The number of steps, from whichever of the two was given.

    Raises:
        TrainingError: if both are, one is negative, or nobody knows how long an epoch is.
    """
    if epochs is not None and steps is not None:
        raise TrainingError(f"give epochs or steps, not both, got epochs={epochs!r} and steps={steps!r}")
    for name, value in (("epochs", epochs), ("steps", steps)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise TrainingError(f"{name}: expected a whole number, 0 or more, got {value!r}")
    if epochs is None:
        return DEFAULT_STEPS if steps is None else steps
    if source.per_epoch is None:
        raise TrainingError("epochs: these data do not say how long they are; give steps instead")
    return epochs * source.per_epoch


def settle(
    module: nn.Module,
    space: ParameterSpace,
    data: Data,
    input_transform: Callable[..., Tensor],
    objective: str | Objective | Callable[[Any, Any], Tensor],
    epochs: int | None,
    steps: int | None,
    batch_size: int,
    settings: int | None,
    lr: float,
    weight_decay: float,
    schedule: Schedule,
    seed: int,
    checkpoint: str | Path | None,
    num_workers: int,
) -> Plan:
    """The arguments that `fit` and `fine_tune` share, checked.

    Raises:
        TrainingError: for data, an objective or a budget that cannot be trained with.
    """
    for name, value in (("batch_size", batch_size), ("settings", 1 if settings is None else settings)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise TrainingError(f"{name}: expected a whole number, 1 or more, got {value!r}")
    if not lr > 0 or not weight_decay >= 0:
        raise TrainingError(f"expected lr > 0 and weight_decay >= 0, got lr={lr!r} and weight_decay={weight_decay!r}")
    if not callable(schedule) and schedule not in ("cosine", "constant"):
        raise TrainingError(
            f"schedule: expected 'cosine', 'constant' or a function of the share done, got {schedule!r}"
        )
    chosen = resolve(objective)
    source = Source(data, batch_size, seed, chosen.needs_labels, num_workers)
    total = total_steps(source, epochs, steps)
    folder = None if checkpoint is None else Path(checkpoint)
    return Plan(
        module, space, input_transform, chosen, source, total, settings, lr, weight_decay, schedule, seed, folder,
        check_prior=False,
    )  # fmt: skip

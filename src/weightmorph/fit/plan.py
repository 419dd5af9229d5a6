"""What a run does, settled before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from ..conditioned import Conditioned
from ..errors import TrainingError
from ..objectives import Objective
from ..parameters import ParameterSpace, Theta
from .data import Source

__all__ = ["DEFAULT_STEPS", "Plan", "Schedule", "total_steps"]

Schedule: TypeAlias = 'Literal["cosine", "constant"] | Callable[[float], float]'
"""The learning rate's factor over the run: by name, or a function of the share done, from 0 to 1."""

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

    def trained(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

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
        }


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

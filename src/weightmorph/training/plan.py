"""The plan of a run: everything that it depends on, settled before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import TrainingError
from ..estimator import Estimator, estimator_of
from ..model import Conditioned
from ..objectives import Objective, resolve
from ..parameters import ParameterSpace, Theta
from .data import Data, Source
from .options import Options

__all__ = ["DEFAULT_STEPS", "Plan"]

DEFAULT_STEPS = 1000
"""Steps of a run for which neither steps nor epochs are given."""


@dataclass(frozen=True)
class Plan:
    """Everything that a run depends on.

    Attributes:
        module: what is trained: a conditioned model, or a plain network.
        space: the parameters from which θ is drawn.
        input_transform: $T_θ$.
        objective: what is minimised.
        source: the batches.
        total: number of steps.
        options: the options of `fit`.
        folder: where checkpoints are written, or None.
        reference: for a plain network, the frozen network that the objective compares with, if it does.
    """

    module: nn.Module
    space: ParameterSpace
    input_transform: Callable[..., Tensor]
    objective: Objective
    source: Source
    total: int
    options: Options
    folder: Path | None
    reference: nn.Module | None = None

    @classmethod
    def settle(
        cls,
        module: nn.Module,
        space: ParameterSpace,
        data: Data,
        input_transform: Callable[..., Tensor],
        objective: str | Objective | Callable[[Any, Any], Tensor],
        options: Options,
    ) -> Plan:
        """The plan for data, an objective and options.

        Raises:
            TrainingError: for data, an objective or a number of steps that cannot be trained with.
        """
        chosen = resolve(objective)
        source = Source(data, options.batch_size, options.seed, chosen.needs_labels, options.num_workers)
        folder = None if options.checkpoint is None else Path(options.checkpoint)
        return cls(module, space, input_transform, chosen, source, _total_steps(source, options), options, folder)

    @property
    def seed(self) -> int:
        """The seed of all random numbers."""
        return self.options.seed

    @property
    def checks_prior(self) -> bool:
        """Whether the analytic prior is checked before the first step."""
        return self.options.check_prior and self.options.trains_transform and isinstance(self.module, Conditioned)

    @property
    def estimator(self) -> Estimator | None:
        """The head that estimates θ, whether or not it is trained."""
        return estimator_of(self.module)

    def call(self, x: Tensor, theta: Theta) -> Any:
        """The output for transformed inputs. A plain network gets no θ."""
        return self.module(x, **theta) if isinstance(self.module, Conditioned) else self.module(x)

    def frozen(self) -> nn.Module:
        """The frozen network for the clean input, on the module's device."""
        if isinstance(self.module, Conditioned):
            return self.module.frozen()
        assert self.reference is not None
        return self.reference.to(next(self.module.parameters()).device)

    def rate(self, step: int) -> float:
        """The learning rate of a step. It depends on the step alone, so there is no scheduler to restore."""
        done, schedule, lr = step / self.total, self.options.schedule, self.options.lr
        if callable(schedule):
            return lr * float(schedule(done))
        return lr * (0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0)

    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        head = [] if self.estimator is None else list(self.estimator.parameters())
        in_head = {id(p) for p in head}
        rest = [p for p in self.module.parameters() if id(p) not in in_head] if self.options.trains_transform else []
        return [p for p in (*rest, *(head if self.options.predict_parameter else ())) if p.requires_grad]

    def record(self) -> dict[str, Any]:
        """What a checkpoint must agree with, as plain data. The number of steps is not in it, because it may grow."""
        options, head = self.options, self.estimator
        record: dict[str, Any] = {
            "space": self.space.config(),
            "recipe": self.module.recipe if isinstance(self.module, Conditioned) else type(self.module).__name__,
            "objective": repr(self.objective),
            "samples": self.source.samples,
            "batch_size": self.source.batch_size,
            "settings": options.settings,
            "lr": options.lr,
            "weight_decay": options.weight_decay,
            "schedule": options.schedule if isinstance(options.schedule, str) else "a function",
            "seed": options.seed,
        }
        if options.predict_parameter:
            record |= {
                "predict_parameter": options.predict_parameter,
                "estimator": None if head is None else head.config(),
            }
        return record

    def describe(self) -> str:
        """The settings in words, for the result."""
        options, size = self.options, self.source.batch_size
        batches = "batches as they come" if size is None else f"batches of {size}"
        names = ", ".join(self.space)
        theta = "one setting per image" if options.settings is None else f"{options.settings} settings of {names}"
        schedule = options.schedule if isinstance(options.schedule, str) else "a schedule of your own"
        head = {True: "; with a head that estimates θ", "only": "; only a head that estimates θ"}
        return (
            f"{self.objective!r}; {batches}, {theta}; AdamW {options.lr:g}, {schedule}; seed {options.seed}"
            f"{head.get(options.predict_parameter, '')}"
        )


def _total_steps(source: Source, options: Options) -> int:
    """The number of steps, from `steps` or from `epochs`."""
    if options.epochs is None:
        return DEFAULT_STEPS if options.steps is None else options.steps
    if source.per_epoch is None:
        raise TrainingError("epochs: these data do not say how long they are; give steps instead")
    return options.epochs * source.per_epoch

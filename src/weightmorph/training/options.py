"""The options of a training run: their defaults and their checks, listed once."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..errors import TrainingError, near

__all__ = ["Options", "Predict", "Schedule"]

Schedule: TypeAlias = Literal["cosine", "constant"] | Callable[[float], float]
"""The learning rate's factor over the run: by name, or a function of the progress from 0 to 1."""

Predict: TypeAlias = bool | Literal["only"]
"""Whether a head that estimates θ is trained too, or alone."""

RESERVED = {
    "accelerator", "devices", "logger", "precision",
    "accumulate_grad_batches", "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "fast_dev_run",
    "limit_train_batches", "max_epochs", "max_steps", "min_epochs", "min_steps", "overfit_batches",
    "reload_dataloaders_every_n_epochs", "use_distributed_sampler",
}  # fmt: skip
"""Arguments of Lightning's Trainer that `fit` sets itself."""

PRECISIONS = (None, "bf16-mixed", "16-mixed", "32-true", "bf16", "16", "32", 16, 32)
"""Those of Lightning's precisions that leave the model in its own type."""

ONLY_FIT = ("check_prior", "predict_parameter")
"""Options that need a conditioned model, so that `fine_tune` does not take them."""


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `fit` and `fine_tune`, checked on creation.

    Names, order and defaults are those of [`fit`][weightmorph.fit], where they are explained.

    Raises:
        TrainingError: for a value that cannot be used. The message names the option.

    Example:
        >>> Options(steps=10).batch_size
        128
        >>> Options(batch_size=0)
        Traceback (most recent call last):
        weightmorph.errors.TrainingError: batch_size: expected a whole number, 1 or more, got 0
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 128
    settings: int | None = 8
    lr: float = 3e-3
    weight_decay: float = 0.01
    schedule: Schedule = "cosine"
    seed: int = 0
    checkpoint: str | Path | None = None
    resume: bool = True
    check_prior: bool = True
    predict_parameter: Predict = False
    progress: bool = True
    logger: Any = None
    precision: Any = None
    accelerator: str = "auto"
    devices: Any = "auto"
    num_workers: int = 0
    trainer: Mapping[str, Any] | None = None

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> Options:
        """The options among the arguments of a function: those that have an option's name."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls) if field.name in arguments})

    @classmethod
    def for_fine_tune(cls, options: Mapping[str, Any]) -> Options:
        """The options of `fine_tune`.

        Raises:
            TypeError: for a name that is no option of `fine_tune`.
        """
        known = [field.name for field in fields(cls) if field.name not in ONLY_FIT]
        for name in options:
            if name not in known:
                raise TypeError(f"fine_tune() got an unexpected keyword argument {name!r}{near(name, known)}")
        return cls(**options, check_prior=False)

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise TrainingError(f"give epochs or steps, not both, got epochs={self.epochs!r} and steps={self.steps!r}")
        for name, least in {"epochs": 0, "steps": 0, "batch_size": 1, "settings": 1, "num_workers": 0}.items():
            value = getattr(self, name)
            optional = value is None and name in ("epochs", "steps", "settings")
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise TrainingError(f"{name}: expected a whole number, {least} or more, got {value!r}")
        if not _is_number(self.seed, numbers.Integral):
            raise TrainingError(f"seed: expected a whole number, got {self.seed!r}")
        if not _is_number(self.lr) or not self.lr > 0:
            raise TrainingError(f"lr: expected lr > 0, got {self.lr!r}")
        if not _is_number(self.weight_decay) or not self.weight_decay >= 0:
            raise TrainingError(f"weight_decay: expected weight_decay >= 0, got {self.weight_decay!r}")
        if not callable(self.schedule) and self.schedule not in ("cosine", "constant"):
            raise TrainingError(
                f"schedule: expected 'cosine', 'constant' or a function of the progress, got {self.schedule!r}"
            )
        if self.predict_parameter not in (False, True, "only"):
            raise TrainingError(f"predict_parameter: expected True, False or 'only', got {self.predict_parameter!r}")
        if self.precision not in PRECISIONS:
            raise TrainingError(
                f"precision: expected one of {', '.join(map(repr, PRECISIONS[1:]))}, or None, got {self.precision!r}; "
                "to train in another type convert the network, e.g. condition(net.double(), …)"
            )
        reserved = sorted(RESERVED & set(self.trainer or {}))
        if reserved:
            raise TrainingError(
                f"trainer={{{reserved[0]!r}: …}} is set by fit itself: use its own arguments (steps, epochs, "
                "checkpoint, progress, logger, precision, accelerator, devices)"
            )

    @property
    def trains_transform(self) -> bool:
        """Whether anything but the head that estimates θ is trained."""
        return self.predict_parameter != "only"

    @property
    def for_lightning(self) -> dict[str, Any]:
        """The arguments of Lightning's Trainer that the user controls."""
        return dict(self.trainer or {}) | {
            "enable_progress_bar": self.progress,
            "logger": False if self.logger is None else self.logger,
            "precision": self.precision,
            "accelerator": self.accelerator,
            "devices": self.devices,
        }


def _is_number(value: Any, kind: Any = numbers.Real) -> bool:
    """Whether a value is a finite number, also one of NumPy's, and no bool."""
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)

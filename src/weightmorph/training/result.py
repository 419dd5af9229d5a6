"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import nn

from .prior import PriorCheck
from .state import State

__all__ = ["Fit", "Model", "Outcome"]

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Fit(Generic[Model]):
    """The result of `fit` or `fine_tune`. `print` it for a readable account.

    Attributes:
        model: the trained model: the object that was given to `fit`, or the copy that `fine_tune` trained.
        losses: the loss of every step.
        seconds: wall time of the training, including the prior check and the runs before a resumption.
        steps: number of steps done.
        trainable: how many numbers were trained.
        prior: the result of the prior check, or None if there was none.
        resumed: the step from which this call continued, or 0.
        about: the settings, in words.
        parameter_losses: losses of the head that estimates θ, if one was trained, in nats per image. 0 is a uniform
            guess over the range; the further below zero, the more the head knows.

    Example:
        >>> print(Fit(nn.Identity(), [2.0, 1.0], seconds=0.5, steps=2, trainable=0, about="a test"))
        Identity: 0 numbers trained for 2 steps in 0.5 s
          a test
          loss 2 at the start, 1 at the end (means over 1 steps)
    """

    model: Model
    losses: list[float] = field(repr=False)
    seconds: float
    steps: int
    trainable: int
    prior: PriorCheck | None = None
    resumed: int = 0
    about: str = ""
    parameter_losses: list[float] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        more = f", resumed at step {self.resumed}" if self.resumed else ""
        lines = [
            f"{type(self.model).__name__}: {self.trainable:,} numbers trained for {self.steps:,} steps in "
            f"{self.seconds:.1f} s{more}",
            f"  {self.about}",
        ]
        for what, losses in (("loss", self.losses), ("loss of the head that estimates θ", self.parameter_losses)):
            if losses:
                tenth = max(1, len(losses) // 10)
                first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
                lines.append(f"  {what} {first:.4g} at the start, {last:.4g} at the end (means over {tenth} steps)")
        if self.prior is not None:
            lines.append(str(self.prior))
        return "\n".join(lines)


@dataclass(frozen=True)
class Outcome:
    """Raw result of a run."""

    losses: list[float]
    estimator_losses: list[float]
    seconds: float
    prior: PriorCheck | None

    @classmethod
    def of(cls, state: State) -> Outcome:
        """The result that a checkpoint holds."""
        prior = PriorCheck.of(state.notes["prior"])
        return cls(state.losses.tolist(), state.estimator_losses.tolist(), state.seconds, prior)

"""What a run did."""

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
    """What a run did. `print` it for a readable account.

    Attributes:
        model: what was trained: the very model that was given to `fit`, or the copy that `fine_tune` made.
        losses: of every step.
        seconds: wall time of the training, the prior check and runs before a resumption included.
        steps: steps done.
        trainable: how many numbers were trained.
        prior: what the prior check found and chose, or None if there was none.
        resumed: the step from which this call went on, or 0.
        about: the settings, in words.
        parameter_losses: of the head that estimates θ, if one was trained: nats per image, relative to a guess that is
            uniform over the range. What is below zero is what the head knows.
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
    """The same before it is told to the user; `told` are the head's losses."""

    losses: list[float]
    told: list[float]
    seconds: float
    prior: PriorCheck | None

    @classmethod
    def of(cls, state: State) -> Outcome:
        """What a checkpoint says of it."""
        prior = PriorCheck.of(state.notes["prior"])
        return cls(state.losses.tolist(), state.told.tolist(), state.seconds, prior)

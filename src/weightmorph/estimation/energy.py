"""Energies: a number per sample that is low where θ is right, computed from the network's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import InputError, near

__all__ = ["Agreement", "Energy", "Entropy", "FunctionEnergy", "Named", "resolve"]

Named: TypeAlias = Literal["entropy", "agreement"]
"""The energies that have a name."""


class Energy(ABC):
    """A number for each sample that is low where θ is right, computed from the network's outputs.

    `answer` reduces an output to what is kept of it. `score` computes the energy from the answers at θ and, with
    `neighbours`, at the settings around it.

    Example:
        >>> class Margin(Energy):  # the network is sure where its two highest logits are far apart
        ...     def answer(self, output):
        ...         first, second = output.topk(2, 1).values.unbind(1)
        ...         return second - first
        >>> Margin().answer(torch.tensor([[3.0, 1.0, 0.0]]))
        tensor([-2.])
    """

    neighbours: bool = False
    """Whether `score` reads the answers at neighbouring settings."""

    @abstractmethod
    def answer(self, output: Any) -> Tensor:
        """An output to what is kept of it: `(B, *A)`, the batch first."""

    def score(self, answers: Tensor) -> Tensor:
        """Answers `(B, J, *A)`, the one at θ first, to energies `(B,)`."""
        return answers[:, 0]


class Entropy(Energy):
    r"""How unsure the network is: $E(\theta) = -\sum_c p_c \log p_c$, with $p = \mathrm{softmax}(f(x; W(\theta)))$.

    In nats; with one answer per position, the mean over positions.

    References:
        Wang, Saukh, He, Thiele, "Representing input transformations by low-dimensional parameter subspaces", 2023,
        arXiv:2305.13536, who search for the θ of lowest entropy over a batch.

    Example:
        >>> Entropy().answer(torch.tensor([[0.0, 0.0], [20.0, 0.0]])).round(decimals=4)
        tensor([0.6931, 0.0000])
    """

    def answer(self, output: Any) -> Tensor:
        logs = log_probabilities(output)
        return _per_sample(-(logs.exp() * logs).sum(1))

    def __repr__(self) -> str:
        return "entropy"


class Agreement(Energy):
    r"""How unsure the network and its neighbouring settings are together: the entropy of their mean answer.

    $$E(\theta) = H\Big(\tfrac1J \textstyle\sum_j \mathrm{softmax}(f(x; W(\theta_j)))\Big)$$

    The sum goes over θ and its neighbours. The value is the mean of their entropies plus their Jensen-Shannon
    divergence. A setting at which the network is sure by accident, and sure of another class one step further, has a
    high energy.

    Example:
        >>> sure, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> Agreement().score(torch.stack([sure, sure], 1)), Agreement().score(torch.stack([sure, other], 1))
        (tensor([0.]), tensor([0.6931]))
    """

    neighbours = True

    def answer(self, output: Any) -> Tensor:
        return log_probabilities(output).exp()

    def score(self, answers: Tensor) -> Tensor:
        return _per_sample(torch.special.entr(answers.mean(1)).sum(1))

    def __repr__(self) -> str:
        return "agreement"


class FunctionEnergy(Energy):
    """A user's function of the network's output that gives one number per sample, lower where θ is right."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self.function = function

    def answer(self, output: Any) -> Tensor:
        value = self.function(output)
        size = len(next(iter(_tensors(output))))
        if not isinstance(value, Tensor) or value.shape != (size,):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InputError(
                f"objective: expected one number for each of {size} samples, of shape ({size},), got {got}; "
                "lower means that θ is more likely right"
            )
        return value

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


_NAMES: Mapping[str, Callable[[], Energy]] = {"entropy": Entropy, "agreement": Agreement}


def resolve(objective: Named | Energy | Callable[[Any], Tensor]) -> Energy:
    """An energy from its name or from a function of the output; an energy is returned unchanged.

    Raises:
        InputError: for anything else.

    Example:
        >>> resolve("entropy"), resolve(lambda output: output[:, 0])
        (entropy, <lambda>)
    """
    if isinstance(objective, Energy):
        return objective
    if isinstance(objective, str) and objective in _NAMES:
        return _NAMES[objective]()
    if callable(objective) and not isinstance(objective, type):
        return FunctionEnergy(objective)
    hint = near(objective, _NAMES) if isinstance(objective, str) else ""
    raise InputError(
        "objective: expected 'entropy', 'agreement', or a function of the network's output that gives one number per "
        f"sample, lower where θ is right, got {objective!r}{hint}"
    )


def log_probabilities(output: Any) -> Tensor:
    """Log softmax over the class axis of logits `(B, C, *positions)`, or of an output's `.logits`; float32 at least."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() < 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            f"objective: expected logits (B, classes, …) of two classes or more, got {got}; give objective= a function "
            "of the output that gives one number per sample, lower where θ is right"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)


def _per_sample(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of a nested output."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]

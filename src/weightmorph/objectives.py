"""Objectives: losses that compare an output with labels, or with the frozen base's output on the clean input.

An objective is a function of tensors and knows no model. [`fit`][weightmorph.fit] reads `needs_labels` and
`needs_frozen` to see which of them it has to provide.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import TrainingError, near

__all__ = ["Distillation", "Mixture", "Objective", "Supervised"]

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Two tensors of one shape to a scalar that is smallest where they are equal."""


class Objective(ABC):
    r"""The scalar that training minimises: $L(f(T_\theta(x); W(\theta)),\ y,\ f(x; W))$.

    Objectives can be added and weighted: `Supervised() + 0.5 * Distillation()`.

    Example:
        >>> class Confidence(Objective):  # entropy of the output, without labels
        ...     def __call__(self, output, target=None, frozen=None):
        ...         return torch.special.entr(output.softmax(1)).sum(1).mean()
        >>> Confidence()(torch.zeros(2, 10)).exp().round().item()
        10.0
    """

    needs_labels: bool = False
    """Whether `target` is read."""

    needs_frozen: bool = False
    """Whether `frozen`, the base's output on the clean input, is read."""

    @abstractmethod
    def __call__(self, output: Any, target: Any = None, frozen: Any = None) -> Tensor:
        """The loss of a batch.

        Args:
            output: output of the conditioned network for the transformed input.
            target: the labels.
            frozen: output of the frozen base for the clean input.

        Returns:
            a scalar.

        Raises:
            TrainingError: if a needed argument is missing, or if outputs and labels do not fit each other.
        """

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return Mixture([*_weighted(self), *_weighted(other)])

    def __mul__(self, weight: float) -> Objective:
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            return NotImplemented
        return Mixture([(weight * w, objective) for w, objective in _weighted(self)])

    __rmul__ = __mul__


class Supervised(Objective):
    r"""Agreement with labels: $L = \ell(f(T_\theta(x); W(\theta)),\ y)$.

    Args:
        loss: $\ell$, `(output, target) -> scalar`. A loss of one part of a nested output is written as
            `lambda output, y: F.cross_entropy(output.logits, y)`.

    Raises:
        TrainingError: if `loss` is not callable.

    Example:
        >>> Supervised()(torch.zeros(2, 10), torch.tensor([3, 7])).exp().round().item()
        10.0
    """

    needs_labels = True

    def __init__(self, loss: Callable[[Any, Any], Tensor] = F.cross_entropy) -> None:
        if not callable(loss):
            raise TrainingError(f"Supervised: expected a function (output, target) -> scalar, got {loss!r}")
        self.loss = loss

    def __call__(self, output: Any, target: Any = None, frozen: Any = None) -> Tensor:
        if target is None:
            raise TrainingError(
                "Supervised: there are no labels; give data as (x, y), or use the objective 'distillation', which "
                "needs none"
            )
        try:
            value = self.loss(output, target)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise TrainingError(
                f"Supervised: {_name(self.loss)} failed on output {_shape(output)} and target {_shape(target)}: "
                f"{error}. Give a loss that fits them, e.g. Supervised(lambda output, y: …)"
            ) from error
        return _scalar(value, "Supervised", self.loss)

    def __repr__(self) -> str:
        return f"Supervised({_name(self.loss)})"


class Distillation(Objective):
    r"""Agreement with the frozen base on the clean input; no labels.

    With $z = f(T_\theta(x); W(\theta))$, $z_0 = f(x; W)$ and temperature $\tau$,

    $$L = \tau^2\, \mathrm{KL}\big(\mathrm{softmax}(z_0 / \tau)\ \|\ \mathrm{softmax}(z / \tau)\big)$$

    over the class axis, which is the second axis, averaged over all others. So the output may be the logits of a
    classification `(B, C)` or of a segmentation `(B, C, *spatial)`. Other outputs need another `distance`. For a nested
    output the distances of its floating-point tensors are averaged.

    Args:
        temperature: $\tau$; above 1, unlikely classes get more weight.
        distance: `"kl"` as above, `"mse"` (mean squared difference), or a function of two tensors of one shape, of the
            network and of the frozen base.

    Raises:
        TrainingError: for a temperature that is not positive, or an unknown distance.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> Distillation()(logits, frozen=logits).item(), Distillation()(-logits, frozen=logits).item() > 1
        (0.0, True)
    """

    needs_frozen = True

    def __init__(self, temperature: float = 1.0, distance: Literal["kl", "mse"] | Distance = "kl") -> None:
        if not temperature > 0:
            raise TrainingError(f"Distillation: expected a temperature above 0, got {temperature!r}")
        if not callable(distance) and distance not in ("kl", "mse"):
            raise TrainingError(
                f"Distillation: distance must be 'kl', 'mse' or a function of two tensors, got {distance!r}"
            )
        self.temperature, self.distance = float(temperature), distance

    def __call__(self, output: Any, target: Any = None, frozen: Any = None) -> Tensor:
        if frozen is None:
            raise TrainingError("Distillation: the frozen base's output on the clean input is missing: pass frozen=…")
        distances = [self._between(one, other.detach(), where) for where, one, other in _pairs(output, frozen)]
        if not distances:
            raise TrainingError(
                f"Distillation: the output ({type(output).__name__}) holds no floating-point tensor to compare"
            )
        return torch.stack(distances).mean()

    def _between(self, output: Tensor, frozen: Tensor, where: str) -> Tensor:
        if output.shape != frozen.shape:
            raise TrainingError(
                f"Distillation: {where} has shape {tuple(output.shape)} under W(θ) and {tuple(frozen.shape)} from the "
                "frozen base; the two must agree"
            )
        if callable(self.distance):
            return _scalar(self.distance(output, frozen), "Distillation", self.distance)
        if self.distance == "mse":
            return F.mse_loss(output, frozen)
        if output.dim() < 2 or output.shape[1] < 2:
            raise TrainingError(
                f"Distillation: {where} of shape {tuple(output.shape)} does not read as logits (B, classes, …) of two "
                "or more classes; use Distillation(distance='mse'), or a distance of your own"
            )
        if not output.dtype.itemsize > 2:
            output, frozen = output.float(), frozen.float()
        logs, frozen_logs = (F.log_softmax(z / self.temperature, 1) for z in (output, frozen))
        divergence = F.kl_div(logs, frozen_logs, reduction="none", log_target=True).sum(1)
        return divergence.mean() * self.temperature**2

    def __repr__(self) -> str:
        return f"Distillation(temperature={self.temperature:g}, distance={_name(self.distance)})"


class Mixture(Objective):
    r"""A weighted sum of objectives: $L = \sum_i w_i L_i$. Written with `+` and `*`.

    Example:
        >>> both = Supervised() + 0.5 * Distillation()
        >>> both
        1 * Supervised(cross_entropy) + 0.5 * Distillation(temperature=1, distance=kl)
        >>> both.needs_labels, both.needs_frozen
        (True, True)
    """

    def __init__(self, parts: list[tuple[float, Objective]]) -> None:
        self.parts = tuple(parts)
        self.needs_labels = any(part.needs_labels for _, part in parts)
        self.needs_frozen = any(part.needs_frozen for _, part in parts)

    def __call__(self, output: Any, target: Any = None, frozen: Any = None) -> Tensor:
        return torch.stack([weight * part(output, target, frozen) for weight, part in self.parts]).sum()

    def __repr__(self) -> str:
        return " + ".join(f"{weight:g} * {part!r}" for weight, part in self.parts)


_NAMED: Mapping[str, type[Objective]] = {"supervised": Supervised, "distillation": Distillation}


def resolve(objective: str | Objective | Callable[[Any, Any], Tensor]) -> Objective:
    """An objective from its name or from a loss `(output, target) -> scalar`; an objective is returned unchanged.

    Raises:
        TrainingError: for anything else.

    Example:
        >>> resolve("distillation"), resolve(F.mse_loss)
        (Distillation(temperature=1, distance=kl), Supervised(mse_loss))
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str) and objective in _NAMED:
        return _NAMED[objective]()
    if callable(objective) and not isinstance(objective, type):
        return Supervised(objective)
    hint = near(objective, _NAMED) if isinstance(objective, str) else ""
    raise TrainingError(
        f"objective: expected 'supervised', 'distillation', an Objective such as Distillation(2.0), or a loss "
        f"(output, target) -> scalar, got {objective!r}{hint}"
    )


def _weighted(objective: Objective) -> tuple[tuple[float, Objective], ...]:
    return objective.parts if isinstance(objective, Mixture) else ((1.0, objective),)


def _pairs(output: Any, frozen: Any, where: str = "the output") -> Iterator[tuple[str, Tensor, Tensor]]:
    """The floating-point tensors of two outputs of one structure, in pairs, each with its place in the output."""
    if isinstance(output, Tensor) and isinstance(frozen, Tensor):
        if output.is_floating_point() and frozen.is_floating_point():
            yield where, output, frozen
        return
    if isinstance(output, Mapping) and isinstance(frozen, Mapping) and output.keys() == frozen.keys():
        for key in output:
            yield from _pairs(output[key], frozen[key], f"{where}[{key!r}]")
    elif isinstance(output, list | tuple) and isinstance(frozen, list | tuple) and len(output) == len(frozen):
        for number, (one, other) in enumerate(zip(output, frozen, strict=True)):
            yield from _pairs(one, other, f"{where}[{number}]")
    elif type(output) is not type(frozen) or isinstance(output, Mapping | list | tuple):
        raise TrainingError(
            f"Distillation: {where} is {_shape(output)} under W(θ) and {_shape(frozen)} from the frozen base; the two "
            "must have the same structure"
        )


def _scalar(value: Any, owner: str, function: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise TrainingError(f"{owner}: {_name(function)} must give one number as a tensor, got {_shape(value)}")
    return value.reshape(())


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    length = f" of {len(value)}" if isinstance(value, Mapping | list | tuple) else ""
    return f"a {type(value).__name__}{length}"


def _name(function: Any) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)

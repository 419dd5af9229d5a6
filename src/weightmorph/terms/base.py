r"""A term: one Δ of the sum $W + \sum_i \Delta_i$, with its structure and everything that can be done with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor

from ..layers import Cost, LayerOp, LayerSize
from ..slots import Grow, Slot

__all__ = ["Term", "TermKind", "beyond", "widen"]

Self = TypeVar("Self", bound="Term")


class TermKind(NamedTuple):
    """What the cost rule needs to know of a term: its class, and its rank or number of weight sets."""

    term: type[Term]
    size: int = 0


@dataclass(frozen=True, eq=False)
class Term(ABC):
    r"""One Δ, for all samples `()` or one per sample `(B,)`.

    A new term is one file with a subclass, and one entry in `weightmorph.terms.TERMS`. It has to say what its
    coefficient is and what tensor it stands for (`dense`, the oracle of everything else); all other methods have a
    slow default, and each that is overridden has a faster way or a better estimate.

    Terms are compared by identity (`eq=False`), because tensors have no single truth value.

    Attributes:
        slot: the tensor that Δ belongs to.
        coefficient_field: the field that holds the one tensor that depends on θ.
        coefficient_dims: axes of that tensor when θ is shared; None for those of the slot.
        stays_aside: True if the term's work may stay on the activations while the others are added to the weight.
        is_dense: True if the coefficient itself is a dense tensor, one per sample.
        replaces: True if it stands for $V - W$, where the weight V replaces the frozen one.
        absorbs: priority for absorbing the frozen weight (`with_frozen`); 0: never.
        reads_frozen_output: True if its work on the activations needs the frozen layer's output.

    Example:
        A term that scales the whole weight by one number per setting:

        >>> import torch
        >>> from dataclasses import dataclass
        >>> from weightmorph.slots import Slot
        >>> @dataclass(frozen=True, eq=False)
        ... class Gain(Term):
        ...     weight: torch.Tensor
        ...     gain: torch.Tensor
        ...     coefficient_field = "gain"
        ...     coefficient_dims = 0
        ...     def dense(self):
        ...         shape = (*self.batch, *(1,) * len(self.slot.shape))
        ...         return self.gain.reshape(shape) * self.weight
        >>> Gain(Slot.of((6, 3)), torch.ones(6, 3), torch.tensor([0.0, 2.0])).dense().shape
        torch.Size([2, 6, 3])
    """

    slot: Slot

    coefficient_field: ClassVar[str]
    coefficient_dims: ClassVar[int | None] = None
    stays_aside: ClassVar[bool] = False
    is_dense: ClassVar[bool] = False
    replaces: ClassVar[bool] = False
    absorbs: ClassVar[int] = 0
    reads_frozen_output: ClassVar[bool] = False

    # What it is.

    @property
    def coefficient(self) -> Tensor:
        """The one tensor that depends on θ."""
        tensor: Tensor = getattr(self, self.coefficient_field)
        return tensor

    @property
    def batch(self) -> tuple[int, ...]:
        """`*B`: empty, or `(B,)`."""
        dims = self.coefficient_dims
        shape = self.coefficient.shape
        return tuple(shape[: len(shape) - (len(self.slot.shape) if dims is None else dims)])

    @property
    def grow(self) -> Grow:
        """Taps by which Δ is wider than W; empty where it is not."""
        return ()

    @property
    def kind(self) -> TermKind:
        """The term for the cost rule."""
        return TermKind(type(self))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor of the term."""
        return tuple(v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor))

    @property
    def scale(self) -> Tensor | None:
        r"""$s$ `(*B, O)` where $\Delta = s \odot W$ row by row; None otherwise."""
        return None

    @property
    def shift(self) -> Tensor | None:
        r"""$\Delta$ `(*B, O)` itself where it is a vector that is added as it is; None otherwise."""
        return None

    # The algebra.

    @abstractmethod
    def dense(self) -> Tensor:
        """The tensor that it stands for: `(*B, *S)`, with the grown kernel if there is one."""

    def add_to(self, total: Tensor, grow: Grow, owned: bool) -> Tensor:
        """A weight plus this term.

        Args:
            total: the weight so far, as a matrix `(*B, S0, S1·…)`.
            grow: taps by which it is wider than W.
            owned: True if it may be written into.
        """
        piece = widen(self.dense(), beyond(grow, self.grow)).reshape(*self.batch, *total.shape[-2:])
        return total.add_(piece) if self.writable(total, owned) else total + piece

    def apply(self, op: LayerOp, x: Tensor, y: Tensor | None) -> Tensor:
        """An output plus this term's own, with the work moved to the activations.

        Args:
            op: the layer operation.
            x: its input, the batch first.
            y: the output so far, which may be written into; None where this term comes first.
        """
        raise NotImplementedError(f"{type(self).__name__} has no form on the activations")

    def with_frozen(self, grow: Grow) -> Term:
        """A term that stands for the frozen weight and this Δ together, on a support grown by `grow`."""
        raise NotImplementedError(f"{type(self).__name__} does not absorb the frozen weight")

    def frozen_plus(self, grow: Grow) -> tuple[Tensor, bool] | None:
        """The frozen weight plus Δ as a matrix `(*B, S0, S1·…)`, where one product gives both; None otherwise.

        Returns:
            the matrix, and whether it is new, so that other terms may be written into it.
        """
        return None

    def merged(self, other: Any) -> Term | None:
        """One term that stands for two of this class; None where there is none."""
        return None

    def joined(self, other: Term) -> Term | None:
        """One term that does this one's work and another's over the same patches; None where there is none."""
        return None

    def patch_factors(self, grow: Grow) -> tuple[Tensor, Tensor] | None:
        """Δ as a low-rank product over patches, `(B, O, r)` and `(r, I, *kernel)`; None where it is not one."""
        return None

    # Costs.

    @classmethod
    def applies_to(cls, layer: LayerSize, constant: bool = False) -> bool:
        """Whether the work can move to the activations there.

        Args:
            layer: the layer in numbers.
            constant: also accept forms that pay only if weights must be constant.
        """
        return False

    @classmethod
    def cost_of_applying(cls, cost: Cost, size: int) -> None:
        """Add what `apply` takes, for a rank or number of weight sets."""
        raise NotImplementedError(f"{cls.__name__} has no form on the activations")

    @classmethod
    def cost_of_adding(cls, cost: Cost, size: int) -> None:
        """Add what `add_to` takes: by default one pass over the weight."""
        n = cost.layer.numbers
        cost.add(cost.machine.copy * n, work=n, moved=2 * n)

    # The batch.

    def with_coefficient(self: Self, tensor: Tensor) -> Self:
        """The same term with another coefficient."""
        changed: dict[str, Any] = {self.coefficient_field: tensor}
        return replace(self, **changed)

    def take(self: Self, index: Tensor) -> Self:
        """Row `index[i]` of the batch becomes row i: `(D, …)` to `(B, …)`."""
        return self.with_coefficient(self.coefficient.index_select(0, index))

    def split(self: Self, step: int, count: int) -> list[Self]:
        """The batch in `count` chunks of `step` samples, as views; a shared term stands in each as it is."""
        return [self.with_coefficient(t) for t in self.coefficient.split(step)] if self.batch else [self] * count

    def expand_batch(self: Self, size: int) -> Self:
        """A shared term as one of so many samples, without a copy."""
        tensor = self.coefficient
        return self if self.batch else self.with_coefficient(tensor.expand(size, *tensor.shape))

    def detached(self: Self) -> Self:
        """The same numbers as leaves of their own, with the `requires_grad` flags as they are."""
        changed: dict[str, Any] = {
            f.name: value.detach().requires_grad_(value.requires_grad)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)

    def writable(self, total: Tensor, owned: bool) -> bool:
        """May this term be added to `total` in place? Not where it has a batch and `total` none."""
        return owned and (total.dim() > 2 or not self.batch)


def widen(weight: Tensor, grow: Grow) -> Tensor:
    """Zeros around a kernel, before and after each spatial axis."""
    if not any(map(any, grow)):
        return weight
    return F.pad(weight, [n for more in reversed(grow) for n in more])


def beyond(grow: Grow, own: Grow) -> Grow:
    """The taps that a support grown by `own` lacks of one grown by `grow`."""
    if not own:
        return grow
    return tuple((b - own_b, a - own_a) for (b, a), (own_b, own_a) in zip(grow, own, strict=True))

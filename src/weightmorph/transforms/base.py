"""The contract of a weight transform, and the sum of several."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..errors import TransformError
from ..parameters import ParameterSpace
from ..slots import Slot
from ..terms import Term, WeightExpression

__all__ = ["Carried", "Sum", "WeightTransform", "anchored", "gain_network", "relative"]

Self = TypeVar("Self", bound="WeightTransform")
SelfCarried = TypeVar("SelfCarried", bound="Carried")


class WeightTransform(nn.Module):
    r"""`(weight (*S), code (*B, K)) -> W(θ) (*B, *S)`, as an expression that keeps its structure.

    An instance is first a recipe: `LowRank(8)` holds a rank and no tensor. [`build`][weightmorph.WeightTransform.build]
    makes the transform of one slot from it; `condition` does that for every slot the family wants. A new family
    writes `wants`, `setup` and `delta`, and inherits the laws.

    Transforms add: `Warp() + LowRank(8)` is $W + \Delta_1(W, \theta) + \Delta_2(W, \theta)$.
    """

    family: ClassVar[str] = ""
    """Its name in `state_dict` keys and summaries."""

    anchored: bool = True
    """Is $\\Delta(\\theta_0) = 0$ exactly? True for everything shipped; a user's own module decides for itself."""

    slot: Slot
    space: ParameterSpace | None
    anchor: tuple[float, ...]

    def wants(self, slot: Slot, space: ParameterSpace) -> bool:
        """Does the family apply to this tensor? By default to weights of convolutions and linear layers."""
        return slot.kind in ("conv", "conv_transpose", "linear", "other")

    def build(
        self: Self,
        slot: Slot | Sequence[int],
        code_dim: int | None = None,
        *,
        space: ParameterSpace | None = None,
    ) -> Self:
        """The transform of one tensor.

        Args:
            slot: which tensor; a bare shape reads as a vector, a matrix or a convolution's weight.
            code_dim: K; not needed where `space` is given.
            space: the parameters, for families that read more than the code (`Warp`, `Lie`).

        Raises:
            TransformError: if neither `code_dim` nor `space` is given.
        """
        built = self._fresh()
        built.slot = slot if isinstance(slot, Slot) else Slot.of(slot)
        if space is None and code_dim is None:
            raise TransformError(f"{type(self).__name__}.build: give code_dim, or the space that encodes")
        built.space = space
        built.anchor = space.anchor_code if space is not None else (0.0,) * int(code_dim or 0)
        built.setup(built.slot, len(built.anchor))
        return built

    def _fresh(self: Self) -> Self:
        """A copy of the recipe; overridden where a part must stay the user's own object."""
        return copy.deepcopy(self)

    @abstractmethod
    def setup(self, slot: Slot, code_dim: int) -> None:
        """Make the trainable tensors of one slot."""

    @abstractmethod
    def delta(self, weight: Tensor, code: Tensor) -> Term:
        r"""$\\Delta(W, c)$ as a term."""

    def forward(self, weight: Tensor, code: Tensor) -> WeightExpression:
        """`(*S), (*B, K) -> W(θ)`; `.dense()` of the result is the tensor."""
        if not hasattr(self, "slot"):
            raise TransformError(f"{self!r} is a recipe: call .build(shape, code_dim=…), or give it to condition()")
        return WeightExpression(self.slot, weight, (self.delta(weight, code),))

    def home(self, code: Tensor) -> Tensor:
        """The anchor's code $c_0$ `(K,)`, in the dtype and on the device of `code`."""
        return code.new_tensor(self.anchor)

    def __add__(self, other: WeightTransform) -> Sum:
        if not isinstance(other, WeightTransform):
            return NotImplemented
        return Sum(*self.parts, *other.parts)

    @property
    def parts(self) -> tuple[WeightTransform, ...]:
        """The summands; of a single transform, itself."""
        return (self,)

    def config(self) -> dict[str, Any]:
        """Plain data from which the recipe can be made again."""
        return {"type": type(self).__name__}


class Carried(WeightTransform):
    r"""A family whose $\\Delta$ depends on θ through one small tensor, the *carrier*: gains, or a mixing of taps.

    The carriers of all slots can then be made together, in a handful of operations however deep the network is, and
    the weights' own side of the work need not be done at all where a route works on the activations.
    """

    @abstractmethod
    def carrier(self, code: Tensor) -> Tensor:
        """What depends on θ: code `(*B, K)` -> `(*B, …)`. Exactly zero at the anchor."""

    @abstractmethod
    def term(self, weight: Tensor, carrier: Tensor) -> Term:
        r"""$\\Delta$ from the frozen weight and its carrier."""

    def delta(self, weight: Tensor, code: Tensor) -> Term:
        return self.term(weight, self.carrier(code))

    @classmethod
    def carriers(cls: type[SelfCarried], members: Sequence[SelfCarried], code: Tensor) -> Sequence[Tensor]:
        """The carriers of many slots that are `alike`, code `(*B, K)`: what `carrier` gives for each, made together."""
        return [member.carrier(code) for member in members]

    def alike(self) -> Hashable:
        """Slots whose carriers can be made together have this in common."""
        return None


class Sum(WeightTransform):
    r"""Several transforms of one weight, added: $W + \\sum_i \\Delta_i$. Written with `+`."""

    family = "sum"

    def __init__(self, *summands: WeightTransform) -> None:
        super().__init__()
        self.summands = nn.ModuleList(summands)

    @property
    def parts(self) -> tuple[WeightTransform, ...]:
        return tuple(self._walk())

    def _walk(self) -> Iterator[WeightTransform]:
        for summand in self.summands:
            assert isinstance(summand, WeightTransform)
            yield from summand.parts

    @property
    def anchored(self) -> bool:  # type: ignore[override]
        return all(part.anchored for part in self.parts)

    def wants(self, slot: Slot, space: ParameterSpace) -> bool:
        return any(part.wants(slot, space) for part in self.parts)

    def build(
        self,
        slot: Slot | Sequence[int],
        code_dim: int | None = None,
        *,
        space: ParameterSpace | None = None,
    ) -> Sum:
        slot = slot if isinstance(slot, Slot) else Slot.of(slot)
        parts = [p for p in self.parts if space is None or p.wants(slot, space)]
        return Sum(*(part.build(slot, code_dim, space=space) for part in parts))

    def setup(self, slot: Slot, code_dim: int) -> None:
        raise TransformError("a sum has no tensors of its own; build makes its summands")

    def delta(self, weight: Tensor, code: Tensor) -> Term:
        raise TransformError("a sum has one term per summand; call it, or its parts")

    def forward(self, weight: Tensor, code: Tensor) -> WeightExpression:
        built = [part(weight, code) for part in self.parts]
        return WeightExpression(built[0].slot, weight, tuple(t for e in built for t in e.terms))

    def config(self) -> dict[str, Any]:
        return {"type": "Sum", "parts": [p.config() for p in self.parts]}


def anchored(difference: Tensor, code: Tensor, home: Tensor, lead: int = 0) -> Tensor:
    """Make a difference that vanishes at the anchor vanish there exactly, with its gradients as they are.

    `difference (*B, …)`, after `lead` other axes; `code (*B, K)`, `home (K,)`. $g(c) - g(c_0)$ is zero at $c_0$ in
    exact arithmetic, but a batched product may round row by row. What is subtracted here is that rounding, as a
    constant.
    """
    here = (code == home).all(-1)
    if code.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(here.any()):
        return difference  # elsewhere looking would wait for the device
    here = here.reshape(*here.shape, *(1,) * (difference.dim() - lead - here.dim()))
    return difference - torch.where(here, difference.detach(), 0.0)


def gain_network(code_dim: int, outputs: int, hidden: int, bias: bool = True) -> nn.Sequential:
    """The small MLP that turns a code `(*B, K)` into gains `(*B, outputs)`."""
    return nn.Sequential(nn.Linear(code_dim, hidden), nn.Tanh(), nn.Linear(hidden, outputs, bias=bias))


Difference = Callable[[Tensor], Tensor]


def relative(function: Difference, code: Tensor, home: Tensor) -> Tensor:
    """$g(c) - g(c_0)$, exactly zero at the anchor: `(*B, K) -> (*B, …)`."""
    return anchored(function(code) - function(home), code, home)

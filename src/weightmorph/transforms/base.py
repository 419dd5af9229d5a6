"""The contract of a weight transform, and the sum of several. This is the core of the package."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..errors import TransformError
from ..parameters import ParameterSpace
from ..slots import Slot
from ..terms import Term, WeightExpression

__all__ = ["CoefficientTransform", "Sum", "WeightTransform", "zero_at_anchor"]

Self = TypeVar("Self", bound="WeightTransform")
SelfCoefficient = TypeVar("SelfCoefficient", bound="CoefficientTransform")


class WeightTransform(nn.Module, ABC):
    r"""A family of maps from a frozen weight and a code to the weight under θ.

    $$W(\theta) = W + \Delta(W, c(\theta)), \qquad \Delta(W, c(\theta_0)) = 0 \text{ exactly}$$

    An instance is first a recipe: `LowRank(8)` holds a rank and no tensor. [`build`][weightmorph.WeightTransform.build]
    makes the transform of one slot from it; [`condition`][weightmorph.condition] does that for every slot that the
    family wants. Transforms add: `Warp() + LowRank(8)` is $W + \Delta_1 + \Delta_2$.

    A family of your own is a subclass with up to four methods:

    - `setup(slot, code_dim)` makes the trainable tensors of one slot. They start where $\Delta$ is zero, so that an
      untrained model is the frozen network.
    - `delta(weight, code)` gives $\Delta$ as a [term][weightmorph.terms]: the one that fits its structure, since that
      is what makes one θ per sample fast, or `Dense`, which holds any tensor. It is zero at the anchor where every
      number that depends on the code is multiplied by a power of $c - c_0$; where rounding could spoil that (a
      difference of two network outputs), [`zero_at_anchor`][weightmorph.transforms.base.zero_at_anchor] repairs it.
    - `wants(slot, space)` says which tensors the family applies to: weights of convolutions and linear layers, unless
      it says otherwise.
    - `config()` gives the constructor's arguments as plain data, for summaries and saved files.

    The class then works with everything that takes a transform: `condition`, `fit`, `bake`, `save`, export. See
    docs/extending.md for how to ship it with the library.

    Shapes:
        weight `(*S)`, code `(*B, K)` -> an expression whose `.dense()` is `(*B, *S)`. `*B` is empty under a shared θ,
        `(B,)` with one θ per sample, and is never squeezed.

    Attributes:
        slot: the tensor that a built transform is for.
        space: the parameters, if `build` was given them.
        anchor: the anchor's code $c_0$, K numbers.

    Raises:
        TransformError: if a recipe that was not built is called.

    Example:
        A family that scales each output channel by $e^{a_o \cdot (c - c_0)}$, so that it never changes sign:

        >>> from weightmorph.terms import RowScale
        >>> class PositiveScale(WeightTransform):
        ...     family = "positive_scale"
        ...     def wants(self, slot, space):
        ...         return slot.kind in ("conv", "linear")
        ...     def setup(self, slot, code_dim):
        ...         self.slope = nn.Parameter(torch.zeros(code_dim, slot.outputs))
        ...     def delta(self, weight, code):
        ...         gain = torch.expm1((code - self.anchor_code(code)) @ self.slope)  # (*B, outputs), 0 at the anchor
        ...         return RowScale(self.slot, weight, gain)

        Built for one weight and called with one code per sample:

        >>> t = PositiveScale().build((6, 3, 3, 3), code_dim=4)
        >>> t(torch.ones(6, 3, 3, 3), torch.ones(5, 4)).dense().shape
        torch.Size([5, 6, 3, 3, 3])

        As part of a conditioned network, which at the anchor is the frozen one bit for bit:

        >>> import weightmorph as wm
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 10)).eval()
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, PositiveScale() + wm.LowRank(2))
        >>> for parameter in model.parameters():
        ...     _ = nn.init.normal_(parameter)
        >>> x = torch.randn(2, 1, 8, 8)
        >>> with torch.no_grad():
        ...     torch.equal(model(x, angle=0.0), net(x)), model(x, angle=[10.0, 20.0]).shape
        (True, torch.Size([2, 10]))
    """

    family: ClassVar[str] = ""
    """Its name in `state_dict` keys and summaries."""

    anchored: bool = True
    r"""True if $\Delta(\theta_0) = 0$ exactly: so for every family here; a user's module may say otherwise."""

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

        Returns:
            a copy of the recipe with trainable tensors for the slot.

        Raises:
            TransformError: if neither `code_dim` nor `space` is given.

        Example:
            >>> from weightmorph import LowRank
            >>> sorted(LowRank(2).build((6, 3), code_dim=4).state_dict())
            ['gains.0.bias', 'gains.0.weight', 'gains.2.weight', 'left', 'right']
        """
        if space is None and code_dim is None:
            raise TransformError(f"{type(self).__name__}.build: give code_dim, or the space that encodes")
        built = self._copy()
        built.slot = slot if isinstance(slot, Slot) else Slot.of(slot)
        built.space = space
        built.anchor = space.anchor_code if space is not None else (0.0,) * int(code_dim or 0)
        built.setup(built.slot, len(built.anchor))
        return built

    def _copy(self: Self) -> Self:
        """A copy of the recipe; overridden where a part must stay the user's own object."""
        return copy.deepcopy(self)

    @abstractmethod
    def setup(self, slot: Slot, code_dim: int) -> None:
        """Make the trainable tensors of one slot."""

    @abstractmethod
    def delta(self, weight: Tensor, code: Tensor) -> Term:
        r"""$\Delta(W, c)$ as a term: weight `(*S)`, code `(*B, K)`."""

    def forward(self, weight: Tensor, code: Tensor) -> WeightExpression:
        """`(*S), (*B, K) -> W(θ)`; `.dense()` of the result is the tensor."""
        if not hasattr(self, "slot"):
            raise TransformError(f"{self!r} is a recipe: call .build(shape, code_dim=…), or give it to condition()")
        return WeightExpression(self.slot, weight, (self.delta(weight, code),))

    def anchor_code(self, code: Tensor) -> Tensor:
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


class CoefficientTransform(WeightTransform):
    r"""A family whose $\Delta$ depends on θ through one small tensor, the term's *coefficient*.

    $$\Delta(W, c) = \mathrm{term}(W, k(c)), \qquad k(c_0) = 0 \text{ exactly}$$

    A coefficient is a vector of gains or a mixing of taps. Those of many slots can be computed in a handful of
    operations, however deep the network is; and the term need not touch the weight where a route works on the
    activations. A subclass gives `coefficient` and `term` in place of `delta`, and may give `coefficients` and
    `batch_key` as the fast form.

    Example:
        >>> from weightmorph import Scale
        >>> t = Scale().build((6, 3), code_dim=4)
        >>> gain = t.coefficient(torch.ones(5, 4))
        >>> gain.shape, t.term(torch.zeros(6, 3), gain).dense().shape
        (torch.Size([5, 6]), torch.Size([5, 6, 3]))
    """

    @abstractmethod
    def coefficient(self, code: Tensor) -> Tensor:
        """The tensor that depends on θ: code `(*B, K)` -> `(*B, …)`. Exactly zero at the anchor."""

    @abstractmethod
    def term(self, weight: Tensor, coefficient: Tensor) -> Term:
        r"""$\Delta$ from the frozen weight and the coefficient."""

    def delta(self, weight: Tensor, code: Tensor) -> Term:
        return self.term(weight, self.coefficient(code))

    @classmethod
    def coefficients(cls: type[SelfCoefficient], members: Sequence[SelfCoefficient], code: Tensor) -> Sequence[Tensor]:
        """What `coefficient` gives for each of many slots with one `batch_key`, computed at once: code `(*B, K)`."""
        return [member.coefficient(code) for member in members]

    def batch_key(self) -> Hashable:
        """Slots whose coefficients can be computed at once have equal keys."""
        return None


class Sum(WeightTransform):
    r"""Several transforms of one weight, added. Written with `+`.

    $$W(\theta) = W + \sum_i \Delta_i(W, c(\theta))$$

    Args:
        summands: the transforms, each of which adds to the slots that it wants.

    Example:
        >>> from weightmorph import LowRank, Scale
        >>> both = (LowRank(2) + Scale()).build((6, 3), code_dim=4)
        >>> [type(term).__name__ for term in both(torch.zeros(6, 3), torch.ones(4)).terms]
        ['LowRankUpdate', 'RowScale']
    """

    family = "sum"

    def __init__(self, *summands: WeightTransform) -> None:
        super().__init__()
        self.summands = nn.ModuleList(summands)

    @property
    def parts(self) -> tuple[WeightTransform, ...]:
        return tuple(part for summand in self.summands for part in summand.parts)  # type: ignore[union-attr] # a ModuleList forgets what it holds

    @property
    def anchored(self) -> bool:  # type: ignore[override] # a property in place of a class attribute
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


def zero_at_anchor(difference: Tensor, code: Tensor, anchor_code: Tensor, lead: int = 0) -> Tensor:
    """A difference that vanishes at the anchor up to rounding, made exactly zero there; gradients stay as they are.

    $g(c) - g(c_0)$ is zero at $c_0$ in exact arithmetic, but a batched product may round row by row. That rounding is
    subtracted as a constant.

    Args:
        difference: `(*L, *B, …)`.
        code: `(*B, K)`.
        anchor_code: $c_0$, `(K,)`.
        lead: how many axes `*L` has.

    Returns:
        a tensor of the shape of `difference`.

    Example:
        >>> code = torch.tensor([[0.0], [1.0]])
        >>> zero_at_anchor(torch.tensor([1e-9, 2.0]), code, torch.zeros(1)).tolist()
        [0.0, 2.0]
    """
    at_anchor = (code == anchor_code).all(-1)
    if code.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(at_anchor.any()):
        return difference  # on another device, looking at the values would wait for it
    at_anchor = at_anchor.reshape(*at_anchor.shape, *(1,) * (difference.dim() - lead - at_anchor.dim()))
    return difference - torch.where(at_anchor, difference.detach(), 0.0)

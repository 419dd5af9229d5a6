"""What stands at `layer.weight` while a conditioned model runs, and the one place where a function meets it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import ExecutionError
from ..layers import with_room
from ..slots import Slot
from ..terms import Replacement, WeightExpression
from . import fallback
from .batch import Batch
from .handlers import HANDLERS, WIDENED

__all__ = ["Scope", "StandIn", "call"]

METADATA = frozenset(
    "shape dtype device ndim size dim numel nelement is_floating_point is_complex stride layout is_cuda is_contiguous "
    "element_size itemsize is_sparse is_quantized is_meta requires_grad".split()
)
"""What a stand-in answers from the frozen tensor."""


class Scope:
    """One call of a conditioned model: the weights that were made for it, and how to make them again.

    It outlives the call, for a checkpointed block is recomputed during backward, perhaps on another thread.
    """

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self.made: dict[str, Tensor | WeightExpression] = {}
        self.remake: Callable[[str], Tensor | WeightExpression] | None = None
        self.grad = False
        # Weights that one function reads: made when it does, and let go of.
        self.once: frozenset[str] = frozenset()
        # A shared θ on so small an input that it runs as one θ per sample: the batch of those layers.
        self.spread: Batch | None = None


class StandIn:
    """Answers for a tensor of the base. A plain object on purpose: a Tensor subclass would silently fall back to the
    frozen weight in any function it does not handle.
    """

    def __init__(self, scope: Scope, slot: Slot, base: Tensor) -> None:
        self.scope, self.slot, self.base = scope, slot, base
        self.local = False

    def operand(self) -> Tensor | WeightExpression:
        """W(θ): a tensor if θ is shared, an expression if there is one per sample."""
        scope = self.scope
        if self.local or (scope.grad and not torch.is_grad_enabled()):
            # Reentrant checkpointing: the block runs first without gradients and is recomputed with them. Weights
            # made outside it would belong to a graph that the first segment's backward frees, so both runs make
            # their own, from leaves.
            self.local = True
            assert scope.remake is not None
            return scope.remake(self.slot.name)
        made = scope.made[self.slot.name]
        if isinstance(made, WeightExpression) and not made.batch:
            made = made.materialise()
            if self.slot.name not in scope.once:
                scope.made[self.slot.name] = made
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return call(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name in METADATA:
            return getattr(self.base, name)
        if name == "data":
            raise ExecutionError(
                f"layer {self.slot.layer!r}: the base reads .data of a conditioned weight, which would cut its "
                "gradient; read the weight itself, or deselect this layer with select="
            )
        if name.startswith("__"):
            raise AttributeError(name)
        member = getattr(torch.Tensor, name)
        if not callable(member):  # a property such as .T is a function of the weight like any other
            return call(getattr, (self, name), {})
        return lambda *args, **kwargs: call(member, (self, *args), kwargs)

    def __len__(self) -> int:
        return len(self.base)

    def __repr__(self) -> str:
        return f"<conditioned {self.slot.name} {tuple(self.base.shape)}>"


class Derived(StandIn):
    """The result of a function of weights alone, one value per sample: a standardised weight, say."""

    def __init__(self, source: StandIn, value: Tensor) -> None:
        slot = Slot.of(value.shape[1:], source.slot.name)
        super().__init__(source.scope, slot, value[0])
        # It may be consumed by any function, so no layout is claimed beyond the shape.
        self.expression = WeightExpression(slot, self.base, (Replacement(slot, self.base, value),))

    def operand(self) -> WeightExpression:
        return self.expression


def _operator(name: str) -> Callable[..., Any]:
    method = getattr(torch.Tensor, name)

    def apply(self: StandIn, *args: Any) -> Any:
        return call(method, (self, *args), {})

    return apply


# Python looks operators up on the class, past __getattr__.
for _name in (
    "__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __pow__ __rpow__ __matmul__ "
    "__rmatmul__ __neg__ __abs__ __getitem__ __float__ __int__ __bool__"
).split():
    setattr(StandIn, _name, _operator(_name))


def call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func`, some of whose arguments are stand-ins, with the weights they stand for.

    Args:
        func: a torch function or tensor method.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        ExecutionError: if `func` cannot take one weight per sample (names layer and function).
    """
    found: list[StandIn] = []
    args = tuple([resolve(value, found) for value in args])
    kwargs = {name: resolve(value, found) for name, value in kwargs.items()}
    first = found[0]
    batch = first.scope.batch
    if batch is None and first.scope.spread is not None and any(
        isinstance(a, WeightExpression) for a in (*args, *kwargs.values())
    ):
        batch = first.scope.spread
    if batch is None:
        return shared(func, args, kwargs, found)
    where = f"layer {first.slot.layer or first.slot.name!r}, function {getattr(func, '__name__', str(func))!r}"
    handler = HANDLERS.get(func)
    if handler is not None:
        return handler(batch, where, *args, **kwargs)
    return fallback.call(batch, where, func, args, kwargs, lambda value: Derived(first, value))


def shared(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], found: list[StandIn]) -> Any:
    """One weight for the batch: the function itself, with room for a kernel that has grown."""
    grown = next((s for s in found if s.slot.growable), None)
    if grown is not None and func in WIDENED:
        return func(**with_room(func, args, kwargs, grown.slot))
    return func(*args, **kwargs)


def resolve(value: Any, found: list[StandIn]) -> Any:
    """An argument with what its stand-ins stand for, also in lists and tuples; they are added to `found`, in order."""
    if isinstance(value, StandIn):
        found.append(value)
        return value.operand()
    kind = type(value)
    if (kind is tuple or kind is list) and value and type(value[0]) is not int:  # a stride, say
        return kind([resolve(item, found) for item in value])
    return value

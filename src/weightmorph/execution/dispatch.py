"""The weight proxy, which stands at `layer.weight` while a model runs, and the one place where a function meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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

__all__ = ["CallContext", "CurrentCall", "LazyWeights", "WeightProxy", "call"]

Weight = Tensor | WeightExpression
"""W(θ): a tensor if θ is shared, an expression with one row per sample or setting otherwise."""

METADATA = frozenset(
    "shape dtype device ndim size dim numel nelement is_floating_point is_complex stride layout is_cuda is_contiguous "
    "element_size itemsize is_sparse is_quantized is_meta requires_grad".split()
)
"""Attributes of a proxy that are those of the frozen tensor."""


class LazyWeights(Mapping[str, Weight]):
    """W(θ) of every slot for one call, materialised where a function reads it.

    As a mapping it gives each weight as the call made it. [`read`][weightmorph.execution.LazyWeights.read] is what a
    proxy calls, and differs in two cases:

    * A shared weight may be here as an expression. It is materialised at the read and not kept, because one function
      reads it.
    * Reentrant checkpointing runs a block of the base without gradients first, and again with gradients during the
      backward pass. The backward of the first recomputed block frees the graph of whatever weights it reads. So a
      weight that is read without gradients, in a call that has them, is rebuilt from the transform's parameters, now
      and at all later reads.

    The names of the second case are the only part of a call that changes while the base runs. They must be noted: when
    a block is recomputed, gradients are enabled as in a block that runs once, and only the earlier read without
    gradients tells the two apart. (That the backward pass is running does not: non-reentrant checkpointing recomputes
    in it too, and needs the call's own weights.)

    Args:
        weights: by slot name, as made for the call.
        rebuild: makes one slot's weight again, from the transform's parameters.
        grad: were gradients enabled when the call began?
    """

    def __init__(self, weights: Mapping[str, Weight], rebuild: Callable[[str], Weight], grad: bool) -> None:
        self._weights, self._rebuild, self._grad = weights, rebuild, grad
        self._checkpointed: set[str] = set()

    def read(self, name: str) -> Weight:
        """The weight as a function gets it: a tensor, or an expression with one row per sample or setting."""
        if name in self._checkpointed or (self._grad and not torch.is_grad_enabled()):
            self._checkpointed.add(name)
            return self._rebuild(name)
        weight = self._weights[name]
        return weight.materialise() if isinstance(weight, WeightExpression) and not weight.batch else weight

    def __getitem__(self, name: str) -> Weight:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


@dataclass(frozen=True)
class CallContext:
    """What the proxies of one call share. It outlives the call if a checkpointed block is recomputed.

    Attributes:
        weights: W(θ) by slot name.
        batch: of a call with one θ per sample; None where θ is shared.
        shared_batch: of a call with a shared θ, for the layers that apply it to their activations.
    """

    weights: LazyWeights
    batch: Batch | None = None
    shared_batch: Batch | None = None


class CurrentCall:
    """The call that some proxies answer for.

    In eager mode every call has proxies of its own, and this never changes. A traced base has proxies for all calls,
    so there `context` is set while a call is traced, and None in between.
    """

    def __init__(self, context: CallContext | None = None) -> None:
        self.context = context


class WeightProxy:
    """Stands in for a tensor of the base, and hands W(θ) to the function that reads it.

    It is a plain object on purpose: a Tensor subclass would silently fall back to the frozen weight in any function it
    does not handle.
    """

    def __init__(self, current: CurrentCall, slot: Slot, frozen: Tensor) -> None:
        self.current, self.slot, self.frozen = current, slot, frozen

    def operand(self) -> Weight:
        """W(θ), as a function gets it."""
        context = self.current.context
        assert context is not None, "no call is running"
        return context.weights.read(self.slot.name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return call(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name in METADATA:
            return getattr(self.frozen, name)
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
        return len(self.frozen)

    def __repr__(self) -> str:
        return f"<conditioned {self.slot.name} {tuple(self.frozen.shape)}>"


class DerivedProxy(WeightProxy):
    """Stands in for a function of weights alone, with one value per sample: a standardised weight, for example."""

    def __init__(self, source: WeightProxy, value: Tensor) -> None:
        slot = Slot.of(value.shape[1:], source.slot.name)
        super().__init__(source.current, slot, value[0])
        # Any function may read it, so no layout is claimed beyond the shape.
        self.expression = WeightExpression(slot, self.frozen, (Replacement(slot, self.frozen, value),))

    def operand(self) -> WeightExpression:
        return self.expression


def _operator(name: str) -> Callable[..., Any]:
    method = getattr(torch.Tensor, name)

    def apply(self: WeightProxy, *args: Any) -> Any:
        return call(method, (self, *args), {})

    return apply


# Python looks operators up on the class, past __getattr__.
for _name in (
    "__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __pow__ __rpow__ __matmul__ "
    "__rmatmul__ __neg__ __abs__ __getitem__ __float__ __int__ __bool__"
).split():
    setattr(WeightProxy, _name, _operator(_name))


def call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func`, some of whose arguments are proxies, with the weights that they stand for.

    Args:
        func: a torch function or tensor method.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        ExecutionError: if `func` cannot take one weight per sample (names layer and function).
    """
    proxies: list[WeightProxy] = []
    args = tuple([resolve(value, proxies) for value in args])
    kwargs = {name: resolve(value, proxies) for name, value in kwargs.items()}
    first = proxies[0]
    context = first.current.context
    assert context is not None, "no call is running"
    batch = context.batch
    if batch is None:
        batch = context.shared_batch
        if batch is None or not any(isinstance(a, WeightExpression) for a in (*args, *kwargs.values())):
            return shared(func, args, kwargs, proxies)
        x = args[0] if args else kwargs.get("input")
        rows = x.shape[0] if isinstance(x, Tensor) and x.dim() else 0
        if rows != batch.size and batch.route != "constant":
            # The network has picked some of the samples, or merged axes. The weight is the same for all of them.
            args = tuple([one_for_all(value) for value in args])
            return shared(func, args, {name: one_for_all(value) for name, value in kwargs.items()}, proxies)
    where = f"layer {first.slot.layer or first.slot.name!r}, function {getattr(func, '__name__', str(func))!r}"
    handler = HANDLERS.get(func)
    if handler is not None:
        return handler(batch, where, *args, **kwargs)
    return fallback.call(batch, where, func, args, kwargs, lambda value: DerivedProxy(first, value))


def one_for_all(value: Any) -> Any:
    """A weight that has the same row for every sample, as one tensor; anything else as it is."""
    if not isinstance(value, WeightExpression):
        return value
    first = torch.zeros(1, dtype=torch.long, device=value.base.device)
    return value.take(first).materialise()[0]


def shared(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], proxies: list[WeightProxy]) -> Any:
    """The function itself, with one weight for the batch, and with padding for a kernel that has grown."""
    grown = next((proxy for proxy in proxies if proxy.slot.growable), None)
    if grown is not None and func in WIDENED:
        return func(**with_room(func, args, kwargs, grown.slot))
    return func(*args, **kwargs)


def resolve(value: Any, proxies: list[WeightProxy]) -> Any:
    """An argument with the weights that its proxies stand for, also in lists and tuples.

    The proxies are added to `proxies`, in order.
    """
    if isinstance(value, WeightProxy):
        proxies.append(value)
        return value.operand()
    kind = type(value)
    if (kind is tuple or kind is list) and value and type(value[0]) is not int:  # a stride, say
        return kind([resolve(item, proxies) for item in value])
    return value

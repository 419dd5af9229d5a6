"""The weights of a call: W(θ) of every slot, as far as it is made before the base runs.

With one θ per sample each weight is an expression. Under a shared θ it is a tensor, with two exceptions: a large weight
that one function reads is materialised when it is read, and a weight whose layer has little input may never be, because
applying its terms to the activations is cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..execution import LazyWeights, Weight, factored_pays_when_shared
from ..layers import LayerSize, current, full_precision
from ..parameters import Theta
from ..slots import Slot
from ..terms import WeightExpression, materialise_vectors

if TYPE_CHECKING:
    from .call import Call
    from .conditioned import Conditioned

__all__ = ["at_anchor", "call_weights", "factored_when_shared", "lazy_slots", "shared_weights"]


def call_weights(model: Conditioned, call: Call) -> LazyWeights:
    """The weights of a call, and how each can be made again from θ and the transform's parameters.

    Raises:
        NoGradientError, TransformError: if a transform gave a weight that cannot be trained, or is not finite.
    """
    device, theta = model.view.device, call.theta

    def rebuild(name: str) -> Weight:
        with full_precision(device):
            return _rebuilt(model, name, theta)

    constant = model.route == "constant"
    if call.code.dim() == 1 and not call.grad and not constant and at_anchor(model, call.code):
        # Equal to W(θ0) to the bit, but for zeros around grown kernels.
        return LazyWeights(model.base.frozen, rebuild, call.grad)
    with full_precision(device):
        expressions = model.transform.expressions(list(model.slots.values()), model.base.frozen, call.code)
        if call.grad and not call.traced:
            model.transform.check(expressions)
        weights: Mapping[str, Weight] = expressions
        if call.code.dim() == 1 and constant and call.shared_batch is not None:
            weights = {name: e.expand_batch(call.shared_batch.size) for name, e in expressions.items()}
        elif call.code.dim() == 1:
            lazy: Collection[str] = () if call.grad or call.traced else model.base.lazy
            inspection, batch = model.spec.inspection, call.shared_batch
            if inspection is None or batch is None:
                weights = shared_weights(expressions, lazy)
            else:
                weights = shared_weights(expressions, lazy, inspection.positions, batch.size)
    return LazyWeights(weights, rebuild, call.grad)


def _rebuilt(model: Conditioned, name: str, theta: Theta) -> Weight:
    expression = model.expression(name, model.space.encode(theta).to(model.dtype))
    return expression if expression.batch else expression.materialise()


def at_anchor(model: Conditioned, code: Tensor) -> bool:
    """Is W(θ) known to be W? Values are looked at on a CPU only; elsewhere that would wait for the device."""
    known = model.anchored and code.device.type == "cpu" and not torch.compiler.is_compiling()
    return known and bool((code == code.new_tensor(model.space.anchor_code)).all())


def lazy_slots(slots: Mapping[str, Slot], reads: Mapping[str, int]) -> frozenset[str]:
    """Slots with a large weight that one function reads. It can be materialised then, and freed after it.

    Args:
        slots: the slots by name.
        reads: by slot name, how many functions read the tensor.

    Example:
        >>> slots = {name: Slot.of((300, 300), name) for name in ("once", "twice")}
        >>> sorted(lazy_slots(slots, {"once": 1, "twice": 2}))
        ['once']
    """
    large = current().lazy_weight
    return frozenset(n for n, s in slots.items() if reads.get(n) == 1 and math.prod(s.shape) >= large)


def factored_when_shared(
    expressions: Mapping[str, WeightExpression], positions: Mapping[str, int], batch: int
) -> frozenset[str]:
    """Slots whose layers have so little input that applying the terms to it is cheaper than materialising the weight.

    Args:
        expressions: W(θ) under a shared θ, by slot name.
        positions: output positions per sample, by slot name.
        batch: number of samples.
    """
    return frozenset(
        name
        for name, e in expressions.items()
        if positions.get(name)
        and factored_pays_when_shared(e.kinds, LayerSize.of(e.slot, positions[name], e.grow, batch))
    )


def shared_weights(
    expressions: Mapping[str, WeightExpression],
    lazy: Collection[str] = (),
    positions: Mapping[str, int] = MappingProxyType({}),
    batch: int | None = None,
) -> dict[str, Weight]:
    """W(θ) of every slot under a shared θ.

    Args:
        expressions: W(θ) by slot name.
        lazy: slots to leave as they are, so that the function that reads one materialises it.
        positions: output positions per sample, by slot name.
        batch: number of samples. Where applying the terms to so few activations is cheaper, the weight becomes an
            expression with one and the same row per sample. None rules that out.
    """
    factored: Collection[str] = () if batch is None else factored_when_shared(expressions, positions, batch)
    weights: dict[str, Weight] = {**materialise_vectors(expressions)}
    for name, expression in expressions.items():
        if name in weights:
            continue
        if batch is not None and name in factored:
            weights[name] = expression.expand_batch(batch)
        else:
            weights[name] = expression if name in lazy else expression.materialise()
    return weights

"""A call as a value: everything that is known before a weight is made, bound from the arguments and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base import View
from ..errors import BatchSizeError, ExecutionError, ParameterLengthError, UnknownParameterError, near
from ..execution import Batch, Observer, WeightProxy
from ..layers import current, full_precision
from ..parameters import ParameterSpace, Theta, Value
from ..slots import Slot
from .estimate import asked, estimate

if TYPE_CHECKING:
    from .conditioned import Conditioned

__all__ = ["Call", "batch_size", "bind", "distinct_settings", "refuse_weights"]


@dataclass(frozen=True)
class Call:
    """One call of a conditioned model: everything that is known before a weight is made. It never changes.

    Attributes:
        args: the base's positional inputs.
        inputs: its keyword inputs.
        theta: what weights are made for: one setting `()`, one per sample `(B,)`, or the few distinct ones `(S,)`.
        code: its code, `(K,)`, `(B, K)` or `(S, K)`.
        batch: of a call with one θ per sample; None where θ is shared.
        shared_batch: of a call with a shared θ whose terms may be applied to the activations; None elsewhere.
        grad: are gradients enabled?
        traced: is the call being compiled or exported, so that nothing may depend on values?
    """

    args: tuple[Any, ...]
    inputs: Mapping[str, Any]
    theta: Theta
    code: Tensor
    batch: Batch | None
    shared_batch: Batch | None
    grad: bool
    traced: bool


def bind(
    model: Conditioned, args: tuple[Any, ...], kwargs: Mapping[str, Any], observer: Observer | None = None
) -> Call:
    """Check the arguments of a model's call, and bring θ to the form in which weights are made for it.

    Args:
        model: the conditioned model.
        args: the base's positional inputs.
        kwargs: its keyword inputs, and θ.
        observer: sees each layer with one θ per sample, and its route.

    Raises:
        ParameterError: if θ is missing, unknown, of the wrong length, or not finite.
        BatchSizeError: for one θ per sample, if a conditioned layer's input does not have the batch first.
    """
    traced, device, dtype = torch.compiler.is_compiling(), model.view.device, model.dtype
    given, inputs = _split(kwargs, model.space, model.view)
    unknown = asked(model.space, given)
    if unknown:
        given |= estimate(model.estimator, model.view.clone(), unknown, args, inputs, traced)
    theta = model.space.prepare(given, device=device, dtype=dtype, check=not traced)
    # A tensor without axes, such as a time step, is no batch.
    shape = next((v.shape for v in (*args, *inputs.values()) if isinstance(v, Tensor) and v.dim()), None)
    samples, index = batch_size(theta), None
    if samples is not None:
        _refuse_other_length(model.space, samples, shape)
        _refuse_merged(model.slots, model.spec.merged)
        if not traced:
            theta, index = _settings(theta, samples, model.base.independent)
    with full_precision(device):
        code = model.space.encode(theta).to(dtype)
    batch = shared_batch = None
    if samples is not None and code.dim() > 1:
        batch = _batch(model, samples, observer)
        batch = batch if index is None else batch.by_setting(index, len(code))
    elif shape and (model.route == "constant" or (not traced and _as_inspected(model, shape))):
        shared_batch = _batch(model, shape[0], observer)
    return Call(args, inputs, theta, code, batch, shared_batch, torch.is_grad_enabled(), traced)


def _batch(model: Conditioned, size: int, observer: Observer | None) -> Batch:
    return Batch(
        size, memory_limit=model.memory_limit, probed=model.spec.merged is not None, plans=model.spec.plans,
        observer=observer, route=model.route,
    )  # fmt: skip


def _as_inspected(model: Conditioned, shape: Sequence[int]) -> bool:
    """Has an input the example's shape, on a CPU, so that what was inspected and fitted holds for it?"""
    inspection, on_cpu = model.spec.inspection, model.device.type == "cpu"
    return on_cpu and inspection is not None and tuple(shape[1:]) == inspection.shape and not model.spec.merged


def _split(kwargs: Mapping[str, Any], space: ParameterSpace, view: View) -> tuple[dict[str, Value], dict[str, Any]]:
    """θ, and the base's own keyword inputs.

    Raises:
        UnknownParameterError: for a keyword that is neither.
    """
    theta: dict[str, Value] = {name: kwargs[name] for name in space if name in kwargs}
    inputs = {name: value for name, value in kwargs.items() if name not in theta}
    unknown = [name for name in inputs if not view.accepts(name)]
    if unknown:
        raise UnknownParameterError(
            f"unexpected keyword {unknown[0]!r}: the model is conditioned on {', '.join(space)}, and the base takes "
            f"{', '.join(view.keywords)}{near(unknown[0], space)}"
        )
    return theta, inputs


def batch_size(theta: Theta) -> int | None:
    """B, or None where θ is shared."""
    value = next(iter(theta.values()))
    return value.shape[0] if value.dim() else None


def distinct_settings(theta: Theta, size: int) -> tuple[Theta, Tensor | None]:
    """The distinct settings and each sample's index, where few are distinct and counting them needs no synchronisation.

    Elsewhere θ as it is, and no index.
    """
    values, least = list(theta.values()), current().samples_per_setting
    if values[0].device.type != "cpu" or size < least or any(v.requires_grad for v in values):
        return theta, None
    # Mostly all settings are distinct. One parameter alone shows that in a tenth of the time of all together.
    if any(len(torch.unique(v)) * least > size for v in values):
        return theta, None
    settings, index = torch.unique(torch.stack(values, -1), dim=0, return_inverse=True)
    if len(settings) * least > size:
        return theta, None
    return dict(zip(theta, settings.unbind(-1), strict=True)), index


def _settings(theta: Theta, samples: int, independent: bool) -> tuple[Theta, Tensor | None]:
    """The settings to make weights for, and each sample's index. One setting alone is a shared θ."""
    settings, index = distinct_settings(theta, samples)
    if independent and batch_size(settings) == 1:
        return {name: value[0] for name, value in settings.items()}, None
    return settings, index


def _refuse_other_length(space: ParameterSpace, samples: int, shape: Sequence[int] | None) -> None:
    """One θ per sample needs as many values as the first input has samples."""
    if shape is not None and shape[0] != samples:
        raise ParameterLengthError(
            f"{', '.join(space)}: expected one value for the batch, or one for each of its {shape[0]} samples, got "
            f"{samples} values"
        )


def _refuse_merged(slots: Mapping[str, Slot], merged: Sequence[str] | None) -> None:
    """One θ per sample needs the batch first in every conditioned layer."""
    if merged:
        raise BatchSizeError(
            f"layer {slots[merged[0]].layer!r} reads an input whose first axis is not the batch "
            f"(seen with the example at two batch sizes; {len(merged)} such tensors), so it cannot have one θ "
            "per sample. Give one θ for the whole batch, or deselect it with select="
        )


def refuse_weights(output: Any) -> Any:
    """The output, which must not hold a weight: a weight would carry a hidden batch axis."""
    if isinstance(output, WeightProxy):
        raise ExecutionError(f"the base returns {output!r}, a weight; read it with model.weights(…)")
    for item in output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ():
        refuse_weights(item)
    return output

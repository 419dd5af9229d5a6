"""The check, after the first backward pass, that every trainable tensor got a gradient."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn

from ..errors import ConditioningWarning, NoGradientError
from ..model import Conditioned

__all__ = ["check_gradients"]

CAUSES = (
    "The likely causes are .data, torch.no_grad(), .detach() or nn.Parameter(output) on the way from it to the weight, "
    "or a forward that does not use it; return the computed tensor itself, or freeze what is not to be trained with "
    "requires_grad_(False)"
)


def check_gradients(model: Conditioned) -> None:
    """Refuse a transform of which a part got no gradient.

    A gradient of zero is fine, because behind a layer that starts at zero there can be no other. But if all gradients
    of one layer are zero or missing while others are not, then the network's forward does not read that layer, or does
    not differentiate it: a warning. (The coefficients of all layers are computed in one batch, so such a layer may get
    zeros instead of nothing.)

    Args:
        model: the conditioned model, after a backward pass.

    Raises:
        NoGradientError: naming layer, family and tensors; also if no layer got a gradient.

    Warns:
        ConditioningWarning: naming the layers that got no gradient.
    """
    untouched: list[str] = []
    reached: list[str] = []
    partial: dict[str, list[str]] = {}
    reading = {name for name, slot in model.slots.items() if _any_gradient(model.transform.of(slot))}
    for name, slot in model.slots.items():
        lost: dict[str, list[str]] = {}
        count = 0
        for transform in model.transform.of(slot):
            inner = getattr(transform, "module", None)
            kind = type(transform).__name__ + (f"({type(inner).__name__})" if inner is not None else "")
            for key, parameter in transform.named_parameters():
                if parameter.requires_grad:
                    count += 1
                    if parameter.grad is None:
                        lost.setdefault(kind, []).append(key)
        missing = sum(map(len, lost.values()))
        unread = missing == count or (bool(reading) and name not in reading)
        if count:
            (untouched if unread else reached).append(name)
        if not unread and missing:
            for kind, keys in lost.items():
                partial[f"layer {slot.layer or name!r}: {kind}"] = keys
    if partial:
        (where, keys), *more = partial.items()
        others = f" (and so in {len(more)} more)" if more else ""
        raise NoGradientError(
            f"{where} was given no gradient for {_list(keys)}{others}, though others of this layer were. {CAUSES}"
        )
    if untouched and not reached:
        raise NoGradientError(
            f"no trainable tensor was given a gradient ({_list(untouched)}): the loss does not depend on the weights. "
            "Look for .detach(), .data or torch.no_grad() in the network's forward or in the objective"
        )
    if untouched:
        warnings.warn(
            f"no gradient came back to {_list(untouched)}: the network's forward does not read these weights, or not "
            "differentiably, so conditioning them changes nothing; deselect them with select=, or give condition() an "
            "example=",
            ConditioningWarning,
            stacklevel=2,
        )


def _any_gradient(transforms: Iterable[nn.Module]) -> bool:
    """Whether any parameter got a gradient that is not zero."""
    grads = [p.grad for t in transforms for p in t.parameters() if p.grad is not None]
    return any(bool(grad.any()) for grad in grads)


def _list(names: list[str]) -> str:
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "")

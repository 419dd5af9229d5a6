"""Did every trainable tensor get a gradient? Looked at once, after the first backward."""

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

    A gradient that is there and zero is fine: behind a head that starts at zero there can be no other. A layer of which
    nothing got a gradient but zeros, while others did, is one that the network's forward does not read, or does not
    differentiate: a warning. (The code side of all layers is made together, so that zeros come back to such a layer.)

    Raises:
        NoGradientError: naming layer, family and tensors; also if no layer got any.

    Warns:
        ConditioningWarning: naming the layers that nothing comes back from.
    """
    untouched: list[str] = []
    reached: list[str] = []
    partial: dict[str, list[str]] = {}
    moved = {name for name, slot in model.slots.items() if _moved(model.transform.of(slot))}
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
        unread = missing == count or (bool(moved) and name not in moved)
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


def _moved(transforms: Iterable[nn.Module]) -> bool:
    """Did anything of a slot get a gradient that is not zero?"""
    grads = [p.grad for t in transforms for p in t.parameters() if p.grad is not None]
    return any(bool(grad.any()) for grad in grads)


def _list(names: list[str]) -> str:
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "")

"""Weights put into a plain copy of the network, and what a layer has to be told whose kernel has grown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from ..layers import Convolution, each
from ..slots import Grow, Slot

__all__ = ["TOLD", "place", "tell"]

TOLD = ("kernel_size", "padding", "padding_mode", "_reversed_padding_repeated_twice")
"""What `tell` says to a layer."""


def place(root: nn.Module, slots: Mapping[str, Slot], values: Mapping[str, Tensor]) -> None:
    """Put weights into a copy of the network, at every name that each tensor has."""
    modules = dict(root.named_modules(remove_duplicate=False))
    for name, slot in slots.items():
        module = modules[slot.layer]
        old = cast(nn.Parameter, module._parameters[slot.attribute])
        new = nn.Parameter(values[name].detach().clone(), requires_grad=old.requires_grad)
        extra = [n - k for n, k in zip(new.shape[2:], slot.kernel, strict=False)] if slot.growable else []
        for other in modules.values():
            for attribute, value in list(other._parameters.items()):
                if value is old:
                    other._parameters[attribute] = new
                    if any(extra):
                        tell(other, slot, slot.sides(extra))


def tell(layer: Any, slot: Slot, grow: Grow) -> None:
    """Tell a convolution that its kernel has grown.

    As much more on both sides is a larger `padding`. A layer of torch's own pads each side by an amount of its own if
    its `padding_mode` is not `"zeros"` but what `torch.nn.functional.pad` calls the same, `"constant"`.
    """
    n = slot.spatial
    own = layer.padding if isinstance(layer.padding, str) else each(layer.padding, n)
    call = Convolution(n, each(layer.stride, n), own, each(layer.dilation, n), layer.groups)
    pads = call.pads(slot.kernel, grow)
    layer.kernel_size = slot.grown(grow)
    if layer.padding == "same" and all(before == after for before, after in grow):
        return
    layer.padding = tuple(before for before, _ in pads)
    layer._reversed_padding_repeated_twice = [side for pair in reversed(pads) for side in pair]
    if any(before != after for before, after in pads):
        layer.padding_mode = "constant"

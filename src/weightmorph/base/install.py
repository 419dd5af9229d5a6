"""Install weights in a plain copy of the network, and update the geometry of layers whose kernels have grown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from ..layers import Convolution, each
from ..slots import Grow, Slot

__all__ = ["GEOMETRY", "install", "set_kernel_geometry"]

GEOMETRY = ("kernel_size", "padding", "padding_mode", "_reversed_padding_repeated_twice")
"""The attributes of a layer that `set_kernel_geometry` sets."""


def install(root: nn.Module, slots: Mapping[str, Slot], weights: Mapping[str, Tensor]) -> None:
    """Put weights into a copy of the network, at every name that each tensor has."""
    modules = dict(root.named_modules(remove_duplicate=False))
    for name, slot in slots.items():
        old = cast(nn.Parameter, modules[slot.layer]._parameters[slot.attribute])
        new = nn.Parameter(weights[name].detach().clone(), requires_grad=old.requires_grad)
        extra = [n - k for n, k in zip(new.shape[2:], slot.kernel, strict=False)] if slot.growable else []
        for module in modules.values():
            for attribute, value in list(module._parameters.items()):
                if value is old:
                    module._parameters[attribute] = new
                    if any(extra):
                        set_kernel_geometry(module, slot, slot.sides(extra))


def set_kernel_geometry(layer: Any, slot: Slot, grow: Grow) -> None:
    """Update a convolution whose kernel has grown: its `kernel_size` and its padding.

    Equal growth on both sides is a larger `padding`. For unequal growth a layer of torch has to pad each side by an
    amount of its own. It does so if its `padding_mode` is not `"zeros"`; `torch.nn.functional.pad` calls the same
    `"constant"`.
    """
    n = slot.spatial
    padding = layer.padding if isinstance(layer.padding, str) else each(layer.padding, n)
    call = Convolution(n, each(layer.stride, n), padding, each(layer.dilation, n), layer.groups)
    pads = call.pads(slot.kernel, grow)
    layer.kernel_size = slot.grown(grow)
    if layer.padding == "same" and all(before == after for before, after in grow):
        return
    layer.padding = tuple(before for before, _ in pads)
    layer._reversed_padding_repeated_twice = [side for pair in reversed(pads) for side in pair]
    if any(before != after for before, after in pads):
        layer.padding_mode = "constant"

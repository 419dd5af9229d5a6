"""Weights put into a plain copy of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from ..slots import Slot

__all__ = ["place"]


def place(root: nn.Module, slots: Mapping[str, Slot], values: Mapping[str, Tensor]) -> None:
    """Put weights into a copy of the network, at every name that each tensor has."""
    modules = dict(root.named_modules(remove_duplicate=False))
    for name, slot in slots.items():
        module = modules[slot.layer]
        old = cast(nn.Parameter, module._parameters[slot.attribute])
        new = nn.Parameter(values[name].detach().clone(), requires_grad=old.requires_grad)
        grow = [(n - k) // 2 for n, k in zip(new.shape[2:], slot.kernel, strict=False)] if slot.growable else []
        for other in modules.values():
            for attribute, value in list(other._parameters.items()):
                if value is old:
                    other._parameters[attribute] = new
                    if any(grow):
                        _widen(cast(nn.modules.conv._ConvNd, other), grow)


def _widen(layer: nn.modules.conv._ConvNd, grow: Sequence[int]) -> None:
    """Tell a convolution that its kernel has grown."""
    layer.kernel_size = tuple(k + 2 * n for k, n in zip(layer.kernel_size, grow, strict=True))
    if layer.padding != "same":
        own = (0,) * len(grow) if isinstance(layer.padding, str) else layer.padding
        layer.padding = tuple(p + n * d for p, n, d in zip(own, grow, layer.dilation, strict=True))
        layer._reversed_padding_repeated_twice = [p for p in reversed(layer.padding) for _ in (0, 1)]

"""Taps: the layers of the base at which an estimator reads features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..slots import Slot

__all__ = ["Tap", "choose_taps", "probe"]

POSITIONS = 64
"""A map with fewer positions is too coarse to show where things are."""

POOLED: Mapping[int, int] = {1: 49, 2: 7, 3: 4}
"""Number of spatial axes to cells along each of them after pooling."""


@dataclass(frozen=True)
class Tap:
    """One tensor from which features are read: the output of a layer of the base, or the base's input.

    Attributes:
        layer: the layer's dotted name; `""` for the base's first input.
        channels: channels of the tensor.
        grid: cells of the map along each axis after pooling; empty for a vector.
        last: whether the channels are the last axis, as behind a `Linear`, and not the second.

    Example:
        >>> tap = Tap.on("conv", torch.zeros(2, 8, 28, 28))
        >>> tap, tap.pooled(torch.zeros(2, 8, 28, 28)).shape
        (Tap(layer='conv', channels=8, grid=(7, 7), last=False), torch.Size([2, 8, 49]))
    """

    layer: str
    channels: int
    grid: tuple[int, ...] = ()
    last: bool = False

    @classmethod
    def on(cls, layer: str, seen: Tensor, last: bool = False) -> Tap:
        """The tap that fits a tensor `(B, C, *positions)`, `(B, *positions, C)` with `last`, or `(B, F)`.

        Raises:
            InputError: if the tensor holds no floating-point features, or has more than three spatial axes.
        """
        if seen.dim() < 2 or not seen.is_floating_point():
            raise InputError(
                f"layer {layer!r}: expected an output (B, …) of floating-point numbers to estimate θ from, got shape "
                f"{tuple(seen.shape)} of {seen.dtype}; name other layers"
            )
        extents = seen.shape[1:-1] if last else seen.shape[2:]
        if last and len(extents) > 1:  # positions behind a Linear are read as one row
            extents = torch.Size([math.prod(extents)])
        if len(extents) not in (0, *POOLED):
            raise InputError(f"layer {layer!r}: a map of {len(extents)} axes cannot be pooled; name other layers")
        grid = tuple(min(n, POOLED[len(extents)]) for n in extents)
        return cls(layer, seen.shape[-1] if last else seen.shape[1], grid, last)

    def pooled(self, seen: Tensor) -> Tensor:
        """The mean of each cell of a tensor, `(B, C, cells)`; of a vector `(B, C, 1)`."""
        seen = seen.movedim(-1, 1) if self.last else seen
        if not self.grid:
            return seen.reshape(len(seen), self.channels, 1)
        pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(self.grid) - 1]
        cells: Tensor = pool(seen.flatten(2) if len(self.grid) == 1 else seen, self.grid)
        return cells.flatten(2)


class _Enough(Exception):
    """Every layer that was asked for has run, so the rest of the base need not."""


def choose_taps(
    root: nn.Module,
    slots: Mapping[str, Slot],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    layers: Sequence[str] | None = None,
) -> list[Tap]:
    """The taps of an estimator on a base.

    Args:
        root: a clone of the frozen base.
        slots: the conditioned tensors.
        args: the base's positional inputs, a typical batch.
        kwargs: its keyword inputs.
        layers: dotted names of the layers to read; unless given, the last conditioned convolution whose map has 64
            positions or more, or else the input and the first conditioned layer.

    Raises:
        InputError: for a layer that does not exist or gives nothing to read.
    """
    if layers is None:
        layers = _default_layers(root, slots, args, kwargs)
    modules = dict(root.named_modules(remove_duplicate=False))
    linear = {slot.layer for slot in slots.values() if slot.kind == "linear"}
    outputs = probe(root, layers, args, kwargs)
    last = {name: name in linear or isinstance(modules.get(name), nn.Linear) for name in layers}
    return [Tap.on(name, outputs[name], last[name] and outputs[name].dim() > 2) for name in layers]


def _default_layers(
    root: nn.Module, slots: Mapping[str, Slot], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """The last conditioned convolution with a large enough map, or the input and the first conditioned layer."""
    weights = [slot for slot in slots.values() if slot.kind in ("conv", "conv_transpose", "linear")]
    names = list(dict.fromkeys(slot.layer for slot in weights or slots.values()))
    outputs = probe(root, names, args, kwargs, finish=True)
    maps = {slot.layer for slot in weights if slot.kind != "linear"}
    large = [name for name, output in outputs.items() if name in maps and math.prod(output.shape[2:]) >= POSITIONS]
    if large:
        return [large[-1]]
    return ["", next(iter(outputs))] if outputs else [""]


def probe(
    root: nn.Module,
    layers: Sequence[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    finish: bool = False,
) -> dict[str, Tensor]:
    """The first output of each named layer, by name, in the order in which the layers run.

    Args:
        root: a clone of the base. It gets forward hooks for the time of the call, and its forward is left as soon as
            every named layer has run.
        layers: dotted names; `""` is the first tensor among the base's inputs.
        args: the base's positional inputs.
        kwargs: its keyword inputs.
        finish: run the base to its end; layers that never run are then left out.

    Raises:
        InputError: for a layer that does not exist, or that the base's forward does not run.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> probe(net, ["0"], (torch.zeros(2, 2, 2),), {})["0"].shape
        torch.Size([2, 4])
    """
    modules = dict(root.named_modules(remove_duplicate=False))
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise InputError(f"layers: the base has no layer {unknown[0]!r}; it has {', '.join([*modules][1:9])} …")
    seen: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, list | tuple) and output else output
        if name not in seen and isinstance(first, Tensor):
            seen[name] = first
            if not finish and len(seen) == len(layers):
                raise _Enough

    hooks = [
        modules[name].register_forward_hook(lambda module, given, output, name=name: keep(name, output))
        for name in layers
        if name
    ]
    try:
        if "" in layers:
            keep("", next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None))
        root(*args, **kwargs)
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in layers if name not in seen]
    if missing and not finish:
        raise InputError(f"layer {missing[0]!r} gave no tensor on the base's way from input to output; name another")
    return seen

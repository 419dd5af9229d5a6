"""Where features of the base are read, and the reading."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["Tap", "probe"]

POOLED: Mapping[int, int] = {1: 49, 2: 7, 3: 4}
"""Cells along each axis of a map of so many axes, after pooling."""


@dataclass(frozen=True)
class Tap:
    """Where features are read: the output of a layer of the base, or what goes into the base.

    Attributes:
        layer: its dotted name; `""` for the base's first input.
        channels: of that tensor.
        grid: cells of the map after pooling; empty for a vector.
        last: the channels are the last axis, as behind a `Linear`, and not the second.
    """

    layer: str
    channels: int
    grid: tuple[int, ...] = ()
    last: bool = False

    @classmethod
    def on(cls, layer: str, seen: Tensor, last: bool = False) -> Tap:
        """For a tensor `(B, C, *positions)`, `(B, *positions, C)` or `(B, F)` that was seen there."""
        if seen.dim() < 2 or not seen.is_floating_point():
            raise InputError(
                f"layer {layer!r}: expected an output (B, …) of floating-point numbers to estimate θ from, got shape "
                f"{tuple(seen.shape)} of {seen.dtype}; name other layers"
            )
        extents = seen.shape[1:-1] if last else seen.shape[2:]
        if last and len(extents) > 1:  # positions behind a Linear are taken as one row of them
            extents = torch.Size([math.prod(extents)])
        if len(extents) not in (0, *POOLED):
            raise InputError(f"layer {layer!r}: a map of {len(extents)} axes cannot be pooled; name other layers")
        grid = tuple(min(n, POOLED[len(extents)]) for n in extents)
        return cls(layer, seen.shape[-1] if last else seen.shape[1], grid, last)

    def pooled(self, seen: Tensor) -> Tensor:
        """`(B, C, cells)` of what was seen, the mean of each cell; `(B, C, 1)` of a vector."""
        seen = seen.movedim(-1, 1) if self.last else seen
        if not self.grid:
            return seen.reshape(len(seen), self.channels, 1)
        pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(self.grid) - 1]
        cells: Tensor = pool(seen.flatten(2) if len(self.grid) == 1 else seen, self.grid)
        return cells.flatten(2)


class _Enough(Exception):
    """All has been seen that was asked for: what follows in the base need not run."""


def probe(
    root: nn.Module, layers: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, whole: bool = False
) -> dict[str, Tensor]:
    """The first output of each named layer, in the order in which they come.

    Args:
        root: a clone of the base, which is hooked and, unless `whole`, left as soon as all has been seen.
        layers: dotted names; `""` is the first tensor that goes into the base.
        args: the base's positional inputs.
        kwargs: its keyword inputs.
        whole: run the base to its end.

    Raises:
        InputError: for a layer that is not there.
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
            if not whole and len(seen) == len(layers):
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
    if missing and not whole:
        raise InputError(f"layer {missing[0]!r} gave no tensor on the base's way from input to output; name another")
    return seen

"""The geometry of a base, learned by running it once on an example.

A layer does not know what it reads. Where the taps of a convolution lie depends on the extents of its input and output
and on the pools and paddings before it; a `Linear` may read a flattened map; a tensor may not be read at all.
[`inspect_base`][weightmorph.base.inspect.inspect_base] runs a clone in a recorder, which follows each map's grid of
pixels from function to function, and notes for each slot how its tensor is used.
[`merged_slots`][weightmorph.base.inspect.merged_slots] runs two batch sizes to see which layers have the batch first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SelectionError
from ..layers.convolution import each
from ..slots import Slot
from .recorder import CONVOLUTIONS, FunctionCall, UsageRecorder

__all__ = ["Inspection", "Usage", "as_call", "inspect_base", "merged_slots"]

FLATTENING = frozenset("flatten reshape view".split())
POOLS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    f"{kind}_pool{n}d{suffix}": (n, order)
    for n in (1, 2, 3)
    for kind, suffix, order in (
        ("max", "", ("input", "kernel_size", "stride", "padding", "dilation")),
        ("max", "_with_indices", ("input", "kernel_size", "stride", "padding", "dilation")),
        ("avg", "", ("input", "kernel_size", "stride", "padding")),
        ("lp", "", ("input", "norm_type", "kernel_size", "stride")),
    )
}
"""Pools with their number of spatial axes and the names of their positional arguments."""

NORMS = frozenset("batch_norm instance_norm group_norm".split())
JOINING = frozenset("cat concat concatenate".split())
# After one of these functions a flattened map is no longer one.
MIXING = frozenset("linear matmul __matmul__ mm bmm addmm einsum softmax cumsum layer_norm".split())


@dataclass(frozen=True)
class Usage:
    """How the base used one slot's tensor when it ran on the example.

    Attributes:
        reads: number of functions that read the tensor.
        batch: length of the first axis of the input beside it; None if there was no such input.
        positions: output positions per sample of a convolution or a linear layer; None for other tensors.
        taps: position of every tap along each spatial axis, as in [`Slot`][weightmorph.slots.Slot].
        extent: of the flattened map that a `Linear` reads; empty for all others.
        pixel: how many pixels of the network's input one pixel of that map spans.
        growable: the layer's forward reads its own `padding`, so its kernel may be given a larger support.
        normed: only a norm layer whose scale is conditioned reads the layer's output.
    """

    reads: int = 0
    batch: int | None = None
    positions: int | None = None
    taps: tuple[tuple[float, ...], ...] = ()
    extent: tuple[int, ...] = ()
    pixel: float = 1.0
    growable: bool = False
    normed: bool = False


@dataclass(frozen=True)
class Inspection:
    """What running an example showed of a base.

    Attributes:
        usages: by slot name, those that were read in the order of their first read.
        shape: of one sample of the example's first tensor.
    """

    usages: Mapping[str, Usage] = field(default_factory=dict)
    shape: tuple[int, ...] = ()

    @classmethod
    def of_positions(cls, positions: Mapping[str, int]) -> Inspection:
        """The part of an inspection that a file holds.

        Example:
            >>> Inspection.of_positions({"conv.weight": 49}).positions
            {'conv.weight': 49}
        """
        return cls({name: Usage(positions=number) for name, number in positions.items()})

    @cached_property
    def positions(self) -> dict[str, int]:
        """Output positions by slot name, of convolutions and linear layers."""
        return {name: usage.positions for name, usage in self.usages.items() if usage.positions is not None}

    @cached_property
    def reads(self) -> dict[str, int]:
        """By slot name, the number of functions that read the tensor."""
        return {name: usage.reads for name, usage in self.usages.items()}

    def apply(self, slot: Slot) -> Slot:
        """The slot with the geometry that the example showed."""
        usage = self.usages.get(slot.name, Usage())
        if usage.extent:
            slot = slot.as_map(usage.extent, pixel=usage.pixel)
        return replace(slot, taps=usage.taps or slot.taps, growable=usage.growable, normed=usage.normed)


@dataclass(frozen=True)
class _Grid:
    """Where a map's pixels lie: how far its centre is from the image's, along each axis, in its own pixels.

    A convolution's output is centred by definition, because its taps are turned about the point its grid's centre rests
    on. A pool that drops a row, or a padding on one side, moves the centre of what comes after it.
    """

    extents: tuple[int, ...]
    offsets: tuple[float, ...]
    flat: bool = False


class _GeometryRecorder(UsageRecorder):
    """Records the geometry of every function that reads a slot's tensor, and follows the grids from map to map."""

    def __init__(self, slots: Mapping[int, Slot], inputs: Sequence[Tensor], layers: Mapping[str, nn.Module]) -> None:
        super().__init__({key: s.layer for key, s in slots.items() if s.kind in ("conv", "conv_transpose")})
        self.slots, self.inputs, self.modules = slots, inputs, layers
        self.width = next((v.shape[-1] for v in inputs if v.dim() > 2), 1)
        self.usages: dict[str, Usage] = {slot.name: Usage() for slot in slots.values()}
        # Grids by tensor; the tensors are kept so that their ids stay theirs.
        self.grids: dict[int, tuple[Tensor, _Grid]] = {}

    def record(self, call: FunctionCall) -> None:
        out = call.output[0] if isinstance(call.output, tuple) and call.output else call.output
        tensors = call.tensors
        if not isinstance(out, Tensor) or not tensors or call.metadata:
            return
        x = tensors[0]
        for slot in [self.slots[id(t)] for t in tensors if id(t) in self.slots]:
            usage = self.usages[slot.name]
            if x.dim() > 1 and id(x) not in self.slots and usage.batch is None:
                usage = replace(usage, batch=x.shape[0])
            if call.name in CONVOLUTIONS and slot.kind in ("conv", "conv_transpose"):
                self._refuse_unbatched(slot, x)
                if x.dim() == slot.spatial + 2:
                    usage = self._convolution(usage, slot, x, out, call)
            elif call.name == "linear" and slot.kind == "linear":
                usage = self._linear(usage, x, out)
            self.usages[slot.name] = usage
        self._follow(call, tensors, out)

    def inspection(self, shape: tuple[int, ...]) -> Inspection:
        """What was recorded."""
        usages: dict[str, Usage] = {}
        for key in dict.fromkeys((*self.reads, *self.slots)):
            if key in self.slots:
                slot = self.slots[key]
                normed = self._normed(slot.layer)
                usages[slot.name] = replace(self.usages[slot.name], reads=self.reads.get(key, 0), normed=normed)
        return Inspection(usages, shape)

    def _refuse_unbatched(self, slot: Slot, x: Tensor) -> None:
        """Refuse an example that a convolution reads as one sample. Later maps without a batch axis are allowed."""
        if x.dim() == slot.spatial + 1 and any(x is v for v in self.inputs):
            raise SelectionError(
                f"layer {slot.layer!r}: expected an example with a batch axis, of {slot.spatial + 2} axes, got one of "
                f"shape {tuple(x.shape)}; give example=x[None]"
            )

    def _normed(self, layer: str) -> bool:
        """Does a norm layer whose scale is conditioned read the layer's output, and nothing else?"""
        readers = self.readers.get(layer, [])
        if len(readers) != 1 or readers[0].function not in NORMS:
            return False
        return any(self.slots[key].kind == "norm" for key in readers[0].tensors if key in self.slots)

    def _grid(self, x: Tensor) -> _Grid:
        if id(x) in self.grids:
            return self.grids[id(x)][1]
        return _Grid(tuple(x.shape[2:]), (0.0,) * max(x.dim() - 2, 0))

    def _follow(self, call: FunctionCall, tensors: Sequence[Tensor], out: Tensor) -> None:
        """Note the grid of a function's output."""
        x = tensors[0]
        grid = self._grid(x)
        n = len(grid.extents)
        if call.name in CONVOLUTIONS or call.name in MIXING or n == 0:
            return
        if call.name in FLATTENING and not grid.flat and x.dim() >= 3:
            if out.dim() == 2 and out.shape[0] == x.shape[0] and x.shape[2:].numel() > 1:
                self.grids[id(out)] = out, replace(grid, flat=True)
            return
        same = out.shape == x.shape or (not grid.flat and out.dim() == x.dim() and out.shape[2:] == x.shape[2:])
        following = grid if same else None
        if call.name in JOINING and any(self._grid(other) != grid for other in tensors):
            following = None
        elif not grid.flat and out.dim() == x.dim():
            if call.name in POOLS:
                following = _pooled(grid, call, out)
            elif call.name == "pad":
                following = _padded(grid, call, out)
            elif call.name == "__getitem__":
                following = _cut(grid, call.args[1], out) or following
        if following is not None:
            self.grids[id(out)] = out, following

    def _linear(self, usage: Usage, x: Tensor, out: Tensor) -> Usage:
        usage = replace(usage, positions=out.shape[1:-1].numel())
        grid = self._grid(x)
        if not grid.flat:
            return usage
        taps = tuple(
            tuple(j - (k - 1) / 2 + off for j in range(k)) for k, off in zip(grid.extents, grid.offsets, strict=True)
        )
        return replace(usage, extent=grid.extents, pixel=self.width / grid.extents[-1], taps=taps)

    def _convolution(self, usage: Usage, slot: Slot, x: Tensor, out: Tensor, call: FunctionCall) -> Usage:
        order: tuple[str, ...] = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        if slot.kind == "conv_transpose":
            order = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        given = call.arguments(*order)
        n = slot.spatial
        stride, dilation = each(given.get("stride", 1), n), each(given.get("dilation", 1), n)
        padding = given.get("padding", 0)
        if padding == "same":
            pads: Sequence[int] = [d * (k - 1) // 2 for d, k in zip(dilation, slot.kernel, strict=True)]
        else:
            pads = (0,) * n if padding == "valid" else each(padding, n)
        layer = self.modules.get(slot.layer)
        # The very object: proof that the layer's forward reads its attribute, which `bake` can then widen.
        growable = (
            slot.kind == "conv"
            and isinstance(layer, nn.modules.conv._ConvNd)
            and (padding == "same" or (isinstance(padding, tuple) and padding is layer.padding))
        )
        grid = self._grid(x)
        taps = []
        for a, k in enumerate(slot.kernel):
            reads, gives, s, d = x.shape[2 + a], out.shape[2 + a], stride[a], dilation[a]
            if slot.kind == "conv":  # output o sits at s·o, and the grids' centres coincide
                off = -pads[a] + (s * (gives - 1) - (reads - 1)) / 2 + grid.offsets[a]
            else:  # input i stamps the kernel at s·i
                off = -pads[a] + (s * (reads - 1) - (gives - 1)) / 2 - s * grid.offsets[a]
            taps.append(tuple(d * j + off for j in range(k)))
        return replace(usage, positions=out.shape[2:].numel(), growable=growable, taps=tuple(taps))


def _pooled(grid: _Grid, call: FunctionCall, out: Tensor) -> _Grid | None:
    """The grid after a pool; None for a map without a batch."""
    n, order = POOLS[call.name]
    if len(grid.extents) != n or out.dim() != n + 2:
        return None
    given = call.arguments(*order)
    size = each(given["kernel_size"], n)
    stride = each(given.get("stride") or size, n)
    pads, dilation = each(given.get("padding", 0), n), each(given.get("dilation", 1), n)
    offsets = []
    for a, (k, s, p, d) in enumerate(zip(size, stride, pads, dilation, strict=True)):
        centre = (s * (out.shape[2 + a] - 1) + d * (k - 1)) / 2 - p - (grid.extents[a] - 1) / 2
        offsets.append((centre + grid.offsets[a]) / s)
    return _Grid(tuple(out.shape[2:]), tuple(offsets))


def _padded(grid: _Grid, call: FunctionCall, out: Tensor) -> _Grid:
    """The grid after a padding. Widths come in pairs, and those of the last axis first."""
    n = len(grid.extents)
    pads = [*call.arguments("input", "pad")["pad"], *[0] * (2 * n)]
    moved = [(pads[2 * (n - 1 - a) + 1] - pads[2 * (n - 1 - a)]) / 2 + grid.offsets[a] for a in range(n)]
    return _Grid(tuple(out.shape[2:]), tuple(moved))


def _cut(grid: _Grid, index: Any, out: Tensor) -> _Grid | None:
    """The grid after slices along its axes; None for an index of another kind, and where nothing is left."""
    parts = index if isinstance(index, tuple) else (index,)
    n, dims = len(grid.extents), len(grid.extents) + 2
    if any(part is not Ellipsis and not isinstance(part, slice) for part in parts) or not out.numel():
        return None
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts = (*parts[:at], *[slice(None)] * (dims - len(parts) + 1), *parts[at + 1 :])
    spatial = (*parts, *[slice(None)] * (dims - len(parts)))[2:]
    offsets = []
    for a in range(n):
        start, _, step = spatial[a].indices(grid.extents[a])
        centre = start + step * (out.shape[2 + a] - 1) / 2 - (grid.extents[a] - 1) / 2
        offsets.append((centre + grid.offsets[a]) / step)
    return _Grid(tuple(out.shape[2:]), tuple(offsets))


def inspect_base(net: nn.Module, slots: Sequence[Slot], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inspection:
    """Run a clone of the base once on an example and read off the geometry of its slots.

    Args:
        net: a clone, which may be run and hooked.
        slots: the tensors whose use is recorded.
        args: the example's positional inputs; the first tensor with three or more axes says how large the input is.
        kwargs: its keyword inputs.

    Raises:
        SelectionError: for an example without samples, or without a batch axis.

    Example:
        >>> from weightmorph.base.select import select_slots
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 5))
        >>> inspection = inspect_base(net, select_slots(net)[0], (torch.zeros(2, 1, 8, 8),), {})
        >>> inspection.positions["0.weight"], inspection.usages["2.weight"].extent
        (9, (3, 3))
    """
    tensors = dict(net.named_parameters(remove_duplicate=False))
    by_id = {id(tensors[slot.name]): slot for slot in slots}
    inputs = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    if inputs and inputs[0].dim() and not inputs[0].numel():
        raise SelectionError(
            f"example: expected at least one sample, got a tensor of shape {tuple(inputs[0].shape)}; give one input "
            "that the network can be run on"
        )
    recorder = _GeometryRecorder(by_id, inputs, dict(net.named_modules()))
    with torch.no_grad(), recorder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the base repeats its warnings when it is really run
        output = net(*args, **kwargs)
    recorder.returned(output)
    return recorder.inspection(tuple(inputs[0].shape[1:]) if inputs else ())


def as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as positional and keyword inputs.

    Example:
        >>> as_call((1, 2)), as_call({"wave": 3})
        (((1, 2), {}), ((), {'wave': 3}))
    """
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


def merged_slots(clone: Callable[[], nn.Module], slots: Sequence[Slot], example: Any) -> tuple[str, ...] | None:
    """Slots of layers whose input has the batch merged into another axis, or not first.

    The example is run at two batch sizes, and first axes are compared.

    Args:
        clone: gives a copy of the base that may be run.
        slots: the tensors in question.
        example: one input, or a tuple of positional inputs, or a dict of keyword inputs.

    Returns:
        the names of such slots; None where nothing is known, because the base does not run at another batch size.

    Example:
        >>> from weightmorph.base.select import select_slots
        >>> net = nn.Sequential(nn.Linear(3, 3), nn.Flatten(0, 1), nn.Linear(3, 1, bias=False))
        >>> merged_slots(lambda: net, select_slots(net)[0], torch.zeros(1, 5, 3))
        ('2.weight',)
    """
    args, kwargs = as_call(example)

    def sized(value: Any, size: int) -> Any:
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] > 0:
            return value[:1].expand(size, *value.shape[1:]).contiguous()
        return value

    def batches(size: int) -> dict[str, int]:
        inputs = tuple(sized(v, size) for v in args), {k: sized(v, size) for k, v in kwargs.items()}
        usages = inspect_base(clone(), slots, *inputs).usages
        return {name: usage.batch for name, usage in usages.items() if usage.batch is not None}

    try:
        two, three = batches(2), batches(3)
    except Exception:  # whatever the base raises at another batch size
        return None
    return tuple(name for name in two if (two[name], three.get(name)) != (2, 3))

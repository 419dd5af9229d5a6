"""What one example reveals about a base: where taps lie, which `Linear` reads a flattened map, what is read at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..slots import Slot

__all__ = ["Trace", "as_call", "folded_layers", "trace"]

FLATTENING = frozenset("flatten reshape view".split())
CONVOLUTIONS = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split())
POOLS = frozenset("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d".split())
NORMS = frozenset("batch_norm instance_norm group_norm".split())
LOOKS = frozenset("__get__ dim size is_contiguous".split())  # what reads no value
# Functions after which a flattened map is no longer one.
MIXING = frozenset("linear matmul __matmul__ mm bmm addmm einsum softmax cumsum layer_norm".split())


@dataclass(frozen=True)
class _Grid:
    """Where a map's pixels lie: how far its centre is from the image's, along each axis, in its own pixels.

    A convolution's output is centred by definition, for its taps are turned about the point its grid's centre rests
    on. A pool that drops a row, or a padding on one side, moves the centre of what comes after it.
    """

    extents: tuple[int, ...]
    offsets: tuple[float, ...]
    flat: bool = False


@dataclass
class Trace:
    """What was seen, by slot name."""

    taps: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    pixels: dict[str, float] = field(default_factory=dict)
    maps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    widenable: dict[str, bool] = field(default_factory=dict)
    consumed: list[str] = field(default_factory=list)
    batches: dict[str, int] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    readers: dict[str, list[str]] = field(default_factory=dict)

    def apply(self, slot: Slot) -> Slot:
        """The slot with what the example showed of it."""
        name = slot.name
        if name in self.maps:
            slot = slot.as_map(self.maps[name], pixel=self.pixels[name])
        if name in self.taps:
            slot = replace(slot, taps=self.taps[name])
        normed = self.readers.get(slot.layer) == ["norm"]
        return replace(slot, growable=self.widenable.get(name, False), normed=normed)


class _Watch(TorchFunctionMode):
    """Sees every function that consumes a slot's tensor, and follows the grids from map to map."""

    def __init__(self, slots: Mapping[int, list[Slot]], width: int, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.slots, self.width, self.layers = slots, width, layers
        self.seen = Trace()
        # Grids by tensor; the tensors are kept so that ids stay their own.
        self.grids: dict[int, tuple[Tensor, _Grid]] = {}
        # Outputs of convolutions, to see who reads them.
        self.outputs: dict[int, tuple[Tensor, str]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        consumed = [slot for t in tensors for slot in self.slots.get(id(t), ())]
        for slot in consumed if name not in LOOKS else ():
            self.seen.uses[slot.name] = self.seen.uses.get(slot.name, 0) + 1
            if slot.name not in self.seen.consumed:
                self.seen.consumed.append(slot.name)
        if name not in LOOKS:
            self._read(name, tensors, consumed)
        first = out[0] if isinstance(out, tuple) and out else out
        if not isinstance(first, Tensor) or not tensors:
            return out
        x = tensors[0]
        for slot in consumed:
            if x.dim() > 1 and id(x) not in self.slots:
                self.seen.batches.setdefault(slot.name, x.shape[0])
            if name in CONVOLUTIONS and slot.kind in ("conv", "conv_transpose"):
                self._convolution(slot, x, first, args, kwargs)
                self.outputs[id(first)] = first, slot.layer
            elif name == "linear" and slot.kind == "linear":
                self._linear(slot, x, first)
        self._follow(name, x, first, args, kwargs)
        return out

    def _read(self, name: str, tensors: Sequence[Tensor], consumed: Sequence[Slot]) -> None:
        """Note who reads the output of a convolution: a norm whose scale is conditioned, or anything else."""
        scaled = name in NORMS and any(slot.kind == "norm" for slot in consumed)
        for tensor in tensors:
            if id(tensor) in self.outputs:
                layer = self.outputs[id(tensor)][1]
                self.seen.readers.setdefault(layer, []).append("norm" if scaled else name)

    def _grid(self, x: Tensor) -> _Grid:
        if id(x) in self.grids:
            return self.grids[id(x)][1]
        return _Grid(tuple(x.shape[2:]), (0.0,) * max(x.dim() - 2, 0))

    def _follow(self, name: str, x: Tensor, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The grid of a function's output."""
        grid = self._grid(x)
        n = len(grid.extents)
        if name in CONVOLUTIONS or name in MIXING or n == 0:
            return
        if name in FLATTENING and not grid.flat and x.dim() >= 3:
            if out.dim() == 2 and out.shape[0] == x.shape[0] and x.shape[2:].numel() > 1:
                self.grids[id(out)] = out, replace(grid, flat=True)
        elif name in POOLS and out.dim() == x.dim():
            given = dict(zip(("input", "kernel_size", "stride", "padding"), args, strict=False)) | kwargs
            size = _each(given["kernel_size"], n)
            stride, pad = _each(given.get("stride") or size, n), _each(given.get("padding", 0), n)
            offsets = []
            for a, (k, s, p) in enumerate(zip(size, stride, pad, strict=True)):
                centre = (s * (out.shape[2 + a] - 1) + k - 1) / 2 - p - (x.shape[2 + a] - 1) / 2
                offsets.append((centre + grid.offsets[a]) / s)
            self.grids[id(out)] = out, _Grid(tuple(out.shape[2:]), tuple(offsets))
        elif name == "pad" and out.dim() == x.dim():
            pads = list(args[1] if len(args) > 1 else kwargs["pad"]) + [0] * (2 * n)
            moved = [(pads[2 * (n - 1 - a) + 1] - pads[2 * (n - 1 - a)]) / 2 + grid.offsets[a] for a in range(n)]
            self.grids[id(out)] = out, _Grid(tuple(out.shape[2:]), tuple(moved))
        elif out.shape == x.shape or (not grid.flat and out.dim() == x.dim() and out.shape[2:] == x.shape[2:]):
            self.grids[id(out)] = out, grid

    def _linear(self, slot: Slot, x: Tensor, out: Tensor) -> None:
        self.seen.positions[slot.name] = out.numel() // (out.shape[0] * out.shape[-1])
        grid = self._grid(x)
        if grid.flat:
            self.seen.maps[slot.name] = grid.extents
            self.seen.pixels[slot.name] = self.width / grid.extents[-1]
            self.seen.taps[slot.name] = tuple(
                tuple(j - (k - 1) / 2 + off for j in range(k))
                for k, off in zip(grid.extents, grid.offsets, strict=True)
            )

    def _convolution(self, slot: Slot, x: Tensor, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        order: tuple[str, ...] = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        if slot.kind == "conv_transpose":
            order = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        given = dict(zip(order, args, strict=False)) | kwargs
        n = slot.spatial
        stride, dilation = _each(given.get("stride", 1), n), _each(given.get("dilation", 1), n)
        padding = given.get("padding", 0)
        if padding == "same":
            pads: Sequence[int] = [d * (k - 1) // 2 for d, k in zip(dilation, slot.kernel, strict=True)]
        else:
            pads = (0,) * n if padding == "valid" else _each(padding, n)
        self.seen.positions[slot.name] = out[0, 0].numel()
        layer = self.layers.get(slot.layer)
        # The very object: proof that the layer's forward reads its attribute, which `bake` can then widen.
        self.seen.widenable[slot.name] = (
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
        self.seen.taps[slot.name] = tuple(taps)


def _each(value: Any, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)


def trace(net: nn.Module, slots: Sequence[Slot], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    """Run a clone of the base once on an example and read off the geometry of its slots.

    Args:
        net: a clone that may be run and hooked.
        slots: what to watch.
        args: the example's positional inputs; the first tensor with three or more axes says how large the input is.
        kwargs: its keyword inputs.
    """
    layers = dict(net.named_modules())
    tensors = dict(net.named_parameters(remove_duplicate=False))
    watched: dict[int, list[Slot]] = {}
    for slot in slots:
        watched.setdefault(id(tensors[slot.name]), []).append(slot)
    images = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() > 2]
    watch = _Watch(watched, images[0].shape[-1] if images else 1, layers)
    with torch.no_grad(), watch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the base has to say it says when it is really run
        net(*args, **kwargs)
    watch.seen.shape = next((tuple(v.shape[1:]) for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), ())
    return watch.seen


def as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as positional and keyword inputs."""
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


def folded_layers(clone: Callable[[], nn.Module], slots: Sequence[Slot], example: Any) -> list[str]:
    """Slots whose input does not have the batch first, found by running an example at two batch sizes."""
    args, kwargs = as_call(example)

    def sized(value: Any, size: int) -> Any:
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] > 0:
            return value[:1].expand(size, *value.shape[1:]).contiguous()
        return value

    seen: list[Trace] = []
    for size in (2, 3):
        inputs = tuple(sized(v, size) for v in args), {k: sized(v, size) for k, v in kwargs.items()}
        try:
            seen.append(trace(clone(), slots, *inputs))
        except (RuntimeError, ValueError, TypeError, IndexError):
            return []  # inputs that are not batched alike: nothing is known
    two, three = seen
    return [name for name in two.batches if (two.batches[name], three.batches.get(name)) != (2, 3)]

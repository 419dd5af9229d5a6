"""What one example input reveals about a base: where taps lie, which `Linear` reads a flattened map, what is consumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .slots import Slot

__all__ = ["Trace", "trace"]

# Functions that leave every position of a flattened map where it is.
POSITIONWISE = frozenset(
    "dropout relu relu_ leaky_relu gelu silu elu selu celu hardswish hardtanh relu6 sigmoid tanh mish softplus "
    "batch_norm contiguous clone detach to float half double bfloat16 __mul__ mul __truediv__ div __add__ add".split()
)
FLATTENING = frozenset("flatten reshape view".split())
CONVOLUTIONS = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split())


@dataclass
class Trace:
    """What was seen, by slot name."""

    taps: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    pixels: dict[str, float] = field(default_factory=dict)
    maps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    padded_by_layer: dict[str, bool] = field(default_factory=dict)
    consumed: list[str] = field(default_factory=list)
    batches: dict[str, int] = field(default_factory=dict)

    def apply(self, slot: Slot) -> Slot:
        """The slot with what the example showed of it."""
        name = slot.name
        if name in self.taps:
            own = self.padded_by_layer.get(name, False)
            slot = replace(slot, taps=self.taps[name], growable=slot.growable and own)
        if name in self.maps:
            slot = slot.as_map(self.maps[name], pixel=self.pixels.get(name, 1.0))
        return slot


class _Watch(TorchFunctionMode):
    """Sees every function that consumes a slot's tensor."""

    def __init__(self, slots: Mapping[int, list[Slot]], width: int, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.slots, self.width, self.layers = slots, width, layers
        self.seen = Trace()
        self.entered: dict[str, Tensor] = {}
        # Tensors that are flattened maps, and the map's extent. The tensors are kept so that ids stay their own.
        self.flat: dict[int, tuple[Tensor, tuple[int, ...]]] = {}

    def enter(self, layer: str) -> Callable[[nn.Module, Any], None]:
        """A hook that keeps a layer's own input."""

        def hook(module: nn.Module, args: Any) -> None:
            if args and isinstance(args[0], Tensor):
                self.entered[layer] = args[0]

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        consumed = [slot for t in tensors for slot in self.slots.get(id(t), ())]
        for slot in consumed:
            if slot.name not in self.seen.consumed and name not in ("__get__", "dim", "size"):
                self.seen.consumed.append(slot.name)
        if isinstance(out, Tensor) and tensors:
            x = tensors[0]
            for slot in consumed:
                if x.dim() > 1 and id(x) not in self.slots:
                    self.seen.batches.setdefault(slot.name, x.shape[0])
            if name in FLATTENING and x.dim() >= 3 and out.dim() == 2:
                if out.shape[0] == x.shape[0] and out.shape[1] == x[0].numel() and x.shape[2:].numel() > 1:
                    self.flat[id(out)] = (out, tuple(x.shape[2:]))
            elif name in POSITIONWISE and id(x) in self.flat and out.shape == x.shape:
                self.flat[id(out)] = (out, self.flat[id(x)][1])
            for slot in consumed:
                if name in CONVOLUTIONS and slot.kind in ("conv", "conv_transpose"):
                    self._convolution(name, slot, x, out, args, kwargs)
                elif name == "linear" and slot.kind == "linear":
                    self.seen.positions[slot.name] = out.numel() // (out.shape[0] * out.shape[-1])
                    self._linear(slot, x)
        return out

    def _linear(self, slot: Slot, x: Tensor) -> None:
        if id(x) in self.flat:
            kernel = self.flat[id(x)][1]
            self.seen.maps[slot.name] = kernel
            self.seen.pixels[slot.name] = self.width / kernel[-1]

    def _convolution(
        self, name: str, slot: Slot, x: Tensor, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        order = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
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
        own = isinstance(layer, nn.modules.conv._ConvNd) and given.get("padding", 0) == layer.padding
        self.seen.padded_by_layer[slot.name] = own
        entered = self.entered.get(slot.layer, x)
        before = _found_at(x, entered) if entered.dim() == x.dim() else (0,) * n
        extents = entered.shape[2:] if entered.dim() == x.dim() else x.shape[2:]
        taps = []
        for a, k in enumerate(slot.kernel):
            reads, gives, s, d = extents[a], out.shape[2 + a], stride[a], dilation[a]
            # Output o sits at s·o; the grids' centres coincide.
            off = -pads[a] - before[a] + (s * (gives - 1) - (reads - 1)) / 2
            if slot.kind == "conv_transpose":
                off = -pads[a] + (s * (x.shape[2 + a] - 1) - (gives - 1)) / 2
            taps.append(tuple(d * j + off for j in range(k)))
        self.seen.taps[slot.name] = tuple(taps)


def _each(value: Any, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)


def _found_at(padded: Tensor, inner: Tensor) -> tuple[int, ...]:
    """Where a layer's own input lies in what its convolution reads: the padding that the layer applied itself."""
    spare = [p - i for p, i in zip(padded.shape[2:], inner.shape[2:], strict=True)]
    if any(s < 0 for s in spare) or padded.shape[:2] != inner.shape[:2] or not any(spare):
        return (0,) * len(spare)
    starts = torch.cartesian_prod(*[torch.arange(s + 1) for s in spare]).reshape(-1, len(spare)).tolist()
    fits = []
    for start in starts:
        piece = padded
        for a, (begin, length) in enumerate(zip(start, inner.shape[2:], strict=True)):
            piece = piece.narrow(2 + a, begin, length)
        if torch.equal(piece, inner):
            fits.append(tuple(start))
    # An example without content (all zeros) fits everywhere; the middle is the likeliest.
    return fits[0] if len(fits) == 1 else tuple(s // 2 for s in spare)


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
    hooks = []
    for slot in slots:
        if slot.kind in ("conv", "conv_transpose"):
            hooks.append(layers[slot.layer].register_forward_pre_hook(watch.enter(slot.layer)))
    with torch.no_grad(), watch:
        net(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    return watch.seen

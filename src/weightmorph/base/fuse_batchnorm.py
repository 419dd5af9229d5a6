r"""A BatchNorm in eval mode merged into the layer before it.

$$\gamma\,\frac{W x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta
  = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W x + \frac{\gamma (b - \mu)}{\sqrt{\sigma^2 + \epsilon}} + \beta$$
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.overrides import TorchFunctionMode

__all__ = ["fold"]

LOOKS = frozenset("__get__ dim size is_contiguous".split())  # what reads no value
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


class _Readers(TorchFunctionMode):
    """Sees which weights made an output, and which functions read it."""

    def __init__(self, layers: Mapping[int, str], norms: Mapping[int, str]) -> None:
        super().__init__()
        self.layers, self.norms = layers, norms
        self.outputs: dict[int, tuple[Tensor, str]] = {}  # the tensors are kept so that ids stay their own
        self.calls: dict[str, int] = {}
        self.readers: dict[str, list[str]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in LOOKS:
            return out
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        means = [self.norms[id(t)] for t in tensors if id(t) in self.norms]
        for tensor in tensors:
            if id(tensor) in self.outputs:
                reader = means[0] if name == "batch_norm" and means else ""
                self.readers.setdefault(self.outputs[id(tensor)][1], []).append(reader)
        for layer in (self.layers[id(t)] for t in tensors if id(t) in self.layers):
            self.calls[layer] = self.calls.get(layer, 0) + 1
            if isinstance(out, Tensor) and name.startswith(("conv", "linear")):
                self.outputs[id(out)] = out, layer
        return out


def fold(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Merge every BatchNorm that reads one layer's output and is all that reads it; in place.

    The norm becomes an `Identity`, the layer gets a bias if it had none. Layers and norms that are called more than
    once, or whose tensors are shared, stay as they are.

    Args:
        net: in eval mode; changed.
        args: an example's positional inputs: the network is run on it once, to see who reads what.
        kwargs: its keyword inputs.

    Returns:
        the names of the norms that are gone.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
        >>> fold(net, (torch.zeros(1, 1, 5, 5),), {})
        ['1']
    """
    named = dict(net.named_modules(remove_duplicate=False))
    owners: dict[int, int] = {}
    for module in {id(m): m for m in named.values()}.values():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    layers = {
        id(m.weight): name for name, m in named.items() if type(m) in LAYERS and owners[id(m.weight)] == 1
    }  # fmt: skip
    norms = {id(m.running_mean): name for name, m in named.items() if type(m) in NORMS and m.track_running_stats}
    watch = _Readers(layers, norms)
    with torch.no_grad(), watch:
        net(*args, **kwargs)
    read = [reader for row in watch.readers.values() for reader in row]
    merged = []
    for layer, readers in watch.readers.items():
        if len(readers) == 1 and readers[0] and watch.calls[layer] == 1 and read.count(readers[0]) == 1:
            _merge(named[layer], named[readers[0]])
            parent, _, attribute = readers[0].rpartition(".")
            setattr(named[parent], attribute, nn.Identity())
            merged.append(readers[0])
    return merged


def _merge(layer: nn.Module, norm: nn.Module) -> None:
    given: Any = norm
    own: Any = layer
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    more = {} if isinstance(layer, nn.Linear) else {"transpose": bool(getattr(layer, "transposed", False))}
    weight, bias = fuse(
        own.weight, own.bias, given.running_mean, given.running_var, given.eps, given.weight, given.bias, **more
    )  # fmt: skip
    trains = own.weight.requires_grad
    own.weight = nn.Parameter(weight.detach(), requires_grad=trains)
    own.bias = nn.Parameter(bias.detach(), requires_grad=trains)

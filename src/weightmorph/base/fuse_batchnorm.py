r"""A BatchNorm in eval mode fused into the layer before it.

$$\gamma\,\frac{W x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta
  = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W x + \frac{\gamma (b - \mu)}{\sqrt{\sigma^2 + \epsilon}} + \beta$$
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from .recorder import UsageRecorder

__all__ = ["fuse_batchnorm"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def fuse_batchnorm(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Fuse every BatchNorm that alone reads the output of one layer into that layer; in place.

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
        >>> fuse_batchnorm(net, (torch.zeros(1, 1, 5, 5),), {})
        ['1']
    """
    named = dict(net.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for module in net.modules() for p in module._parameters.values())
    layers = {id(m.weight): name for name, m in named.items() if type(m) in LAYERS and owners[id(m.weight)] == 1}
    norms = {id(m.running_mean): name for name, m in named.items() if type(m) in NORMS and m.track_running_stats}
    recorder = UsageRecorder(layers)
    with torch.no_grad(), recorder:
        net(*args, **kwargs)

    def norm_of(function: str, tensors: tuple[int, ...]) -> str:
        return next((norms[key] for key in tensors if key in norms), "") if function == "batch_norm" else ""

    readers = {name: [norm_of(*reader) for reader in row] for name, row in recorder.readers.items()}
    uses = Counter(norm for row in readers.values() for norm in row)
    reads = {name: recorder.reads.get(key, 0) for key, name in layers.items()}
    fused = []
    for layer, row in readers.items():
        if len(row) == 1 and row[0] and reads[layer] == 1 and uses[row[0]] == 1:
            _fuse(named[layer], named[row[0]])
            parent, _, attribute = row[0].rpartition(".")
            setattr(named[parent], attribute, nn.Identity())
            fused.append(row[0])
    return fused


def _fuse(layer: Any, norm: Any) -> None:
    linear = isinstance(layer, nn.Linear)
    fuse = fuse_linear_bn_weights if linear else fuse_conv_bn_weights
    options = {} if linear else {"transpose": bool(getattr(layer, "transposed", False))}
    weight, bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias, **options
    )
    trains = layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.detach(), requires_grad=trains)
    layer.bias = nn.Parameter(bias.detach(), requires_grad=trains)

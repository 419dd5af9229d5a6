r"""BatchNorms in eval mode are fused into the layers before them, so that a deployed network has fewer layers.

$$\gamma\,\frac{W x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta
  = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W x + \frac{\gamma (b - \mu)}{\sqrt{\sigma^2 + \epsilon}} + \beta$$

That holds only where the norm alone reads the layer's output.
[`fuse_batchnorm`][weightmorph.base.fuse_batchnorm.fuse_batchnorm] runs the network once to see who reads what, fuses
what can be fused, and runs it again: a norm whose fusion changes the output is put back.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils import _pytree as pytree

from .recorder import FunctionCall, UsageRecorder, leaves

__all__ = ["fuse_batchnorm"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def fuse_batchnorm(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Fuse every BatchNorm that alone reads the output of one layer into that layer; in place.

    The norm becomes an `Identity`, the layer gets a bias if it had none. Layers and norms that are called more than
    once, or whose tensors are shared, stay as they are. So does a norm without which the network's output on the
    example is another one.

    Args:
        net: in eval mode; changed.
        args: an example's positional inputs: the network is run on it, to see who reads what, and to compare.
        kwargs: its keyword inputs.

    Returns:
        the names of the norms that are gone.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
        >>> fuse_batchnorm(net, (torch.zeros(1, 1, 5, 5),), {})
        ['1']
    """
    pairs = _fusible(net, args, kwargs)
    if not pairs:
        return []
    inputs = pytree.tree_map(_informative, (args, dict(kwargs)))
    expected = _run(net, *inputs)
    undo = [_fuse(net, *pair) for pair in pairs]
    if _agree(net, inputs, expected):
        return [norm for _, norm in pairs]
    for put_back in undo:
        put_back()
    fused = []
    for layer, norm in pairs:
        put_back = _fuse(net, layer, norm)
        if _agree(net, inputs, expected):
            fused.append(norm)
        else:
            put_back()
    return fused


class _NormRecorder(UsageRecorder):
    """Also counts the functions that read each norm's running mean.

    Attributes:
        uses: by norm, the number of functions that read its mean.
        inputs: by norm, the number of axes of its last input.
    """

    def __init__(self, layers: Mapping[int, str], norms: Mapping[int, str]) -> None:
        super().__init__(layers)
        self.norms = norms
        self.uses: Counter[str] = Counter()
        self.inputs: dict[str, int] = {}

    def record(self, call: FunctionCall) -> None:
        tensors = call.tensors
        for norm in [self.norms[id(t)] for t in tensors if id(t) in self.norms]:
            self.uses[norm] += 1
            self.inputs[norm] = tensors[0].dim()


def _fusible(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The names of the layers whose output one norm alone reads, and of those norms."""
    named = dict(net.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for module in net.modules() for p in module._parameters.values())
    layers = {id(m.weight): name for name, m in named.items() if type(m) in LAYERS and owners[id(m.weight)] == 1}
    norms = {id(m.running_mean): name for name, m in named.items() if type(m) in NORMS and m.track_running_stats}
    recorder = _NormRecorder(layers, norms)
    with torch.no_grad(), recorder:
        output = net(*args, **kwargs)
    recorder.returned(output)
    pairs = []
    for layer, readers in recorder.readers.items():
        weight: Any = named[layer].weight
        if len(readers) != 1 or readers[0].function != "batch_norm" or recorder.reads[id(weight)] != 1:
            continue
        norm = next((norms[key] for key in readers[0].tensors if key in norms), None)
        # A norm's channels are axis 1. Those of a `Linear` are so only in a matrix.
        if norm is not None and recorder.uses[norm] == 1 and recorder.inputs[norm] == weight.dim():
            pairs.append((layer, norm))
    return pairs


def _fuse(net: nn.Module, layer_name: str, norm_name: str) -> Callable[[], None]:
    """Fuse one norm into one layer; returns a function that undoes it."""
    layer: Any = net.get_submodule(layer_name)
    norm = net.get_submodule(norm_name)
    parent_name, _, attribute = norm_name.rpartition(".")
    parent = net.get_submodule(parent_name)
    weight, bias = _fused_weights(layer, norm)
    old = layer.weight, layer.bias
    trains = layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.detach(), requires_grad=trains)
    layer.bias = nn.Parameter(bias.detach(), requires_grad=trains)
    setattr(parent, attribute, nn.Identity())

    def undo() -> None:
        layer.weight, layer.bias = old
        setattr(parent, attribute, norm)

    return undo


def _fused_weights(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    linear = isinstance(layer, nn.Linear)
    fuse = fuse_linear_bn_weights if linear else fuse_conv_bn_weights
    options = {} if linear else {"transpose": bool(getattr(layer, "transposed", False))}
    return fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias, **options
    )


def _informative(value: Any) -> Any:
    """An input to compare outputs on: uniform random numbers in place of zeros, under which scales have no effect."""
    if isinstance(value, Tensor) and value.is_floating_point() and not value.any():
        generator = torch.Generator(value.device).manual_seed(0)
        return torch.rand(value.shape, generator=generator, dtype=value.dtype, device=value.device)
    return value


def _run(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Everything in the network's output, under the same random numbers and on fresh copies of the inputs each time."""
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))
    devices = {p.device for p in net.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the network repeats its warnings when it is really run
        return leaves(net(*args, **kwargs))


def _agree(net: nn.Module, inputs: tuple[Any, Any], expected: list[Any]) -> bool:
    """Does the changed network still give the expected output, up to rounding?"""
    try:
        given = _run(net, *inputs)
    except Exception:  # whatever the network raises where it misses the norm
        return False
    return len(given) == len(expected) and all(map(_equal, given, expected))


def _equal(given: Any, expected: Any) -> bool:
    """Are two parts of an output equal, numbers up to rounding? Of other objects only the types are compared."""
    if isinstance(given, int | float) and isinstance(expected, int | float):
        given, expected = torch.tensor(float(given)), torch.tensor(float(expected))
    if not isinstance(given, Tensor) or not isinstance(expected, Tensor):
        return type(given) is type(expected)
    if given.shape != expected.shape or given.dtype != expected.dtype:
        return False
    if given.is_complex():
        given, expected = torch.view_as_real(given), torch.view_as_real(expected)
    if not given.is_floating_point():
        return torch.equal(given, expected)
    # Kernels on accelerators may compute float32 with a mantissa of 10 bits.
    eps = max(torch.finfo(given.dtype).eps, 0.0 if given.device.type == "cpu" else 2.0**-10)
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().amax().item() if expected.numel() else 0.0
    return torch.allclose(given, expected, rtol=eps**0.5, atol=eps**0.5 * scale, equal_nan=True)

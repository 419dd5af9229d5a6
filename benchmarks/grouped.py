"""What one writes by hand for one weight per sample: the samples become groups of a grouped convolution.

Activations are `(1, B·C, H, W)` throughout, and each network's forward is written again in those terms.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from networks import Block, ResNet18
from torch import Tensor, nn


class Grouped:
    """A network's layers with weights `(B, *S)` by name; a tensor that is not among them is the network's own."""

    def __init__(self, net: nn.Module, weights: Mapping[str, Tensor], size: int) -> None:
        self.net, self.weights, self.size = net, weights, size

    def tensor(self, name: str) -> Tensor:
        """`(B, *S)`."""
        if name in self.weights:
            return self.weights[name]
        own = self.net.get_parameter(name)
        return own.expand(self.size, *own.shape)

    def convolve(self, name: str, x: Tensor) -> Tensor:
        """A convolution with B times its groups."""
        layer = self.net.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        weight = self.tensor(f"{name}.weight").flatten(0, 1)
        bias = None if layer.bias is None else self.tensor(f"{name}.bias").flatten()
        padding = layer.padding
        if layer.padding_mode == "constant":  # a kernel that has grown on one side
            x, padding = F.pad(x, layer._reversed_padding_repeated_twice), 0
        return F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, self.size * layer.groups)

    def normalise(self, name: str, x: Tensor) -> Tensor:
        """BatchNorm by running statistics, with B times its channels."""
        layer = self.net.get_submodule(name)
        assert isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None
        mean, variance = layer.running_mean.repeat(self.size), layer.running_var.repeat(self.size)
        weight, bias = self.tensor(f"{name}.weight").flatten(), self.tensor(f"{name}.bias").flatten()
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, layer.eps)

    def product(self, name: str, x: Tensor) -> Tensor:
        """A linear layer: x `(B, I)` -> `(B, O)`."""
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        return torch.baddbmm(bias.unsqueeze(2), weight, x.unsqueeze(2)).squeeze(2)


def small_cnn(net: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The demo CNN: x `(B, 1, 28, 28)` -> `(B, 10)`."""
    size = len(x)
    by = Grouped(net, weights, size)
    x = x.reshape(1, -1, *x.shape[2:])
    x = F.max_pool2d(F.relu(by.normalise("bn1", by.convolve("conv1", x))), 2)
    x = F.max_pool2d(F.relu(by.normalise("bn2", by.convolve("conv2", x))), 2)
    x = F.relu(by.normalise("bn3", by.convolve("conv3", x)))
    return by.product("fc", x.reshape(size, -1))


def resnet18(net: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """ResNet-18: x `(B, 3, H, W)` -> `(B, classes)`."""
    assert isinstance(net, ResNet18)
    size = len(x)
    by = Grouped(net, weights, size)
    x = net.pool(F.relu(by.normalise("bn1", by.convolve("conv1", x.reshape(1, -1, *x.shape[2:])))))
    for name, block in net.named_modules():
        if isinstance(block, Block):
            y = F.relu(by.normalise(f"{name}.bn1", by.convolve(f"{name}.conv1", x)))
            y = by.normalise(f"{name}.bn2", by.convolve(f"{name}.conv2", y))
            if block.downsample is not None:
                x = by.normalise(f"{name}.downsample.1", by.convolve(f"{name}.downsample.0", x))
            x = F.relu(y + x)
    return by.product("fc", x.mean((2, 3)).reshape(size, -1))

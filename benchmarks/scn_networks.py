"""The parameter families and networks of `scn_table.py`, and two rival ways to make weights depend on a parameter.

The networks are those of Wang, Saukh, He and Thiele, "Subspace-Configurable Networks", CoLLAs 2024, arXiv:2305.13536,
or of their kind; nothing here is their code.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from packages import named
from torch import Tensor, nn
from torch.func import functional_call

import weightmorph as wm
from weightmorph.inputs import InputTransform, Rotate, Translate, Zoom
from weightmorph.inputs.functional import per_image
from weightmorph.parameters import LogInterval, ParameterSpace, Theta
from weightmorph.slots import Slot
from weightmorph.terms import Dense, Term

Setting = tuple[float, ...]
FACTORS = tuple(round(0.2 + 0.05 * k, 2) for k in range(37))
FIXED_FACTORS: tuple[Setting, ...] = ((0.2,), (0.5,), (1.0,), (1.5,), (2.0,))


# Families


class _Factor(InputTransform):
    """One factor from 0.2 to 2; results are clamped to [0, 1], as torchvision's are."""

    invertible = True

    def __init__(self, name: str) -> None:
        super().__init__(ParameterSpace({name: LogInterval(0.2, 2.0, anchor=1.0)}))
        self.name = name


class Brightness(_Factor):
    """Every value times θ. Undone by dividing, but for what the clamp took."""

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        return (x * per_image(theta[self.name])).clamp(0, 1)

    def undo(self, x: Tensor, theta: Theta) -> Tensor:
        return (x / per_image(theta[self.name])).clamp(0, 1)


class Contrast(_Factor):
    """Values spread θ times as far from the image's mean. Undone by 1/θ, about the mean that the clamp has left."""

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        mean = x.mean((-3, -2, -1), keepdim=True)
        return (mean + per_image(theta[self.name]) * (x - mean)).clamp(0, 1)

    def undo(self, x: Tensor, theta: Theta) -> Tensor:
        return self.apply(x, {self.name: 1 / theta[self.name]})


class Sharpness(_Factor):
    """θ times the image and 1 - θ times a blurred one; undone, but for the clamp, by solving that for the image."""

    def linear(self, x: Tensor, factor: Tensor) -> Tensor:
        """Without the clamp. The pixels of the border stay as they are."""
        taps = x.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]])[None, None] / 13
        blurred = x.clone()
        blurred[..., 1:-1, 1:-1] = F.conv2d(x, taps)
        return factor * x + (1 - factor) * blurred

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        return self.linear(x, theta[self.name]).clamp(0, 1)

    def undo(self, x: Tensor, theta: Theta) -> Tensor:
        """One linear system for all images, so θ is shared."""
        pixels = x.shape[-1] * x.shape[-2]
        rows = self.linear(torch.eye(pixels).reshape(pixels, 1, *x.shape[-2:]), theta[self.name]).flatten(1)
        solved: Tensor = torch.linalg.solve(rows, x.flatten(1), left=False)
        return solved.reshape(x.shape).clamp(0, 1)


def circle(setting: Setting) -> Tensor:
    """(cos θ, sin θ) of degrees."""
    radians = torch.tensor(setting).deg2rad()
    return torch.cat((radians.cos(), radians.sin()))


@dataclass(frozen=True)
class Family:
    """What is done to the images, where it is judged, and how the rivals are told θ.

    Attributes:
        transform: T; its parameters are also what ours is conditioned on.
        drawn: the settings of training, one a batch, drawn alike for every row.
        judged: the settings over which the mean and the worst are taken.
        fixed: five settings, each with a network of its own in the row One4One.
        clean: the setting that leaves the images as they are.
        penalty: weight of SCN's regulariser, as published.
        code: a setting as SCN and HyperLight read it.
        geometric: it moves things, so kernels can be moved alike.
    """

    transform: InputTransform
    drawn: Sequence[Setting]
    judged: Sequence[Setting]
    fixed: Sequence[Setting]
    clean: Setting
    penalty: float = 1.0
    code: Callable[[Setting], Tensor] = torch.tensor
    geometric: bool = False

    def theta(self, setting: Setting) -> dict[str, float]:
        """As keywords."""
        return dict(zip(self.transform.parameters, setting, strict=True))


def families(angles: int) -> dict[str, Family]:
    """All of them, the circle being judged at so many angles."""
    degrees = [(float(angle),) for angle in range(360)]
    factors, pixels = [(factor,) for factor in FACTORS], [float(k) for k in range(-8, 9)]
    fine, coarse = (list(itertools.product(values, values)) for values in (pixels, pixels[::2]))
    corners = [(-8.0, -8.0), (-8.0, 8.0), (8.0, -8.0), (8.0, 8.0), (0.0, 0.0)]
    turned = [(float(angle),) for angle in (0, 30, 45, 60, 90)]
    zoom, by, at = Zoom(0.2, 2.0), (factors, factors, FIXED_FACTORS), (1.0,)
    return {
        "rotation": Family(Rotate(), degrees, degrees[:: 360 // angles], turned, (0.0,), 1.0, circle, True),
        "scale": Family(zoom, *by, at, 0.1, geometric=True),
        "translation": Family(Translate(-8.0, 8.0), fine, coarse, corners, (0.0, 0.0), 0.1, geometric=True),
        "brightness": Family(Brightness("brightness"), *by, at),
        "contrast": Family(Contrast("contrast"), *by, at),
        "sharpness": Family(Sharpness("sharpness"), *by, at),
    }


# Networks


def mlp() -> nn.Module:
    """One hidden layer of 32: 33,130 numbers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 32), nn.ReLU(), nn.Linear(32, 10))


def lenet() -> nn.Module:
    """LeNet-5 with ReLU and maxima in place of sigmoids and means: 61,706 numbers."""
    features = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*features, *head)


def convnet() -> nn.Module:
    """Three convolutions with BatchNorm, the first with stride 2, and one linear layer: 11,202 numbers."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in ((1, 8, 5, 2), (8, 16, 3, 1), (16, 32, 3, 1)):
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(), *([nn.MaxPool2d(2)] if inputs > 1 else [])]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 4, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "lenet": lenet, "convnet": convnet}


# Rivals


class SubspaceConfigurable(nn.Module):
    r"""D sets of all weights, mixed by a small network: $W(c) = \sum_d m_d(c) W_d$, $m = \mathrm{softmax}(h(c))$.

    $h$ has one hidden layer of 64. Every set has a random start of its own, and all is trained together; one $c$ for
    the whole batch. Running statistics of norm layers belong to all sets.

    Args:
        build: makes one network with random weights.
        code: how many numbers $c$ has.
        sets: D.
    """

    def __init__(self, build: Callable[[], nn.Module], code: int, sets: int) -> None:
        super().__init__()
        starts = [build() for _ in range(sets)]
        self.names = [name for name, _ in starts[0].named_parameters()]
        banks = zip(*(net.parameters() for net in starts), strict=True)
        self.banks = nn.ParameterList([nn.Parameter(torch.stack([p.detach() for p in bank])) for bank in banks])
        self.mixer = nn.Sequential(nn.Linear(code, 64), nn.ReLU(), nn.Linear(64, sets), nn.Softmax(-1))
        self.frame = starts[0].requires_grad_(False)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Images `(N, 1, 32, 32)` and one code `(K,)`."""
        mix = self.mixer(code)
        weights = {name: torch.tensordot(mix, bank, 1) for name, bank in zip(self.names, self.banks, strict=True)}
        return cast(Tensor, functional_call(self.frame, weights, (x,)))

    def overlap(self, code: Tensor, other: Tensor) -> Tensor:
        """The published regulariser: the squared cosine between the mixes at two settings."""
        return torch.cosine_similarity(self.mixer(code), self.mixer(other), 0) ** 2

    def state(self) -> dict[str, Tensor]:
        """What has to be stored: the sets, the mixer and the norms' statistics, without the frame's own weights."""
        apart = {f"frame.{name}" for name in self.names}
        return {name: value for name, value in self.state_dict().items() if name not in apart}


class HyperLight(nn.Module):
    """HyperLight's hypernetwork on a network: from 16 hidden units to a delta of every weight, the base in the bias.

    It takes one setting per batch and generates no norm layers. All of it is trained, the base's weights included.
    """

    def __init__(self, net: nn.Module, code: int, hidden: int = 16) -> None:
        super().__init__()
        hl = importlib.import_module("hyperlight")
        self.mainnet: Any
        net = copy.deepcopy(net)  # its layers lose their weights to the hypernetwork
        self.mainnet, values = hl.hypernetize(net, modules=list(named(net).values()), return_values=True)
        self.hypernet = hl.HyperNet.from_existing(values, input_shapes={"h": (code,)}, hidden_sizes=[hidden])

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Images `(N, 1, 32, 32)` and one code `(K,)` in [-1, 1], which it wants in [0, 1]."""
        code = (code + 1) / 2
        with self.mainnet.using_externals(self.hypernet(h=code)):
            return cast(Tensor, self.mainnet(x))


def hyperlight_from(folder: Path) -> bool:
    """Can HyperLight be imported, from here or from the environment that `peers.py --peers-env` made in `folder`?"""
    for packages in sorted(folder.glob("lib/python*/site-packages")):
        if (packages / "hyperlight").is_dir() and str(packages) not in sys.path:
            sys.path.append(str(packages))
    return importlib.util.find_spec("hyperlight") is not None


# Ours


Memory = dict[tuple[object, ...], Tensor]


class Remembered(wm.WeightTransform):
    """A transform without trainable numbers, whose result is kept for every θ that it has seen, under a shared θ.

    Making a 1,024-tap `Warp` takes a tenth of a second, and in training the same frozen weight meets the same few
    hundred settings again and again. This is also how a weight transform of one's own is written.

    Args:
        inner: the transform; its trainable numbers, if it had any, would not be trained.
        memory: where results are kept, for several models of the same base.
    """

    family = "remembered"

    def __init__(self, inner: wm.WeightTransform, memory: Memory) -> None:
        super().__init__()
        self.inner, self.memory = inner, memory

    def _fresh(self) -> Remembered:
        return Remembered(self.inner, self.memory)  # a copy would have a memory of its own

    def wants(self, slot: Slot, space: ParameterSpace) -> bool:
        return self.inner.wants(slot, space)

    def setup(self, slot: Slot, code_dim: int) -> None:
        self.inner = self.inner.build(slot, code_dim, space=self.space)

    def delta(self, weight: Tensor, code: Tensor) -> Term:
        key = (self.slot.name, *code.tolist())
        if key not in self.memory:
            with torch.no_grad():
                self.memory[key] = self.inner.delta(weight, code).dense()
        return Dense(self.slot, self.memory[key])


def numbers(tensors: Sequence[Tensor]) -> int:
    """How many numbers they hold."""
    return sum(t.numel() for t in tensors)

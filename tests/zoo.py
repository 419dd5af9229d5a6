"""The families and the networks that the laws are tested on.

A family in `weightmorph.transforms.__all__` is tested with its defaults, and with every recipe that RECIPES names; a
network in LAYERS is tested with every family. Both inherit all laws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightmorph as wm
from weightmorph import transforms
from weightmorph.execution import ForcedRoute, Observer
from weightmorph.parameters import Value
from weightmorph.slots import Slot
from weightmorph.terms import Term

RECIPES: dict[str, Callable[[], wm.WeightTransform]] = {
    "warp": lambda: wm.Warp(),
    "warp_grown": lambda: wm.Warp(grow=1),
    "lowrank": lambda: wm.LowRank(2),
    "scale": lambda: wm.Scale(),
    "subspace": lambda: wm.Subspace(2),
    "lie": lambda: wm.Lie(),
    "perfilter_linear": lambda: wm.PerFilter("linear"),
    "perfilter_mlp": lambda: wm.PerFilter("mlp"),
    "custom": lambda: wm.Custom(Bend(), anchored=True),
    "sum": lambda: wm.Warp() + wm.LowRank(2) + wm.Scale(),
    "everything": lambda: wm.Warp() + wm.LowRank(2) + wm.Scale() + wm.Subspace(2) + wm.PerFilter("linear"),
}
"""Named recipes: the shipped families with small sizes, and sums of them."""


class Bend(nn.Module):
    """A user's own transform: any smooth function of weight and code will do."""

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(0.3))

    def forward(self, weight: Tensor, code: Tensor) -> Tensor:
        shape = (*code.shape[:-1], *(1,) * weight.dim())
        return weight + self.amount * torch.sin(weight + code[..., :1].reshape(shape))


def with_defaults(
    recipes: Mapping[str, Callable[[], wm.WeightTransform]], kinds: Iterable[type[wm.WeightTransform]]
) -> dict[str, Callable[[], wm.WeightTransform]]:
    """The recipes, and each family that none of them makes, with its defaults."""
    known = {type(make()) for make in recipes.values()}
    return {**recipes, **{kind.family: kind for kind in kinds if kind not in known}}


FAMILIES = with_defaults(
    RECIPES, [getattr(transforms, name) for name in transforms.__all__ if name != "WeightTransform"]
)


class Standardised(nn.Conv2d):
    """Weight standardisation: functions of the weight alone come before the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        mean = w.mean(dim=(1, 2, 3), keepdim=True)
        centred = w - mean
        scale = centred.flatten(1).std(dim=1).reshape(-1, 1, 1, 1) + 1e-5
        return F.conv2d(x, centred / scale, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Same(nn.Conv2d):
    """Pads like TensorFlow before it convolves."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Gain(nn.Module):
    """A weight that multiplies the input, consumed by an operator and not by a layer's function."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + torch.tanh(self.gain)


class Twice(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


class Bilinear(nn.Module):
    """A weight that a function without a handler reads, with the input's batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 4))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oij,bj->bo", x, self.weight, x.flip(-1)) + self.bias


IMAGE, LINE, VOLUME = (3, 7, 6), (3, 9), (2, 5, 4, 6)


def _norms(kind: str) -> nn.Module:
    made: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: nn.BatchNorm2d(4),
        "group": lambda: nn.GroupNorm(2, 4),
        "instance": lambda: nn.InstanceNorm2d(4, affine=True),
        "layer": lambda: nn.LayerNorm((4, 7, 6)),
    }
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), made[kind](), nn.ReLU(), nn.Conv2d(4, 2, 3))


class Example(NamedTuple):
    """A network, the shape of one input, and `select=`, which is needed for tensors of no layer that is known."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    select: str | None = None


LAYERS: dict[str, Example] = {
    "conv2d": Example(lambda: nn.Conv2d(3, 4, 3), IMAGE),
    "conv2d_nobias_padded": Example(lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False), IMAGE),
    "conv2d_stride": Example(lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), IMAGE),
    "conv2d_dilated": Example(lambda: nn.Conv2d(3, 4, (3, 2), padding=(2, 1), dilation=2), IMAGE),
    "conv2d_even_kernel": Example(lambda: nn.Conv2d(3, 4, (4, 2), padding=1), IMAGE),
    "conv2d_same": Example(lambda: nn.Conv2d(3, 4, (3, 5), padding="same"), IMAGE),
    "conv2d_valid": Example(lambda: nn.Conv2d(3, 4, 3, padding="valid"), IMAGE),
    "conv2d_reflect": Example(lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), IMAGE),
    "conv2d_circular": Example(lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"), IMAGE),
    "conv2d_groups": Example(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, groups=2)), IMAGE),
    "conv2d_depthwise": Example(lambda: nn.Conv2d(3, 3, 3, groups=3, stride=2, padding=1), IMAGE),
    "conv2d_multiplier": Example(lambda: nn.Conv2d(3, 6, 3, groups=3, bias=False), IMAGE),
    "conv2d_many_inputs": Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1)), IMAGE),
    "conv2d_1x1_and_3x3": Example(lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 3)), IMAGE),
    "conv1d": Example(lambda: nn.Conv1d(3, 4, 5, padding=2, stride=2), LINE),
    "conv1d_depthwise": Example(lambda: nn.Conv1d(3, 3, 3, groups=3, dilation=2), LINE),
    "conv3d": Example(lambda: nn.Conv3d(2, 4, 3, padding=1), VOLUME),
    "conv3d_few_outputs": Example(lambda: nn.Sequential(nn.Conv3d(2, 9, 1), nn.Conv3d(9, 8, (1, 3, 3))), VOLUME),
    "conv3d_groups_stride": Example(lambda: nn.Conv3d(2, 4, (1, 3, 3), groups=2, stride=(1, 2, 2), bias=False), VOLUME),
    "transposed1d": Example(lambda: nn.ConvTranspose1d(3, 4, 4, stride=2, padding=1), LINE),
    "transposed2d": Example(lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), IMAGE),
    "transposed2d_groups": Example(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2, bias=False)),
        IMAGE,
    ),
    "transposed2d_tiles": Example(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, (2, 3), stride=(2, 3), groups=2)),
        IMAGE,
    ),
    "transposed3d": Example(lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), VOLUME),
    "linear": Example(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False)), (6,)),
    "linear_tokens": Example(lambda: nn.Linear(6, 5), (3, 6)),
    "linear_over_map": Example(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)),
        IMAGE,
    ),
    "batchnorm": Example(lambda: _norms("batch"), IMAGE),
    "groupnorm": Example(lambda: _norms("group"), IMAGE),
    "instancenorm": Example(lambda: _norms("instance"), IMAGE),
    "layernorm": Example(lambda: _norms("layer"), IMAGE),
    "batchnorm1d": Example(lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "layernorm_tokens": Example(lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)), (4, 6)),
    "rmsnorm": Example(lambda: nn.Sequential(nn.Linear(6, 5), nn.RMSNorm(5), nn.Linear(5, 3)), (4, 6)),
    "standardised": Example(lambda: Standardised(3, 4, 3, padding=1), IMAGE),
    "own_padding": Example(lambda: Same(3, 4, 3, stride=2), (3, 8, 6)),
    "called_twice": Example(Twice, IMAGE),
    "operator": Example(lambda: Gain(*IMAGE), IMAGE, "gain"),
    "vmapped": Example(Bilinear, (4,), "*"),
}

ROUTES = ("rule", "factored", "dense", "product", "bucketed")


def base(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in float64 with statistics that are not trivial, and a batch of six inputs for it."""
    torch.manual_seed(seed)
    make, shape, _ = LAYERS[name]
    net = make().double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
                for parameter in module.parameters():
                    parameter.normal_()
    return net, torch.randn(6, *shape, dtype=torch.float64)


def space(name: str) -> dict[str, wm.parameters.Parameter]:
    """Parameters that make sense for the network: a turn where there is a plane, a stretch on a line."""
    shape = LAYERS[name].shape
    angle = wm.Angle("deg", harmonics=2)
    if len(shape) == 2:
        return {"stretch": wm.LogInterval(0.5, 2.0, affine="zoom"), "knob": wm.Interval(-1.0, 1.0, order=2)}
    return {"angle": angle, "zoom": wm.LogInterval(0.5, 2.0, order=2, affine="zoom")}


def settings(name: str, size: int = 6, distinct: int | None = None) -> dict[str, Tensor]:
    """One θ per sample, `distinct` of them different."""
    generator = torch.Generator().manual_seed(7)
    theta = wm.ParameterSpace(space(name)).sample(distinct or size, generator)
    return {key: value.double().repeat(size // len(value) + 1)[:size] for key, value in theta.items()}


def conditioned(name: str, family: str, *, seed: int = 0) -> tuple[wm.Conditioned, Tensor]:
    """A conditioned network whose transform is no longer at its start."""
    net, x = base(name, seed)
    model = wm.condition(net, space(name), FAMILIES[family](), LAYERS[name].select, example=x[:2])
    shake(model)
    return model, x


def shake(model: nn.Module, amount: float = 0.2, seed: int = 1) -> None:
    """Move every trainable number away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)


class _WantsAll(wm.WeightTransform):
    """It only shows which tensors a network offers."""

    family = "wants_all"

    def wants(self, slot: Slot, space: wm.ParameterSpace) -> bool:
        return True

    def setup(self, slot: Slot, code_dim: int) -> None:
        pass

    def delta(self, weight: Tensor, code: Tensor) -> Term:
        raise NotImplementedError


@cache
def slots(name: str) -> tuple[Slot, ...]:
    """The tensors that the network offers, as an example shows them."""
    with torch.random.fork_rng(devices=[]):
        net, x = base(name)
        return tuple(wm.condition(net, space(name), _WantsAll(), LAYERS[name].select, example=x[:2]).slots.values())


def applies(name: str, family: str) -> bool:
    """Does the family want any tensor of the network?"""
    recipe, parameters = FAMILIES[family](), wm.ParameterSpace(space(name))
    return any(recipe.wants(slot, parameters) for slot in slots(name))


CASES = [(layer, family) for layer in LAYERS for family in FAMILIES if applies(layer, family)]


def code(model: wm.Conditioned, **theta: Value) -> Tensor:
    """θ as the model's transform reads it: `(*B, K)`."""
    return model.encode(**theta)


def frozen(model: wm.Conditioned) -> dict[str, Tensor]:
    """The frozen tensors by slot name."""
    return dict(model.base.frozen)


def observed(model: wm.Conditioned, observer: Observer) -> Callable[..., Any]:
    """The same model, each of whose layers under one θ per sample is carried out by an observer."""
    return model.observed(observer)


def one_by_one(model: wm.Conditioned, x: Tensor, theta: dict[str, Tensor]) -> Tensor:
    """The oracle: bake each sample's network and call it on that sample."""
    outputs = []
    for i in range(len(x)):
        plain = model.bake(**{name: float(value[i]) for name, value in theta.items()})
        outputs.append(plain(x[i : i + 1]))
    return torch.cat(outputs)


@contextmanager
def forced(model: wm.Conditioned, route: str) -> Iterator[None]:
    """Take one route wherever it exists, whatever the rule says."""
    routes: dict[str, ForcedRoute | None] = {"rule": None, "dense": "grouped", "bucketed": "by setting"}
    model.route = routes.get(route, route)  # type: ignore[arg-type]
    try:
        yield
    finally:
        model.route = None


class Block(nn.Module):
    """Convolution and norm, as most networks have them, and a convolution without one."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels)
        self.last = nn.Conv2d(channels, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc(self.last(x).mean((2, 3)))


ANGLES = torch.tensor([0.0, 10.0, 200.0, 33.0, 90.0, 271.0])


def block(transform: wm.WeightTransform | None = None, size: int = 9) -> tuple[wm.Conditioned, Tensor]:
    """A conditioned `Block` in float64 whose transform is no longer at its start, and six images for it."""
    torch.manual_seed(0)
    net = Block().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
    x = torch.randn(6, 3, size, size, dtype=torch.float64)
    transform = transform or wm.Warp() + wm.LowRank(2) + wm.Scale()
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=2)}, transform, example=x)
    shake(model)
    return model, x

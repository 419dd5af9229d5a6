"""Law 9, first half: one trace per kind of θ, none when its value changes, and eager's results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from zoo import FAMILIES, conditioned, settings, shake

import weightmorph as wm

LONG = ("warp_grown", "everything")  # what they are made of is tested in the other families
LAYERS = (
    "conv1d_depthwise", "conv2d_circular", "conv3d_groups_stride", "transposed2d_groups", "standardised", "own_padding",
    "called_twice", "linear_tokens", "batchnorm", "layernorm_tokens",
)  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(family: str, dtype: torch.dtype = torch.float64) -> tuple[wm.Conditioned, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4 * 9, 3),
    ).to(dtype)  # fmt: skip
    x = torch.randn(4, 1, 6, 6, dtype=dtype)
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=2)}, FAMILIES[family](), example=x)
    shake(model)
    return model, x


def compiled(model: nn.Module) -> tuple[nn.Module, CompileCounter]:
    """The whole graph or nothing, run by torch's own kernels, and how often it is traced."""
    counter = CompileCounter()
    return torch.compile(model, fullgraph=True, backend=counter), counter


def angles(per_sample: bool) -> list[Tensor]:
    if per_sample:
        return [torch.tensor([0.0, 10.0, 200.0, 33.0]) + k for k in range(3)]
    return [torch.tensor(20.0 * k) for k in range(3)]


def gradients(model: nn.Module, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), list(model.parameters())))


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow) if f in LONG else f for f in FAMILIES])
def test_compiled_equals_eager_with_one_trace(family: str, per_sample: bool) -> None:
    """Outputs and gradients, over changing values of θ, the anchor among them, and optimiser steps."""
    model, x = make(family)
    fast, counter = compiled(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    for theta in angles(per_sample):
        expected, got = model(x, angle=theta), fast(x, angle=theta)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
        wanted = gradients(model, expected)
        for parameter, gradient, want in zip(model.parameters(), gradients(model, got), wanted, strict=True):
            torch.testing.assert_close(gradient, want, rtol=1e-6, atol=1e-9)
            parameter.grad = gradient
        optimiser.step()
    assert counter.frame_count == 1


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_kind_of_layer_compiles(layer: str, per_sample: bool) -> None:
    """Layers with a padding, a normalisation or a weight function of their own; one layer called twice."""
    model, x = conditioned(layer, "lowrank")
    fast, counter = compiled(model)
    for seed in (0, 1):
        theta = {name: value.roll(seed) for name, value in settings(layer).items()}
        if not per_sample:
            theta = {name: value[0] for name, value in theta.items()}
        torch.testing.assert_close(fast(x, **theta), model(x, **theta), rtol=1e-9, atol=1e-9)
    assert counter.frame_count == 1


def test_one_trace_for_each_kind_and_no_more() -> None:
    """Shared and per sample, with and without gradients, float and double: eight, in whatever order they come."""
    model, x = make("scale", torch.float32)
    fast, counter = compiled(model)
    kinds = 0
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        for _ in range(2):
            for grad in (True, False):
                for per_sample in (False, True):
                    for theta in angles(per_sample):
                        with torch.set_grad_enabled(grad):
                            got, expected = fast(x.to(dtype), angle=theta), model(x.to(dtype), angle=theta)
                        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
                        assert got.requires_grad == grad
        kinds += 4
        assert counter.frame_count == kinds


def test_a_python_number_costs_two_traces_at_most() -> None:
    """One for the first, one for all others."""
    model, x = make("lowrank")
    fast, counter = compiled(model)
    for angle in (3.0, 10.0, 90.0, 200.0, 0.0):
        torch.testing.assert_close(fast(x, angle=angle), model(x, angle=angle), rtol=1e-6, atol=1e-9)
    assert counter.frame_count <= 2


def test_a_batch_of_another_size_costs_one_trace_more() -> None:
    """Dynamo then takes the size for a variable."""
    model, x = make("lowrank")
    fast, counter = compiled(model)
    for size in (4, 3, 2, 4):
        theta = torch.arange(float(size))
        torch.testing.assert_close(fast(x[:size], angle=theta), model(x[:size], angle=theta), rtol=1e-6, atol=1e-9)
    assert counter.frame_count == 2


def test_a_compiled_call_leaves_nothing_behind() -> None:
    """Eager and compiled calls alternate; the clone that is traced holds no weights in between."""
    model, x = make("sum")
    fast, _ = compiled(model)
    theta = angles(True)[1]
    before = model(x, angle=theta)
    for _ in range(2):
        fast(x, angle=theta)
        assert model.base.traced.current.context is None
        assert torch.equal(model(x, angle=theta), before)
    assert torch.equal(model(x, angle=0.0), model.frozen()(x))


@pytest.mark.slow
def test_inductor() -> None:
    """One small run through code generation."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(2, 1, 4, 4)
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=1)}, wm.LowRank(1) + wm.Scale(), example=x)
    shake(model)
    fast = torch.compile(model, fullgraph=True)
    for theta in (torch.tensor(30.0), torch.tensor([10.0, 50.0])):
        torch.testing.assert_close(fast(x, angle=theta), model(x, angle=theta), rtol=1e-4, atol=1e-5)

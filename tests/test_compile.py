"""Law 9, first half: one trace per kind of θ, none when its value changes, and eager's results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from zoo import FAMILIES, shake

import weightmorph as wm


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(family: str = "sum") -> tuple[wm.Conditioned, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4 * 16, 3),
    ).double()  # fmt: skip
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=2)}, FAMILIES[family](), example=x)
    shake(model)
    return model, x


def thetas(per_sample: bool) -> list[Tensor]:
    if per_sample:
        return [torch.tensor([0.0, 10.0, 200.0, 33.0]) + k for k in range(3)]
    return [torch.tensor(20.0 * k) for k in range(3)]


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_compiled_equals_eager_with_one_trace(family: str, per_sample: bool) -> None:
    """Outputs and gradients, over changing values of θ and an optimiser step."""
    model, x = make(family)
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    for theta in thetas(per_sample):
        expected = model(x, angle=theta)
        got = compiled(x, angle=theta)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        optimiser.zero_grad()
        expected.square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimiser.zero_grad()
        got.square().sum().backward()
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-6, atol=1e-6)
        optimiser.step()
    assert counter.frame_count == 1


def test_a_trace_for_each_kind_and_no_more() -> None:
    """Shared and per sample, with and without gradients: four."""
    model, x = make()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for per_sample in (False, True):
                for theta in thetas(per_sample):
                    compiled(x, angle=theta)
    assert counter.frame_count == 4


def test_a_python_number_costs_two_traces_at_most() -> None:
    model, x = make()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for angle in (3.0, 10.0, 90.0, 200.0):
        torch.testing.assert_close(compiled(x, angle=angle), model(x, angle=angle), rtol=1e-6, atol=1e-6)
    assert counter.frame_count <= 2


@pytest.mark.slow
def test_inductor() -> None:
    """One small run through code generation."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(2, 1, 4, 4)
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=1)}, wm.LowRank(1) + wm.Scale(), example=x)
    compiled: Any = torch.compile(model, fullgraph=True)
    for theta in (torch.tensor(30.0), torch.tensor([10.0, 50.0])):
        torch.testing.assert_close(compiled(x, angle=theta), model(x, angle=theta), rtol=1e-4, atol=1e-5)

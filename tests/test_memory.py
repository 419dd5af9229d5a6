"""What a call holds: a few samples at a time, recipes in place of large tensors, shared weights that live briefly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from zoo import ANGLES, block, forced, observed, shake

import weightmorph as wm
from weightmorph.execution import Recorder
from weightmorph.layers import chunk_length, chunks, reshape_owned, using
from weightmorph.slots import Grow
from weightmorph.terms import Dense, Term


@pytest.mark.parametrize("route", ["factored", "grouped", "product"])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_a_few_samples_at_a_time_is_all_of_them(route: str, grad: bool) -> None:
    """Outputs and gradients do not depend on how many samples fit the cache."""
    model, x = block()
    results = []
    for cache in (1, 70_000, 2**40):
        model.zero_grad()
        with using(cache=cache), forced(model, route), torch.set_grad_enabled(grad):
            y = model(x, angle=ANGLES)
            if grad:
                y.square().sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        assert bool(grads) == grad
        results.append([y.detach(), *grads])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_chunks_fit_the_cache_and_cover_the_batch() -> None:
    """Powers of two, at least one sample, and the whole batch where it fits."""
    cpu = torch.device("cpu")
    with using(cache=1000, cores=1):
        assert chunk_length(8, 125, cpu) == 8
        assert chunk_length(9, 125, cpu) == 8
        assert chunk_length(9, 160, cpu) == 4
        assert chunk_length(9, 10_000, cpu) == 1
        assert chunk_length(9, 10_000, cpu, least=40_000) == 4
        assert [(s.start, s.stop) for s in chunks(9, 160, cpu)] == [(0, 4), (4, 8), (8, 9)]
        assert chunk_length(9, 10_000, torch.device("cuda")) == 9, "an accelerator's memory is its cache"


@pytest.mark.parametrize("route", ["grouped", "product"])
def test_large_weights_and_patches_are_recomputed_and_not_saved(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd saves how they are made; gradients are those of saving them, bit for bit."""
    model, x = block()
    hooks, saved = torch.autograd.graph.saved_tensors_hooks, list[object]()

    def noting(pack: Callable[[Tensor], object], unpack: Callable[[Any], Tensor]) -> object:
        return hooks(lambda t: saved.append(pack(t)) or saved[-1], unpack)  # type: ignore[func-returns-value]

    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", noting)  # torch's, to see what it is given
    results = []
    for recompute in (0, 2**40):
        saved.clear()
        model.zero_grad()
        with using(recompute=recompute):
            with forced(model, route):
                y = model(x.clone().requires_grad_(), angle=ANGLES)
            recipes = sum(not isinstance(item, Tensor) for item in saved)
            expected = {"grouped": 4, "product": 6}[route]
            assert recipes == (expected if recompute == 0 else 0)
            y.square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)) and len(results[0]) > 10


def test_patches_are_not_saved_for_the_backward_pass() -> None:
    """What autograd saves of the factored route is the input and small matrices, not what the taps see."""
    model, x = block(wm.Warp() + wm.LowRank(2))
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.untyped_storage().nbytes())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), forced(model, "factored"):
        model(x, angle=ANGLES)
    largest_map = 6 * 8 * 9 * 9 * 8  # samples x channels x pixels x bytes
    assert max(saved) <= largest_map


def test_a_tensor_that_nothing_else_holds_is_reshaped_without_a_view() -> None:
    """So that writing into it does not copy its gradient; without gradients, and in another order, it is a reshape."""
    x = torch.ones(2, 3, requires_grad=True)
    owned = reshape_owned(x * 2, (3, 2))
    assert not owned._is_view() and owned.shape == (3, 2)
    owned.add_(1)
    owned.sum().backward()
    assert torch.equal(x.grad, torch.full((2, 3), 2.0))  # type: ignore[arg-type]
    assert torch.equal(reshape_owned(x.detach().t(), (6,)), torch.ones(6))


# Shared weights


LOG: list[str] = []
WEIGHTS: list[StorageWeakRef] = []


@dataclass(frozen=True)
class Noted(Dense):
    """A dense term that notes when it is added to the frozen weight."""

    def add_to(self, total: Tensor, grow: Grow, owned: bool) -> Tensor:
        weight = super().add_to(total, grow, owned)
        LOG.append(f"materialise {self.slot.layer}")
        WEIGHTS.append(StorageWeakRef(weight.untyped_storage()))
        return weight


class Noting(wm.WeightTransform):
    """A family that makes such terms."""

    family = "noting"

    def setup(self, slot: Any, code_dim: int) -> None:
        self.amount = nn.Parameter(torch.zeros(code_dim))

    def delta(self, weight: Tensor, code: Tensor) -> Term:
        change = ((code - self.anchor_code(code)) @ self.amount).reshape(*code.shape[:-1], *(1,) * weight.dim())
        return Noted(self.slot, change * weight)


class Conv(nn.Conv2d):
    """A convolution that notes when it has run, and how many weights are then alive."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        alive = sum(not weight.expired() for weight in WEIGHTS)
        LOG.append(f"run {self.in_channels}, {alive} alive")
        return y


class Net(nn.Module):
    """Two convolutions, one of which may run twice."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.twice = Conv(3, 4, 3, padding=1), Conv(4, 4, 3, padding=1), twice

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        return self.second(x) if self.twice else x


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("twice", [True, False], ids=["read_twice", "read_once"])
def test_large_shared_weights_are_materialised_when_they_are_read(large: bool, twice: bool) -> None:
    """Without gradients, one at a time; the outputs are the same, and a layer called twice makes its weight once."""
    x = torch.randn(32, 3, 12, 12)
    with using(lazy_weight=1 if large else 2**40):
        model = wm.condition(Net(twice), {"angle": wm.Angle("deg")}, Noting(), example=x)
    shake(model)
    with torch.no_grad():
        expected = model.bake(angle=33.0)(x)
    for grad in (False, True):
        LOG.clear()
        WEIGHTS.clear()
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(x, angle=33.0), expected, rtol=1e-4, atol=1e-5)
        if not large or grad:
            first = ["materialise first", "materialise second", "run 3, 2 alive", "run 4, 2 alive"]
            assert [*first, "run 4, 2 alive"][: 5 if twice else 4] == LOG
        elif twice:
            again = ["run 4, 1 alive"] * 2
            assert ["materialise second", "materialise first", "run 3, 1 alive", *again] == LOG
        else:
            assert LOG == ["materialise first", "run 3, 0 alive", "materialise second", "run 4, 0 alive"]


def test_so_small_an_input_that_the_weight_is_not_made() -> None:
    """One row through a wide linear layer: the shared θ works on the activations, and gives what baking gives."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 3)).double()
    x = torch.randn(1, 300, dtype=torch.float64)
    model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2) + wm.Scale(), example=x)
    shake(model)
    recorder, many = Recorder(), Recorder()
    observed(model, recorder)(x, angle=33.0)
    assert ("0.weight", "factored") in [(row.name, row.plan.route) for row in recorder.rows]
    rows = torch.randn(4096, 300, dtype=torch.float64)
    torch.testing.assert_close(
        observed(model, many)(rows, angle=33.0), model.bake(angle=33.0)(rows), rtol=1e-10, atol=1e-10
    )
    assert not many.rows, "with many rows the weight is worth making"
    torch.testing.assert_close(model(x, angle=33.0), model.bake(angle=33.0)(x), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(model(x, angle=33.0), model.bake(angle=33.0)(x), rtol=1e-10, atol=1e-10)
        assert torch.equal(model(x, angle=0.0), net(x)), "the anchor stays the base's to the bit"


class Routed(nn.Module):
    """Gives its layer the samples of a mask alone, as a mixture of experts does."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = nn.Linear(300, 300)

    def forward(self, x: Tensor) -> Tensor:
        mask = x[:, 0] > 0
        y = torch.zeros_like(x)
        y[mask] = self.expert(x[mask])
        return y


@pytest.mark.parametrize("positive", [4, 3, 1, 0])
def test_a_shared_weight_that_is_not_made_serves_any_samples(positive: int) -> None:
    """The example sent all samples through the layer, later calls send some: W(θ) is the same for all of them."""
    torch.manual_seed(0)
    x = torch.randn(4, 300, dtype=torch.float64)
    x[:, 0] = torch.where(torch.arange(4) < positive, 1.0, -1.0)
    example = x.clone()
    example[:, 0] = 1.0
    model = wm.condition(Routed().double(), {"angle": wm.Angle("deg")}, wm.LowRank(2), example=example)
    shake(model)
    torch.testing.assert_close(model(x, angle=33.0), model.bake(angle=33.0)(x), rtol=1e-10, atol=1e-10)


def test_a_tensor_without_axes_is_no_batch() -> None:
    """A time step that comes first says nothing of the number of samples."""

    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.fc(x) * t

    x, t = torch.randn(6, 3, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    model = wm.condition(Timed().double(), {"angle": wm.Angle("deg")}, wm.LowRank(1))
    shake(model)
    rows = [model(t, x[i : i + 1], angle=10.0 * i) for i in range(6)]
    torch.testing.assert_close(model(t, x, angle=10.0 * torch.arange(6)), torch.cat(rows), rtol=1e-10, atol=1e-10)

"""Law 8: threads, activation checkpointing, two processes; and the other things that any module can do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import shake

import weightmorph as wm
from weightmorph.execution import LazyWeights
from weightmorph.model.call import bind
from weightmorph.model.weights import call_weights


class Net(nn.Module):
    """Blocks that may be checkpointed inside the base, and a buffer that the base writes."""

    def __init__(self, inside: str | None = None) -> None:
        super().__init__()
        self.inside = inside
        self.one = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.GroupNorm(2, 4), nn.ReLU())
        self.head = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for block in (self.one, self.two):
            x = block(x) if self.inside is None else checkpoint(block, x, use_reentrant=self.inside == "reentrant")
        return self.head(x.mean((2, 3)))


def make(inside: str | None = None) -> tuple[wm.Conditioned, Tensor]:
    torch.manual_seed(0)
    net = Net(inside).double()
    x = torch.randn(4, 1, 7, 7, dtype=torch.float64)
    model = wm.condition(
        net, {"angle": wm.Angle("deg", harmonics=2)}, wm.Warp() + wm.LowRank(2) + wm.Scale(), example=x
    )
    shake(model)
    return model, x


THETA = {"shared": 33.0, "per_sample": torch.tensor([0.0, 10.0, 200.0, 33.0])}


def gradients(model: wm.Conditioned) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    assert all(g is not None for g in found.values())
    return {name: g.clone() for name, g in found.items() if g is not None}


def run(model: wm.Conditioned, x: Tensor, angle: object) -> tuple[Tensor, dict[str, Tensor]]:
    y = model(x, angle=angle)
    y.square().sum().backward()
    return y.detach(), gradients(model)


def close(got: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(got[0], expected[0], rtol=1e-12, atol=1e-12)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("theta", list(THETA))
@pytest.mark.parametrize("kind", ["reentrant", "non_reentrant"])
def test_checkpointing_inside_the_base(theta: str, kind: str) -> None:
    """Recomputed blocks see the weights of their own call, and gradients are the plain run's."""
    plain, x = make()
    checked, _ = make(kind)
    x = x.requires_grad_()  # reentrant checkpointing needs an input that does
    close(run(checked, x, THETA[theta]), run(plain, x, THETA[theta]))


@pytest.mark.parametrize("theta", list(THETA))
@pytest.mark.parametrize("kind", ["reentrant", "non_reentrant"])
def test_checkpointing_around_the_model(theta: str, kind: str) -> None:
    model, x = make()
    expected = run(model, x, THETA[theta])
    x = x.clone().requires_grad_()
    y = checkpoint(lambda x: model(x, angle=THETA[theta]), x, use_reentrant=kind == "reentrant")
    y.square().sum().backward()
    close((y.detach(), gradients(model)), expected)


@pytest.mark.parametrize("kind", ["reentrant", "non_reentrant"])
def test_two_checkpointed_calls_before_one_backward(kind: str) -> None:
    """The weights of the first call outlive the second."""
    plain, x = make()
    checked, _ = make(kind)
    results = []
    for model in (plain, checked):
        inputs = x.clone().requires_grad_()
        loss = model(inputs, angle=33.0).square().sum() + model(inputs, angle=THETA["per_sample"]).square().sum()
        loss.backward()
        results.append((loss.detach(), gradients(model)))
    close(results[1], results[0])


@pytest.mark.parametrize("kind", [None, "reentrant", "non_reentrant"])
def test_backward_on_another_thread(kind: str | None) -> None:
    model, x = make(kind)
    plain, _ = make()
    x = x.requires_grad_()
    loss = model(x, angle=THETA["per_sample"]).square().sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    _, expected = run(plain, x, THETA["per_sample"])
    close((loss.detach(), gradients(model)), (loss.detach(), expected))


@pytest.mark.parametrize("theta", list(THETA))
def test_a_call_is_a_value(theta: str) -> None:
    """A bound call cannot be changed, and gives the same however often, and after whatever other call, it is run."""
    model, x = make()
    call = bind(model, (x,), {"angle": THETA[theta]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        call.grad = False  # type: ignore[misc]
    weights = call_weights(model, call)
    before = model.base.run(weights, call)
    model(x, angle=90.0)
    assert torch.equal(model.base.run(weights, call), before) and torch.equal(model(x, angle=THETA[theta]), before)


def test_a_block_without_gradients_gets_weights_of_its_own() -> None:
    """A weight that was read without gradients is rebuilt at that read and at all later ones, and at no other."""
    model, _ = make()
    frozen = model.base.frozen
    weights = LazyWeights(frozen, lambda name: -frozen[name], grad=True)
    one, other = "one.0.weight", "two.0.weight"
    assert weights.read(one) is frozen[one]
    with torch.no_grad():
        assert torch.equal(weights.read(one), -frozen[one])
    assert torch.equal(weights.read(one), -frozen[one]) and weights.read(other) is frozen[other]


def test_threads_calling_one_model_do_not_see_each_other() -> None:
    """Four threads, each with its own θ, shared and per sample, with and without gradients."""
    model, x = make()
    thetas: list[object] = [0.0, 33.0, torch.tensor([1.0, 90.0, 200.0, 33.0]), torch.tensor([5.0, 5.0, 5.0, 5.0])]
    expected = [model(x, angle=t).detach() for t in thetas]

    def work(i: int) -> int:
        wrong = 0
        for k in range(25):
            with torch.set_grad_enabled(k % 2 == 0):
                wrong += not torch.allclose(model(x, angle=thetas[i]), expected[i], rtol=1e-11, atol=1e-11)
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 0, 0, 0]


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, x = make()
    wrapped = nn.parallel.DistributedDataParallel(model)
    rows = slice(2 * rank, 2 * rank + 2)
    optimiser = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        wrapped(x[rows], angle=THETA["per_sample"][rows]).square().mean().backward()  # type: ignore[index]
        optimiser.step()
    torch.save(model.state_dict(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ddp_on_two_processes_equals_one() -> None:
    """Each with half of the batch and its own θ; gradients are averaged over both."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (folder,), nprocs=2)
        first, second = (torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    model, x = make()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(x, angle=THETA["per_sample"]).square().mean().backward()
        optimiser.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], value, rtol=1e-10, atol=1e-12)


def test_a_bases_own_buffer_stays_its_own() -> None:
    """A base that counts its calls writes into neither the user's net nor a copy's buffer."""
    torch.manual_seed(0)
    net = Net()
    model = wm.condition(net, {"angle": wm.Angle()}, wm.Scale())
    other = copy.deepcopy(model)
    model(torch.randn(2, 1, 7, 7), angle=3.0)
    assert float(net.calls) == 0 and float(other.frozen().get_buffer("calls")) == 0


def test_deepcopy_shares_the_base_and_not_the_transform() -> None:
    model, x = make()
    other = copy.deepcopy(model)
    torch.testing.assert_close(other(x, angle=33.0), model(x, angle=33.0), rtol=0, atol=0)
    assert other.base.frozen["one.0.weight"] is model.base.frozen["one.0.weight"]
    shake(other, seed=5)
    assert not torch.allclose(other(x, angle=33.0), model(x, angle=33.0))


def test_pickle_round_trips() -> None:
    model, x = make()
    again = pickle.loads(pickle.dumps(model))
    for theta in THETA.values():
        torch.testing.assert_close(again(x, angle=theta), model(x, angle=theta), rtol=0, atol=0)


def test_moves_leave_the_users_net_where_it_is() -> None:
    """`.to()` moves the view; the network keeps its dtype, its storage and its flags."""
    torch.manual_seed(0)
    net = Net()
    model = wm.condition(net, {"angle": wm.Angle()}, wm.LowRank(2))
    weight = net.one[0].weight
    assert model.base.frozen["one.0.weight"].data_ptr() == weight.data_ptr()
    model.double()
    assert weight.dtype == torch.float32 and net.one[0].weight is weight
    assert model(torch.randn(2, 1, 7, 7).double(), angle=[1.0, 2.0]).dtype == torch.float64
    model.to(torch.bfloat16)
    assert model(torch.randn(2, 1, 7, 7).bfloat16(), angle=[1.0, 2.0]).dtype == torch.bfloat16


def test_ema_follows_the_transform() -> None:
    model, x = make()
    ema = torch.optim.swa_utils.AveragedModel(model)
    ema.update_parameters(model)
    shake(model)
    ema.update_parameters(model)
    assert not torch.allclose(ema(x, angle=33.0), model(x, angle=33.0))


def test_the_base_is_not_among_the_modules() -> None:
    model, _ = make()
    assert not any(isinstance(m, nn.Conv2d) for m in model.modules())
    assert all(name.startswith("transform.") for name in model.state_dict())


def test_autocast_on_every_route() -> None:
    """bfloat16 autocast gives bfloat16 outputs near the full ones."""
    model, x = make()
    model, x = model.float(), x.float()
    for theta in THETA.values():
        exact = model(x, angle=theta)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x, angle=theta)
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)

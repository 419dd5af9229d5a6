"""θ from data: against slow loops, against signals whose θ is known exactly, and where there is nothing to know."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import weightmorph as wm
from weightmorph.errors import (
    CheckpointError,
    ExecutionError,
    InputError,
    MissingParameterError,
    ParameterError,
    ParameterLengthError,
    UnknownParameterError,
)
from weightmorph.estimation import attach, infer
from weightmorph.estimation.calls import Calls, Inputs, joined
from weightmorph.estimation.candidates import lay_out
from weightmorph.estimation.energy import Agreement, Entropy, resolve
from weightmorph.estimation.result import spread_of
from weightmorph.estimator import Axis, Estimator, Tap, estimator_of, peak, probe
from weightmorph.inputs import InputTransform
from weightmorph.model import Conditioned
from weightmorph.parameters import Parameter, Theta

N, SURE = 32, 8.0
WAVES = ((1, 4, 6, 9), (2, 5, 7, 11), (3, 8, 10, 12))
ANGLE = wm.Angle("deg", harmonics=1, affine=None)


def turn(signal: Tensor, degrees: Tensor) -> Tensor:
    """Band-limited signals on a circle `(*B, N)`, turned exactly by `(*B)`."""
    waves = torch.fft.rfft(signal.double())
    phase = torch.deg2rad(degrees.double()).unsqueeze(-1) * torch.arange(waves.shape[-1])
    return torch.fft.irfft(waves * torch.polar(torch.ones_like(phase), -phase), n=N).to(signal)


class Turned(nn.Module):
    """W(θ): the templates, turned."""

    def forward(self, weight: Tensor, code: Tensor) -> Tensor:
        degrees = torch.rad2deg(torch.atan2(code[..., 1], code[..., 0]))
        return turn(weight.expand(*degrees.shape, *weight.shape), degrees.unsqueeze(-1))


class Turn(InputTransform):
    """The world turns the signal, an image of one row."""

    def __init__(self) -> None:
        super().__init__(wm.ParameterSpace({"angle": ANGLE}))

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        return turn(x, theta["angle"].reshape(-1, 1, 1).expand(x.shape[:-1]))


def templates(kind: str = "distinct") -> Tensor:
    """Three unit signals that are orthogonal at any two angles; or the second is the first from behind."""
    waves = torch.zeros(3, N // 2 + 1, dtype=torch.complex64)
    for number, mine in enumerate(WAVES):
        waves[number, list(mine)] = torch.polar(torch.ones(4), torch.tensor([0.3, 1.1, 2.9, 4.2]) + number)
    signals = torch.fft.irfft(waves, n=N)
    if kind == "six and nine":
        signals[1] = turn(signals[0], torch.tensor(180.0))
    return signals / signals.norm(dim=1, keepdim=True)


def base(kind: str = "distinct") -> nn.Sequential:
    net = nn.Sequential(nn.Flatten(), nn.Linear(N, 3, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(SURE * templates(kind))
    return net.eval()


def ring(kind: str = "distinct") -> Conditioned:
    """A matched filter, whose templates follow the angle: at the right one it is surest."""
    return wm.condition(base(kind), {"angle": ANGLE}, wm.Custom(Turned()))


def seen(labels: Tensor, degrees: Tensor, kind: str = "distinct") -> Tensor:
    return turn(templates(kind)[labels], degrees).reshape(-1, 1, 1, N)


def away(found: Tensor, truth: Tensor) -> Tensor:
    return (torch.remainder(found - truth + 180, 360) - 180).abs()


LABELS = torch.arange(21) % 3
DEGREES = torch.rand(21, generator=torch.Generator().manual_seed(1)) * 360
X = seen(LABELS, DEGREES)


def slow_entropies(model: Conditioned, x: Tensor, angles: Tensor) -> Tensor:
    """One baked network at a time: `(B, K)`."""
    found = []
    for angle in angles.tolist():
        p = model.bake(angle=angle)(x).softmax(1).double()
        found.append(-(p * p.log()).sum(1).detach())
    return torch.stack(found, 1)


# Searching.


@pytest.mark.parametrize("size", [3, 21])
def test_the_posterior_is_that_of_a_slow_loop(size: int) -> None:
    """Softmax of minus entropy over temperature, candidate by candidate; few images take another route than many."""
    found = infer(ring(), X[:size], temperature=0.05)
    entropies = slow_entropies(ring(), X[:size], torch.arange(36) * 10.0)
    assert found.candidates["angle"].tolist() == pytest.approx([10.0 * k for k in range(36)])
    torch.testing.assert_close(found.posterior.double(), (-entropies / 0.05).softmax(1), rtol=1e-3, atol=1e-5)
    assert found.posterior.shape == (size, 36)
    assert found.runs == 37


@pytest.mark.parametrize("size", [3, 21])
def test_agreement_is_the_entropy_of_the_mean_of_neighbours(size: int) -> None:
    found = infer(ring(), X[:size], objective="agreement", temperature=0.2)
    p = torch.stack([ring().bake(angle=10.0 * k)(X[:size]).softmax(1) for k in range(36)], 1).double().detach()
    mean = (p + p.roll(1, 1) + p.roll(-1, 1)) / 3
    expected = (torch.special.entr(mean).sum(2) / -0.2).softmax(1)
    torch.testing.assert_close(found.posterior.double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", ["entropy", "agreement"])
def test_a_pooled_posterior_adds_up_evidence(objective: Any) -> None:
    """Images that share θ are independent given it."""
    apart = infer(ring(), X, objective=objective, temperature=2.0)
    together = infer(ring(), X, objective=objective, temperature=2.0, pool="batch")
    expected = apart.posterior.double().log().sum(0).softmax(0)
    torch.testing.assert_close(together.posterior.double(), expected, rtol=1e-3, atol=1e-6)
    assert together["angle"].shape == together.confidence.shape == together.abstain.shape == together.score.shape == ()


def test_the_right_angle_is_found() -> None:
    found = infer(ring(), X, temperature=0.01)
    assert float(away(found["angle"], DEGREES).max()) < 2.5, "a quarter of the distance of candidates"
    assert found.outputs.argmax(1).tolist() == LABELS.tolist()
    assert not found.abstain.any()
    assert found["angle"].shape == found.spread["angle"].shape == found.confidence.shape == (21,)


@pytest.mark.parametrize("pool", ["image", "batch"])
def test_outputs_are_those_of_a_call_at_the_estimate(pool: Any) -> None:
    found = infer(ring(), X, pool=pool, batch_size=5)
    torch.testing.assert_close(found.outputs, ring()(X, **found.theta), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.score, Entropy().answer(found.outputs).mean() if pool == "batch" else
                               Entropy().answer(found.outputs))  # fmt: skip


def test_batches_and_routes_change_nothing() -> None:
    """The size of a batch is a matter of time alone."""
    whole, parts = infer(ring(), X), infer(ring(), X, batch_size=2)
    torch.testing.assert_close(whole.posterior, parts.posterior)
    torch.testing.assert_close(whole["angle"], parts["angle"])


def test_a_few_candidates_are_scored_as_all_are() -> None:
    """`some` is a part of `every`, whichever of its two routes it takes, also with neighbours."""
    for energy in (Entropy(), Agreement()):
        model, candidates = ring(), lay_out(ring().space, ["angle"], 8)
        calls = Calls(model, Inputs(X.repeat(12, 1, 1, 1)), {}, energy, 64)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            every = calls.every(candidates)
            for rows in (21, 252):
                chosen = torch.randint(8, (rows, 2), generator=generator)
                few = Calls(model, Inputs(X.repeat(12, 1, 1, 1)[:rows]), {}, energy, 64)
                torch.testing.assert_close(few.some(candidates, chosen), every[:rows].gather(1, chosen))


class Divided(nn.Module):
    """W(θ): what undoes a gain. The code's first column is (θ - 1) / 1."""

    def forward(self, weight: Tensor, code: Tensor) -> Tensor:
        return weight / (1 + code[..., :1]).unsqueeze(-1)


def closeness(output: Tensor) -> Tensor:
    """A user's own objective: the highest logit is what the network gives at its anchor."""
    return (output.amax(1) - SURE) ** 2


@pytest.mark.parametrize("kind", [wm.Interval, wm.LogInterval])
def test_a_range_and_an_objective_of_the_users_own(kind: Any) -> None:
    if kind is wm.LogInterval:
        parameter: Parameter = wm.LogInterval(0.5, 2.0, encode="raw")
        inverse: nn.Module = RawDivided()
    else:
        parameter, inverse = wm.Interval(0.5, 2.0, anchor=1.0), Divided()
    gains = torch.linspace(0.6, 1.9, 21)
    model = wm.condition(base(), {"gain": parameter}, wm.Custom(inverse))
    found = infer(model, gains.reshape(-1, 1, 1, 1) * seen(LABELS, torch.zeros(21)), objective=closeness)
    torch.testing.assert_close(found["gain"], gains, atol=0.02, rtol=0.02)
    assert not found.abstain.any()


class RawDivided(nn.Module):
    def forward(self, weight: Tensor, code: Tensor) -> Tensor:
        return weight / code.unsqueeze(-1)


def test_a_category() -> None:
    """Settings without distances: the spread is the chance of another one."""

    class Lens(nn.Module):
        def forward(self, weight: Tensor, code: Tensor) -> Tensor:
            return torch.einsum("...k,koi->...oi", code, torch.stack([weight, weight.roll(5, 1), -weight]))

    model = wm.condition(base(), {"lens": wm.Categorical(["plain", "shifted", "negative"])}, wm.Custom(Lens()))
    x = torch.cat([seen(LABELS, torch.zeros(21)), seen(LABELS, torch.zeros(21)).roll(5, -1)])
    found = infer(model, x, temperature=0.02)
    assert found["lens"].tolist() == [0.0] * 21 + [1.0] * 21
    best = found.posterior.amax(1)
    torch.testing.assert_close(found.spread["lens"], 1 - best, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.confidence, best)


# Where there is nothing to know.


def test_a_six_that_may_be_a_nine_is_abstained_from() -> None:
    """Two angles half a turn apart explain it equally well, with different labels; others are not affected."""
    x = seen(LABELS, DEGREES, "six and nine")
    found = infer(ring("six and nine"), x, temperature=0.01)
    assert found.abstain[LABELS < 2].all()
    assert not found.abstain[LABELS == 2].any()
    assert float((found.confidence[LABELS < 2] - 0.5).abs().max()) < 0.05
    assert float(found.spread["angle"][LABELS < 2].min()) > 90 > 30 > float(found.spread["angle"][LABELS == 2].max())


def test_a_disc_says_nothing() -> None:
    """Alike from every side: the posterior is flat, and a twelfth of the range to either side holds its share of it."""
    found = infer(ring(), torch.full((2, 1, 1, N), 0.3))
    torch.testing.assert_close(found.posterior, torch.full((2, 36), 1 / 36), atol=1e-4, rtol=0)
    assert found.abstain.all()
    assert found.confidence.tolist() == pytest.approx([7 / 36, 7 / 36], abs=1e-3)


def test_many_images_settle_what_one_cannot() -> None:
    """Sixes alone cannot say where they are; one other image among them can."""
    degrees = torch.full((21,), 250.0)
    x, model = seen(LABELS, degrees, "six and nine"), ring("six and nine")
    sixes = infer(model, x[LABELS < 2], pool="batch", temperature=0.01)
    everything = infer(model, x, pool="batch", temperature=0.01)
    assert bool(sixes.abstain) and not bool(everything.abstain)
    assert float(away(everything["angle"], torch.tensor(250.0))) < 2.5


def test_tolerance_says_what_is_near() -> None:
    found = [infer(ring(), X, tolerance=t, temperature=1.0).confidence for t in (5.0, {"angle": 60.0}, 180.0)]
    assert (found[0] <= found[1]).all() and (found[1] <= found[2]).all()
    assert found[2].tolist() == pytest.approx([1.0] * 21, abs=1e-5)


# A distribution summed up.


def test_spread_is_the_circular_standard_deviation() -> None:
    """Across 0° as anywhere else; against NumPy."""
    candidates = lay_out(ring().space, ["angle"])
    degrees = np.arange(36) * 10.0
    for centre in (0.0, 130.0, 355.0):
        gap = (degrees - centre + 180) % 360 - 180
        p = np.exp(-0.5 * (gap / 25) ** 2)
        p /= p.sum()
        length = abs((p * np.exp(1j * np.deg2rad(degrees))).sum())
        expected = np.rad2deg(math.sqrt(-2 * math.log(length) + (math.radians(10) ** 2) / 12))
        got = spread_of(candidates, torch.tensor(p).float()[None], {"angle": torch.tensor([centre])})["angle"]
        assert float(got) == pytest.approx(expected, rel=1e-4)


def test_spread_of_a_range_is_in_its_unit() -> None:
    space = wm.ParameterSpace({"blur": wm.Interval(0.0, 4.0, unit="px")})
    candidates = lay_out(space, ["blur"], 41)
    values = np.linspace(0, 4, 41)
    p = np.exp(-0.5 * ((values - 2) / 0.5) ** 2)
    p /= p.sum()
    got = spread_of(candidates, torch.tensor(p).float()[None], {"blur": torch.tensor([2.0])})["blur"]
    assert float(got) == pytest.approx(math.hypot(0.5, 0.1 / math.sqrt(12)), rel=1e-3)


@pytest.mark.parametrize(("circular", "best", "move"), [(False, 0, 0.0), (True, 0, None), (False, 2, None)])
def test_the_top_of_a_parabola(circular: bool, best: int, move: float | None) -> None:
    """Exact for a parabola; nothing at an end, unless the last point is a neighbour of the first."""
    top = best + 0.3
    line = torch.tensor([[-(((k - top + 2.5) % 5 - 2.5) ** 2) for k in range(5)]])
    assert float(peak(line, torch.tensor([best]), circular)) == pytest.approx(0.3 if move is None else move, abs=1e-5)


# Candidates.


TWO = wm.ParameterSpace({"angle": ANGLE, "blur": wm.Interval(0.0, 4.0)})
MANY = wm.ParameterSpace({**TWO, "iso": wm.LogInterval(100, 6400), "lens": wm.Categorical(["a", "b"])})


def test_neighbours_on_a_grid() -> None:
    """Round the circle, and not over the end of a range."""
    grid = lay_out(TWO, list(TWO), {"angle": 4, "blur": 3})
    assert grid.shape == (4, 3) and len(grid) == 12
    first = [(round(grid.setting(j)["angle"]), grid.setting(j)["blur"]) for j in grid.neighbours[0].tolist()]
    assert sorted(first) == [(0, 0.0), (0, 2.0), (90, 0.0), (270, 0.0)]


def test_scattered_candidates_fill_the_ranges() -> None:
    scattered = lay_out(MANY, list(MANY))
    assert len(scattered) == 256 and scattered.shape == ()
    for name, parameter in MANY.items():
        values = scattered.theta[name]
        parameter.check(name, values)
        unit = (scattered.coordinates[name] - scattered.coordinates[name].min()) / scattered.axes[name].span
        assert float(unit.max()) > 0.45 and len(values.unique()) == (2 if name == "lens" else 256)
    assert scattered.neighbours.shape == (256, 8)
    near = scattered.distances().gather(1, scattered.neighbours)
    assert (near <= scattered.distances().sort(1).values[:, 8:9] + 1e-6).all()


def test_peaks_are_local_maxima() -> None:
    """The second peak of a distribution, not the runner-up beside the first."""
    grid = lay_out(ring().space, ["angle"])
    gap = [(np.arange(36) * 10.0 - c + 180) % 360 - 180 for c in (40.0, 220.0)]
    evidence = torch.tensor(np.exp(-0.5 * (gap[0] / 20) ** 2) + 0.4 * np.exp(-0.5 * (gap[1] / 20) ** 2))[None].float()
    assert grid.peaks(evidence, 2).tolist() == [[4, 22]]
    assert grid.peaks(evidence, 3)[0, :2].tolist() == [4, 22]


def test_given_candidates() -> None:
    found = infer(ring(), X, candidates={"angle": [0.0, 20.0, 200.0]})
    assert found.posterior.shape == (21, 3)
    assert set(found["angle"].tolist()) <= {0.0, 20.0, 200.0}


@pytest.mark.parametrize("drift", [1.0, 4.0, 12.0, 40.0])
def test_diffusion_has_the_variance_of_the_walk(drift: float) -> None:
    """Also where a step is shorter than the distance of candidates; round the circle as within."""
    moves = lay_out(ring().space, ["angle"]).diffusion({"angle": drift}).double()
    gap = (torch.arange(36) * 10.0 + 180) % 360 - 180
    torch.testing.assert_close(moves.sum(1), torch.ones(36, dtype=torch.float64), atol=1e-5, rtol=0)
    assert float((moves[0] * gap**2).sum().sqrt()) == pytest.approx(drift, rel=0.03)
    torch.testing.assert_close(moves[7].roll(-7), moves[0], atol=1e-6, rtol=0)


def test_diffusion_of_a_range_and_of_a_category() -> None:
    moves = lay_out(MANY, ["lens"]).diffusion({"lens": 0.2})
    torch.testing.assert_close(moves, torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
    moves = lay_out(MANY, ["iso"], 36).diffusion({"iso": 100.0})
    assert float(moves[0, -1]) < 1e-6 and float(moves.sum(1).min()) == pytest.approx(1.0, abs=1e-5)


# Streams.


def walk(size: int = 30) -> tuple[Tensor, Tensor]:
    """Signals that turn by 8° from one to the next, through 0°; some of them say nothing."""
    degrees = (300.0 + 8.0 * torch.arange(size)) % 360
    x = seen(torch.arange(size) % 3, degrees)
    x[torch.arange(size) % 3 == 1] = 0.3
    return x, degrees


def test_a_stream_is_filtered_as_a_slow_loop_would() -> None:
    """Bayes' rule frame by frame, in NumPy."""
    x, _ = walk()
    found = infer(ring(), x, pool="stream", drift=8.0)
    moves = lay_out(ring().space, ["angle"]).diffusion({"angle": 8.0}).double().numpy()
    likelihood = np.exp(-slow_entropies(ring(), x, torch.arange(36) * 10.0).numpy() / 0.1)
    now = np.full(36, 1 / 36)
    for t in range(len(x)):
        now = now * likelihood[t]
        now /= now.sum()
        np.testing.assert_allclose(found.posterior[t].numpy(), now, rtol=2e-3, atol=1e-6)
        now = now @ moves


def test_a_stream_carries_over_what_a_frame_cannot_say() -> None:
    x, degrees = walk()
    alone, along = infer(ring(), x, temperature=0.02), infer(ring(), x, pool="stream", drift=8.0, temperature=0.02)
    blank = torch.arange(30) % 3 == 1
    assert alone.abstain[blank].all() and not along.abstain[blank][1:].any()
    assert float(away(along["angle"], degrees)[2:].max()) < 15 < float(away(alone["angle"], degrees)[blank].max())


def test_a_stream_goes_on() -> None:
    """In two calls as in one."""
    x, _ = walk()
    whole = infer(ring(), x, pool="stream")
    first = infer(ring(), x[:17], pool="stream")
    second = infer(ring(), x[17:], pool="stream", prior=first.posterior[-1])
    torch.testing.assert_close(torch.cat([first.posterior, second.posterior]), whole.posterior, atol=1e-5, rtol=1e-3)


# Several parameters, of which some are known.


class Both(nn.Module):
    def forward(self, weight: Tensor, code: Tensor) -> Tensor:
        turned = Turned()(weight, code[..., :2])
        return turned / (1 + code[..., 2:3]).unsqueeze(-1)


def double() -> Conditioned:
    return wm.condition(base(), {"angle": ANGLE, "gain": wm.Interval(0.5, 2.0, anchor=1.0)}, wm.Custom(Both()))


def test_two_parameters_together() -> None:
    gains = torch.linspace(0.6, 1.8, 21)
    x = gains.reshape(-1, 1, 1, 1) * X
    options: dict[str, Any] = {"objective": closeness, "temperature": 0.5}
    coarse = infer(double(), x, candidates={"angle": 24, "gain": 9}, **options)
    fine = infer(double(), x, candidates={"angle": 36, "gain": 15}, **options)
    # A matched filter that is turned too far but has a smaller gain to undo gives the same logit: a ridge, which an
    # objective of the highest logit alone cannot resolve. Its value is found all the same.
    assert float(fine.score.median()) < 0.3 and float(fine.score.median()) < 0.2 * float(coarse.score.median())
    assert coarse.posterior.shape == (21, 24 * 9)


class Three(nn.Module):
    """W(θ): turned, undoing a gain, and negative for the second lens."""

    def forward(self, weight: Tensor, code: Tensor) -> Tensor:
        sign = code[..., 3:4] - code[..., 4:5]
        return Both()(weight, code[..., :3]) * sign.unsqueeze(-1)


def triple() -> Conditioned:
    space = {"angle": ANGLE, "gain": wm.Interval(0.5, 2.0, anchor=1.0, order=1), "lens": wm.Categorical(["a", "b"])}
    return wm.condition(base(), space, wm.Custom(Three()))


@pytest.mark.parametrize("pool", ["image", "batch"])
def test_three_parameters_are_searched_at_scattered_points(pool: Any) -> None:
    """The best of 256 points by a slow loop; the points are the same in each call."""
    found = infer(triple(), X, pool=pool, temperature=0.01)
    settings = [{name: float(value[k]) for name, value in found.candidates.items()} for k in range(256)]
    with torch.no_grad():
        energies = torch.stack([Entropy().answer(triple().at(**setting)(X)) for setting in settings], 1)
    best = energies.sum(0).argmin() if pool == "batch" else energies.argmin(1)
    assert all(torch.equal(value, found.candidates[name][best]) for name, value in found.theta.items())
    assert set(found.theta) == {"angle", "gain", "lens"} and found.posterior.shape[-1] == len(settings)


@pytest.mark.parametrize("pool", ["image", "batch"])
def test_three_parameters_by_the_head_are_not_bound_to_the_points(pool: Any) -> None:
    model = triple()
    net = attach(model, X)
    with torch.no_grad():
        net.out[0].bias.copy_(torch.randn(36, generator=torch.Generator().manual_seed(0)))
        weights = net(net.read(model.frozen(), (X,), {}))
    found = infer(model, X, method="head", pool=pool)
    for name, value in found.theta.items():
        grid = model.space[name].grid(2000)
        density = net.log_density(weights, {name: grid[None]}).detach()
        top = net.log_density(weights, {name: value.reshape(-1, 1)})[:, 0].detach()
        if pool == "batch":
            density, top = density.sum(0, keepdim=True), top.sum(0, keepdim=True)
        assert (top >= density.amax(1) - 1e-3 * len(X)).all(), name


@pytest.mark.parametrize("each", [False, True])
def test_what_is_known_is_not_inferred(each: bool) -> None:
    gain = torch.linspace(0.6, 1.8, 21) if each else torch.tensor(1.4)
    x = gain.reshape(-1, 1, 1, 1) * X
    found = infer(double(), x, known={"gain": gain}, temperature=0.01)
    assert list(found.theta) == ["angle"]
    assert float(away(found["angle"], DEGREES).max()) < 2.5
    torch.testing.assert_close(found.outputs, double()(x, angle=found["angle"], gain=gain), rtol=1e-4, atol=1e-4)


# The head.


@pytest.mark.parametrize(
    "parameter", [ANGLE, wm.Interval(-1.0, 3.0), wm.LogInterval(0.25, 2.0), wm.Categorical(["a", "b", "c"])]
)
def test_kernels_are_densities(parameter: Parameter) -> None:
    """Each integrates to the length of the range, for densities are relative to the uniform one."""
    axis = Axis(parameter, 12)
    fine = axis if axis.discrete else Axis(parameter, 4001)
    density = axis.log_kernels(fine.values.double()).exp()
    ends = torch.ones(len(fine), dtype=torch.float64)
    if not axis.discrete and axis.period is None:
        ends[0] = ends[-1] = 0.5  # the trapezium rule
    mean = (density * ends[:, None]).sum(0) / ends.sum()
    torch.testing.assert_close(mean, torch.ones(len(axis), dtype=torch.float64), atol=1e-3, rtol=0)


def head(space: Mapping[str, Parameter] | None = None, **options: Any) -> Estimator:
    torch.manual_seed(5)
    return Estimator(wm.ParameterSpace(space or {"angle": ANGLE}), [Tap("", N)], **options).double()


def test_the_mixture_against_numpy() -> None:
    """Von Mises kernels of fixed width with the weights that the layers give, in nats above uniform."""
    net, x = head(bins={"angle": 8}), torch.randn(3, N, 1, dtype=torch.float64)
    weights = net([x])["angle"].detach().exp().numpy()
    values = torch.tensor([[3.0, 100.0], [359.0, 180.0], [7.0, 8.0]], dtype=torch.float64)
    kappa = 1 / (0.7 * math.tau / 8) ** 2
    for b in range(3):
        for s, value in enumerate(values[b].tolist()):
            gaps = np.deg2rad(value - np.arange(8) * 45.0)
            expected = (weights[b] * np.exp(kappa * np.cos(gaps)) / np.i0(kappa)).sum()
            got = net.log_density(net([x]), {"angle": values})[b, s].detach()
            assert float(got) == pytest.approx(math.log(expected), abs=1e-6)
    shared = net.log_density(net([x]), {"angle": values[:1]})
    torch.testing.assert_close(shared[0], net.log_density(net([x]), {"angle": values})[0])


def test_the_density_is_differentiable_in_theta() -> None:
    net = head({"angle": ANGLE, "blur": wm.Interval(0.0, 2.0)})
    weights = net([torch.randn(2, N, 1, dtype=torch.float64)])
    theta = torch.tensor([[10.0], [300.0]], dtype=torch.float64, requires_grad=True)
    blur = torch.tensor([[0.5], [1.7]], dtype=torch.float64, requires_grad=True)
    kept = {name: value.detach() for name, value in weights.items()}
    assert torch.autograd.gradcheck(lambda a, b: net.log_density(kept, {"angle": a, "blur": b}), (theta, blur))


def test_the_likeliest_value_is_the_top_of_the_density() -> None:
    net = head({"angle": ANGLE, "iso": wm.LogInterval(100, 6400), "lens": wm.Categorical(["a", "b", "c"])})
    x = [3 * torch.randn(6, N, 1, dtype=torch.float64)]
    best, weights = net.best(x), net(x)
    for name, parameter in net.space.items():
        grid = parameter.grid(2000).double()
        density = net.log_density(weights, {name: grid[None]})
        top = net.log_density(weights, {name: best[name].double()[:, None]})[:, 0]
        assert (top >= density.amax(1) - 1e-3).all(), name


def test_a_head_is_made_again_from_plain_data() -> None:
    net = head({"angle": ANGLE, "lens": wm.Categorical(["a", "b"])}, bins={"angle": 8}, hidden=5)
    again = Estimator.from_config(net.space, net.config()).double()
    again.load_state_dict(net.state_dict())
    x = [torch.randn(2, N, 1, dtype=torch.float64)]
    assert all(torch.equal(a, b) for a, b in zip(net(x).values(), again(x).values(), strict=True))


class Stages(nn.Module):
    """Two convolutions, and a last layer that says when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.last = nn.Linear(6, 3)
        self.ran: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x))).mean((2, 3))
        self.ran.append("last")
        out: Tensor = self.last(x)
        return out


def test_features_are_read_from_a_map_and_no_further() -> None:
    """By default the last convolution whose map has 64 cells; what follows it in the base does not run."""
    net = Stages()
    model = wm.condition(net, {"angle": ANGLE}, wm.Scale())
    made = attach(model, torch.randn(8, 1, 12, 12))
    assert [tap.layer for tap in made.taps] == ["first"] and made.taps[0].grid == (7, 7)
    root = model.frozen()
    count = len(root.ran)  # type: ignore[arg-type]
    features = made.read(root, (torch.randn(2, 1, 12, 12),), {})
    assert [f.shape for f in features] == [(2, 4, 49)] and len(root.ran) == count  # type: ignore[arg-type]
    assert not root.first._forward_hooks  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("layers", "taps"),
    [
        (["second"], [Tap("second", 6, (6, 6))]),
        (["", "last"], [Tap("", 1, (7, 7)), Tap("last", 3)]),
    ],
)
def test_layers_can_be_named(layers: list[str], taps: list[Tap]) -> None:
    model = wm.condition(Stages(), {"angle": ANGLE}, wm.Scale())
    made = attach(model, torch.randn(8, 1, 12, 12), layers=layers, channels=3, hidden=4)
    assert list(made.taps) == taps and estimator_of(model) is made
    assert model(torch.randn(2, 1, 12, 12), angle="infer").shape == (2, 3)


def test_features_of_a_network_without_maps() -> None:
    """The input itself, and the first layer; of tokens, a row of positions."""
    made = attach(ring(), X)
    assert [tap.layer for tap in made.taps] == ["", "1"]
    net = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2))
    made = attach(wm.condition(net, {"angle": ANGLE}, wm.Scale()), torch.randn(4, 60, 5), layers=["0"])
    assert made.taps[0] == Tap("0", 8, (49,), last=True)
    assert made.read(net, (torch.randn(3, 60, 5),), {})[0].shape == (3, 8, 49)


def test_features_are_standardised() -> None:
    model = wm.condition(Stages(), {"angle": ANGLE}, wm.Scale())
    x = 50 + 9 * torch.randn(64, 1, 12, 12)
    made = attach(model, x)
    (features,) = made.read(model.frozen(), (x,), {})
    scaled = (features.movedim(1, 2) - made.shift0) * made.scale0  # type: ignore[operator]
    torch.testing.assert_close(scaled.mean((0, 1)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.std((0, 1)), torch.ones(4), atol=1e-2, rtol=0)


@pytest.fixture(scope="module")
def with_head() -> Conditioned:
    """A ring with a head that was trained on it, without labels."""
    model = ring()
    x = seen(torch.arange(600) % 3, torch.zeros(600)) + 0.02 * torch.randn(600, 1, 1, N)
    wm.fit(model, x, Turn(), "distillation", predict_parameter="only", steps=250, progress=False, lr=1e-2)
    return model


def test_a_head_learns_the_angle(with_head: Conditioned) -> None:
    found = infer(with_head, X, method="head")
    assert float(away(found["angle"], DEGREES).median()) < 6
    assert found.runs == 1 and found.posterior.shape == (21, 180)
    assert float(found.score.median()) < -1.5, "nats above a uniform guess"


@pytest.mark.parametrize("objective", ["entropy", "agreement"])
def test_both_start_where_the_head_points(with_head: Conditioned, objective: Any) -> None:
    """The evidence is the head's, less the energy of the nearest of its peaks: in a slow loop."""
    found = infer(with_head, X, starts=2, objective=objective, temperature=0.1)
    assert found.method == "both"
    net = estimator_of(with_head)
    assert net is not None
    log_q = net.log_density(
        net(net.read(with_head.frozen(), (X,), {})), {"angle": (torch.arange(36) * 10.0)[None]}
    ).detach()
    calls = Calls(with_head, Inputs(X), {}, resolve(objective), 64)
    grid = lay_out(with_head.space, ["angle"])
    with torch.no_grad():
        energies = calls.every(grid)
    starts = grid.peaks(log_q, 2)
    for b in range(21):
        gaps = torch.stack([away(torch.arange(36) * 10.0, 10.0 * s) for s in starts[b]])
        nearest = starts[b][gaps.argmin(0)]
        expected = (log_q[b] - energies[b, nearest] / 0.1).softmax(0)
        torch.testing.assert_close(found.posterior[b], expected, rtol=1e-3, atol=1e-5)
    assert float(away(found["angle"], DEGREES).median()) < 6


@pytest.mark.parametrize("method", ["head", "both"])
@pytest.mark.parametrize("pool", ["batch", "stream"])
def test_a_head_pools(with_head: Conditioned, method: Any, pool: Any) -> None:
    x = seen(LABELS, torch.full((21,), 123.0))
    found = infer(with_head, x, method=method, pool=pool)
    last = found["angle"] if pool == "batch" else found["angle"][-1]
    assert float(away(last, torch.tensor(123.0))) < 4


def test_infer_in_a_call_is_the_heads_estimate(with_head: Conditioned) -> None:
    net = estimator_of(with_head)
    assert net is not None
    with torch.no_grad():
        angle = net.best(net.read(with_head.frozen(), (X,), {}))["angle"]
        assert torch.equal(with_head(X, angle="infer"), with_head(X, angle=angle))
    assert float(away(angle, infer(with_head, X, method="head")["angle"]).max()) < 2


def test_infer_beside_a_value_that_is_known() -> None:
    model = double()
    attach(model, X)
    assert model(X, angle="infer", gain=1.2).shape == (21, 3)
    assert model(X, angle="infer", gain="infer").shape == (21, 3)


def test_a_category_may_be_called_infer() -> None:
    class First(nn.Module):
        def forward(self, weight: Tensor, code: Tensor) -> Tensor:
            return weight * code[..., :1].unsqueeze(-1)

    model = wm.condition(base(), {"what": wm.Categorical(["plain", "infer"])}, wm.Custom(First()))
    assert torch.equal(model(X, what="infer"), model(X, what=1))


# What any model can do.


def test_a_head_is_saved_copied_and_moved(with_head: Conditioned, tmp_path: Path) -> None:
    with_head.save(tmp_path / "model.safetensors")
    loaded = wm.load(tmp_path / "model.safetensors", base(), transform=wm.Custom(Turned()))
    expected = infer(with_head, X, method="head")["angle"]
    for model in (loaded, copy.deepcopy(with_head), pickle.loads(pickle.dumps(with_head))):
        assert torch.equal(infer(model, X, method="head")["angle"], expected)
    assert {key.partition(".")[0] for key in with_head.state_dict()} == {"estimator"}
    moved = copy.deepcopy(with_head).double()
    assert estimator_of(moved).body.weight.dtype == torch.float64  # type: ignore[union-attr]
    torch.testing.assert_close(infer(moved, X.double(), method="head")["angle"], expected, rtol=1e-4, atol=1e-3)


def test_a_file_without_a_head_is_as_it_was(tmp_path: Path) -> None:
    model = wm.condition(base(), {"angle": ANGLE}, wm.Scale())
    model.save(tmp_path / "model.safetensors")
    assert b"estimator" not in (tmp_path / "model.safetensors").read_bytes()
    assert estimator_of(wm.load(tmp_path / "model.safetensors", base())) is None


def test_a_damaged_head_is_refused(with_head: Conditioned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Estimator, "config", lambda self: {"taps": [{"layer": 3}]})
    with_head.save(tmp_path / "model.safetensors")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="estimator of θ cannot be made again"):
        wm.load(tmp_path / "model.safetensors", base(), transform=wm.Custom(Turned()))


@pytest.mark.parametrize(
    "change", [{"hidden": 2**40}, {"bins": {"angle": "many"}}, {"channels": 0}, {"bins": {"x": 4}}]
)
def test_sizes_from_a_file_are_looked_at(change: dict[str, Any]) -> None:
    made = Estimator(wm.ParameterSpace({"angle": ANGLE}), [Tap("", N)])
    with pytest.raises(ValueError, match=r"sizes from 1 to|bins"):
        Estimator.from_config(made.space, made.config() | change)
    with torch.device("meta"):
        assert Estimator.from_config(made.space, made.config()).body.weight.is_meta


@pytest.mark.parametrize("options", [{}, {"pool": "batch"}, {"method": "search"}])
def test_nothing_is_left_behind(with_head: Conditioned, options: dict[str, Any]) -> None:
    """No gradient, no flag, no random number, no change of the transform or the base."""
    model = copy.deepcopy(with_head).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    one, two = infer(model, X, **options), infer(model, X, **options)
    assert torch.equal(one.posterior, two.posterior) and torch.equal(one["angle"], two["angle"])
    assert model.training and all(m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not one["angle"].requires_grad and not one.outputs.requires_grad


def test_two_threads_infer_at_once(with_head: Conditioned) -> None:
    """Features are read with hooks, on a clone that is the call's own."""
    parts = [X[:7], X[7:14], X[14:]]
    expected = [infer(with_head, x)["angle"] for x in parts]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            found = list(pool.map(lambda x: infer(with_head, x)["angle"], parts))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_network_that_cannot_have_one_theta_per_sample() -> None:
    """Candidates are tried one after the other, so a shared θ can be found."""

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(N, 3, bias=False)
            self.layer.weight = base()[1].weight

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1).reshape(-1, 1, N).transpose(0, 1)).transpose(0, 1)[:, 0]

    model = wm.condition(Folded(), {"angle": ANGLE}, wm.Custom(Turned()), example=X[:2])
    assert model.merged
    found = infer(model, seen(LABELS, torch.full((21,), 40.0))[:5], pool="batch", temperature=0.01)
    assert float(away(found["angle"], torch.tensor(40.0))) < 2.5


class Pair(NamedTuple):
    logits: Tensor
    size: int


def test_outputs_of_several_batches_are_joined() -> None:
    parts = [
        {
            "logits": torch.full((2, 3), k),
            "all": (torch.zeros(2), [torch.full((2,), k)]),
            "n": 4,
            "pair": Pair(torch.zeros(2), 1),
        }
        for k in range(3)
    ]
    whole = joined(parts)
    assert whole["logits"].shape == (6, 3) and whole["all"][1][0].tolist() == [0, 0, 1, 1, 2, 2]
    assert whole["n"] == 4 and whole["pair"].logits.shape == (6,)


def test_inputs_of_other_kinds() -> None:
    """A tuple, a dict, and outputs with logits."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = base()[1]

        def forward(self, x: Tensor, scale: Tensor, *, flat: bool = False) -> dict[str, Tensor]:
            return {"logits": self.layer(x.flatten(1)) * scale[:, None], "x": x}

    model = wm.condition(Two(), {"angle": ANGLE}, wm.Custom(Turned()))
    one = infer(model, (X, torch.ones(21)), temperature=0.01, batch_size=4)
    two = infer(model, {"x": X, "scale": torch.ones(21), "flat": True}, temperature=0.01)
    torch.testing.assert_close(one["angle"], two["angle"])
    assert float(away(one["angle"], DEGREES).max()) < 2.5 and one.outputs["x"].shape == X.shape


def test_the_account_in_words(with_head: Conditioned) -> None:
    text = str(infer(with_head, X))
    assert "angle ± " in text and "inferred per image by both" in text and "of 21 abstained from" in text
    assert "for the batch by search; not abstained from" in str(infer(ring(), X[:1], pool="batch", temperature=0.01))


# Refusals.


def refused(**options: Any) -> Callable[[], object]:
    return lambda: infer(options.pop("model", None) or ring(), options.pop("x", X), **options)


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a plain network": (refused(model=base()), InputError, "expected a conditioned model.*Sequential"),
    "no inputs": (refused(x={}), InputError, "expected inputs"),
    "no image": (refused(x=X[:0]), InputError, "one sample or more, got shape \\(0,"),
    "method": (refused(method="guess"), InputError, "method: expected 'head'"),
    "no head": (refused(method="head"), ParameterError, "no head.*predict_parameter=True.*'search'"),
    "objective": (refused(objective="entorpy"), InputError, "did you mean 'entropy'"),
    "objective's kind": (refused(objective=3), InputError, "expected 'entropy', 'agreement', or a function"),
    "objective's shape": (refused(objective=lambda o: o), InputError, r"of shape \(21,\), got shape \(21, 3\)"),
    "pool": (refused(pool="video"), InputError, "pool: expected 'image'"),
    "starts": (refused(starts=0), InputError, "starts: expected a whole number, 1 or more"),
    "batch_size": (refused(batch_size=True), InputError, "batch_size"),
    "temperature": (refused(temperature=0), InputError, "temperature"),
    "known": (refused(known={"angel": 3.0}), ParameterError, "did you mean 'angle'"),
    "all known": (refused(known={"angle": 3.0}), ParameterError, "nothing is left to infer"),
    "known's length": (
        refused(model=double(), known={"gain": [1.0, 1.0]}), ParameterLengthError, "2 values for 21 samples"
    ),
    "candidates": (refused(candidates=2), InputError, "3 values or more of 'angle'"),
    "candidates' name": (refused(candidates={"angel": 8}), ParameterError, "did you mean 'angle'"),
    "one candidate": (refused(candidates={"angle": [3.0]}), ParameterError, "two settings or more"),
    "drift": (refused(pool="stream", drift=-3.0), ParameterError, "drift: expected a number above 0"),
    "drift's name": (refused(pool="stream", drift={"blur": 3.0}), ParameterError, "'blur' is not inferred"),
    "prior": (refused(pool="stream", prior=torch.ones(7)), InputError, "expected 36 probabilities"),
    "prior without a stream": (refused(prior=torch.ones(36)), InputError, "only a stream"),
    "bins": (lambda: attach(ring(), X, bins={"angle": 1}), ParameterError, "bins: expected 2 or more"),
    "a layer": (lambda: attach(ring(), X, layers=["nope"]), InputError, "no layer 'nope'"),
    "no layer": (lambda: attach(ring(), X, layers=[]), InputError, "one layer or more"),
    "infer without a head": (lambda: ring()(X, angle="infer"), MissingParameterError, "estimator.*predict_parameter"),
    "another name": (lambda: infer(ring(), X[:2])["blur"], UnknownParameterError, "nothing was inferred of 'blur'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_outputs_that_are_no_logits_need_an_objective() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(N, 1))
    model = wm.condition(net, {"angle": ANGLE}, wm.Scale())
    with pytest.raises(InputError, match=r"two classes or more, got shape \(36, 1\).*give objective="):
        infer(model, X[:1])
    assert infer(model, X[:1], objective=lambda output: output[:, 0]).outputs.shape == (1, 1)


def test_inputs_of_another_size_are_refused() -> None:
    model = wm.condition(Stages(), {"angle": ANGLE}, wm.Scale())
    attach(model, torch.randn(8, 1, 12, 12))
    assert model(torch.randn(2, 1, 24, 24), angle="infer").shape == (2, 3), "more pixels, as many cells"
    with pytest.raises(
        InputError, match=r"reads 4 channels on \(7, 7\) cells from 'first', and this input gives 4 on \(5, 5\)"
    ):
        model(torch.randn(2, 1, 5, 5), angle="infer")


def test_a_traced_call_does_not_infer(with_head: Conditioned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(ExecutionError, match=r"eager only.*found\.theta"):
        with_head(X, angle="infer")


def test_a_layer_that_is_never_reached() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.aside = nn.Linear(N, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x.flatten(1))
            return out

    with pytest.raises(InputError, match="'aside' gave no tensor"):
        probe(Aside(), ["layer", "aside"], (X,), {})

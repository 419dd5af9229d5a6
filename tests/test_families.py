"""Law 6: each family agrees with its formula, written again in NumPy from its docstring."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn
from zoo import Bend, shake

import weightmorph as wm
from weightmorph.slots import Slot
from weightmorph.transforms import registry
from weightmorph.transforms.resample import Resampler, covariance

Array = np.ndarray
SPACE = wm.ParameterSpace({"angle": wm.Angle("deg", harmonics=2), "zoom": wm.LogInterval(0.5, 2.0, affine="zoom")})
HOME = np.array(SPACE.anchor_code)
SLOTS = {
    "conv": Slot.of((4, 3, 3, 3)),
    "grouped": Slot("c.weight", "c", "weight", "conv", (4, 3, 3, 3), groups=2, kernel=(3, 3)),
    "depthwise": Slot("c.weight", "c", "weight", "conv", (4, 1, 3, 3), groups=4, kernel=(3, 3)),
    "transposed": Slot("c.weight", "c", "weight", "conv_transpose", (4, 3, 3, 3), groups=2, kernel=(3, 3)),
    "map": Slot.of((5, 18)).as_map((3, 3)),
    "volume": Slot.of((2, 2, 3, 3, 3)),
}


@pytest.fixture(params=list(SLOTS))
def slot(request: pytest.FixtureRequest) -> Slot:
    return SLOTS[request.param]


def build(recipe: wm.WeightTransform, slot: Slot) -> wm.WeightTransform:
    torch.manual_seed(0)
    built = recipe.build(slot, space=SPACE).double()
    shake(built)
    return built


def inputs(slot: Slot) -> tuple[Tensor, Tensor, dict[str, Array]]:
    """A weight, three codes, and the θ that they encode."""
    generator = torch.Generator().manual_seed(3)
    theta = {"angle": torch.tensor([10.0, 90.0, 200.0]), "zoom": torch.tensor([1.0, 1.5, 0.7])}
    code = SPACE.encode(SPACE.prepare(theta, dtype=torch.float64))
    weight = torch.randn(slot.shape, generator=generator, dtype=torch.float64)
    return weight, code, {k: v.double().numpy() for k, v in theta.items()}


def as_matrices(weight: Array, slot: Slot) -> Array:
    """(groups, rows, columns), by loops over the layout that torch documents."""
    if slot.kind == "conv_transpose":
        per = slot.shape[0] // slot.groups
        return np.stack(
            [
                weight[g * per : (g + 1) * per].transpose(1, 0, *range(2, weight.ndim)).reshape(weight.shape[1], -1)
                for g in range(slot.groups)
            ]
        )
    rows = slot.shape[0] // slot.groups
    return np.stack([weight[g * rows : (g + 1) * rows].reshape(rows, -1) for g in range(slot.groups)])


def back(matrices: Array, slot: Slot) -> Array:
    """The way back from `as_matrices`."""
    if slot.kind == "conv_transpose":
        per = slot.shape[0] // slot.groups
        parts = [m.reshape(slot.shape[1], per, *slot.kernel).transpose(1, 0, 2, 3) for m in matrices]
        return np.concatenate(parts)
    return np.concatenate([m.reshape(-1, *slot.shape[1:]) for m in matrices])


def mlp(net: nn.Sequential, code: Array) -> Array:
    first, last = net[0], net[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    w1, b1, w2 = (t.detach().numpy() for t in (first.weight, first.bias, last.weight))
    b2 = 0.0 if last.bias is None else last.bias.detach().numpy()
    return np.tanh(code @ w1.T + b1) @ w2.T + b2


def compare(transform: wm.WeightTransform, slot: Slot, formula: object) -> None:
    """Dense weights against the formula, one code at a time and all at once."""
    weight, code, _ = inputs(slot)
    expected = np.stack([formula(weight.numpy(), c) for c in code.numpy()])  # type: ignore[operator]
    np.testing.assert_allclose(transform(weight, code).dense().detach().numpy(), expected, rtol=1e-10, atol=1e-10)
    alone = transform(weight, code[1]).dense().detach().numpy()
    np.testing.assert_allclose(alone, expected[1], rtol=1e-10, atol=1e-10)
    assert np.abs(expected - weight.numpy()).max() > 1e-3, "the formula must move the weight for the test to mean much"


def test_lowrank(slot: Slot) -> None:
    """W + U diag(g(c) - g(c0)) V, one matrix per group; a depthwise weight is one (channels, taps) matrix."""
    t = build(wm.LowRank(2), slot)
    u, v = t.left.detach().numpy(), t.right.detach().numpy()

    def formula(weight: Array, code: Array) -> Array:
        gain = mlp(t.gains, code) - mlp(t.gains, HOME)
        if slot.depthwise:
            return weight + (u[0] @ np.diag(gain) @ v[0]).reshape(slot.shape)
        return weight + back(np.stack([u[g] @ np.diag(gain) @ v[g] for g in range(len(u))]), slot)

    compare(t, slot, formula)


def test_scale(slot: Slot) -> None:
    """Each output's row times 1 + a·(c - c0)."""
    t = build(wm.Scale(), slot)
    a = t.slope.detach().numpy()

    def formula(weight: Array, code: Array) -> Array:
        matrices = as_matrices(weight, slot)
        gain = 1 + (code - HOME) @ a
        return back(matrices * gain.reshape(matrices.shape[0], -1, 1), slot)

    compare(t, slot, formula)


def test_scale_shifts_biases_and_scales_norms() -> None:
    """b + a·(c - c0), and s (1 + a·(c - c0))."""
    for kind in ("bias", "norm"):
        slot = Slot("n.weight", "n", "weight", kind, (4,))  # type: ignore[arg-type]
        t = build(wm.Scale(), slot)
        a = t.slope.detach().numpy()

        def formula(weight: Array, code: Array, a: Array = a, kind: str = kind) -> Array:
            amount = (code - HOME) @ a
            return weight + amount if kind == "bias" else weight * (1 + amount)

        compare(t, slot, formula)


def test_subspace(slot: Slot) -> None:
    """W + Σ (m_d(c) - m_d(c0)) B_d with m the first D outputs of a softmax over D + 1."""
    t = build(wm.Subspace(2), slot)
    bank = t.bank.detach().numpy()

    def mix(code: Array) -> Array:
        z = np.exp(mlp(t.mixer, code))
        return (z / z.sum())[:2]

    compare(t, slot, lambda w, c: w + np.tensordot(mix(c) - mix(HOME), bank, 1))


def mixed(weight: Array, matrix: Array, slot: Slot) -> Array:
    """Every filter's taps times a matrix."""
    taps = slot.n_taps
    return (weight.reshape(-1, taps) @ matrix).reshape(slot.shape)


def test_lie(slot: Slot) -> None:
    """W expm(Σ u_p A_p), u being radians and the log of the zoom."""
    t = build(wm.Lie(), slot)
    a = t.generator.detach().numpy() * 0.3
    with torch.no_grad():
        t.generator.mul_(0.3)

    def expm(m: Array) -> Array:
        total, term = np.eye(len(m)), np.eye(len(m))
        for k in range(1, 60):
            term = term @ m / k
            total = total + term
        return total

    def formula(weight: Array, code: Array) -> Array:
        u = np.array([np.arctan2(code[1], code[0]), code[4] * np.log(2.0)])
        return mixed(weight, expm(np.tensordot(u, a, 1)), slot)

    compare(t, slot, formula)


def test_lie_composes() -> None:
    """W(a + b) is W(a) transformed by b, within the principal range."""
    space = wm.ParameterSpace({"angle": wm.Angle("deg")})
    slot = SLOTS["conv"]
    t = wm.Lie().build(slot, space=space).double()
    shake(t)

    def at(weight: Tensor, degrees: float) -> Tensor:
        return t(weight, space.encode({"angle": torch.tensor(degrees, dtype=torch.float64)})).dense()

    weight = inputs(slot)[0]
    torch.testing.assert_close(at(at(weight, 40.0), 25.0), at(weight, 65.0))


def prior(slot: Slot, theta: dict[str, float], length: float, nugget: float) -> Array:
    """Ordinary kriging, the textbook system with its Lagrange multiplier, tap by tap."""
    a = np.deg2rad(theta["angle"])
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) * theta["zoom"]
    places = slot.positions().numpy()
    sites = places.copy()
    sites[:, -2:] = (np.linalg.inv(turn) @ places[:, -2:][:, ::-1].T).T[:, ::-1]

    def cov(p: Array, q: Array) -> float:
        d = np.sqrt(3) * np.linalg.norm(p - q) / length
        return float((1 + d) * np.exp(-d))

    n = len(places)
    system = np.ones((n + 1, n + 1))
    system[n, n] = 0
    for i in range(n):
        for j in range(n):
            system[i, j] = cov(sites[i], sites[j]) + nugget * (i == j)
    rows = []
    for p in places:
        right = np.array([cov(s, p) for s in sites] + [1.0])
        rows.append(np.linalg.solve(system, right)[:n])
    return np.array(rows)


def test_warp(slot: Slot) -> None:
    """W (1 + R(θ) - R(θ0) + Σ (c_k - c_0k) L_k), R by ordinary kriging."""
    t = build(wm.Warp(), slot)
    learned = None if t.taps is None else t.taps.detach().numpy()
    _, codes, theta = inputs(slot)
    settings = {tuple(c): {k: v[i] for k, v in theta.items()} for i, c in enumerate(codes.numpy())}

    def formula(weight: Array, code: Array) -> Array:
        still = prior(slot, {"angle": 0.0, "zoom": 1.0}, t.length, t.nugget)
        matrix = np.eye(len(still)) + prior(slot, settings[tuple(code)], t.length, t.nugget) - still
        if learned is not None:
            matrix = matrix + np.tensordot(code - HOME, learned, 1)
        return mixed(weight, matrix, slot)

    compare(t, slot, formula)


@pytest.mark.parametrize("anchored", [True, False])
def test_perfilter_with_a_users_module(anchored: bool) -> None:
    """m(w, c) for each filter, or its difference to m(w, c0)."""
    torch.manual_seed(0)
    inner = nn.Bilinear(9, SPACE.code_dim, 9).double()
    slot = SLOTS["conv"]
    t = build(wm.PerFilter(inner, anchored=anchored), slot)

    def module(w: Array, c: Array) -> Array:
        return np.einsum("ni,oij,j->no", w, inner.weight.detach().numpy(), c) + inner.bias.detach().numpy()

    def formula(weight: Array, code: Array) -> Array:
        taps = weight.reshape(-1, 9)
        value = module(taps, code)
        return (taps + value - module(taps, HOME) if anchored else value).reshape(slot.shape)

    compare(t, slot, formula)


def test_perfilter_linear() -> None:
    """w + Σ (c_k - c_0k) L_k w."""
    slot = SLOTS["conv"]
    t = build(wm.PerFilter("linear"), slot)
    maps = t.module.maps.detach().numpy()
    compare(t, slot, lambda w, c: w + np.einsum("k,kst,ns->nt", c - HOME, maps, w.reshape(-1, 9)).reshape(slot.shape))


def test_custom() -> None:
    """A user's module is taken as it is."""
    slot = SLOTS["conv"]
    t = build(wm.Custom(Bend()), slot)
    amount = float(t.module.amount.detach())
    compare(t, slot, lambda w, c: w + amount * np.sin(w + c[0]))


def test_a_sum_adds_the_differences(slot: Slot) -> None:
    """W + Σ Δ_i."""
    t = build(wm.Warp() + wm.LowRank(2) + wm.Scale() + wm.Subspace(2), slot)
    parts = [part for part in t.parts]
    assert [p.family for p in parts] == ["warp", "lowrank", "scale", "subspace"]
    compare(
        t,
        slot,
        lambda w, c: (
            w
            + sum(
                p(torch.from_numpy(w), torch.from_numpy(c)).dense().detach().numpy()
                - w  # each against the formulas above
                for p in parts
            )
        ),
    )


# What the resampling promises.

PLANES = {
    "turn": {"angle": 33.0, "zoom": 1.0},
    "in": {"angle": 0.0, "zoom": 1.8},
    "out": {"angle": 0.0, "zoom": 0.55},
    "both": {"angle": 140.0, "zoom": 0.8},
}


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (4, 3), (7, 7)])
@pytest.mark.parametrize("theta", list(PLANES))
def test_the_prior_keeps_the_response_to_a_constant(kernel: tuple[int, int], theta: str) -> None:
    """The rows of R sum to one, so a kernel's sum is unchanged, whatever the map."""
    slot = Slot.of((2, 2, *kernel))
    t = wm.Warp(learn=False).build(slot, space=SPACE).double()
    code = SPACE.encode(SPACE.prepare(PLANES[theta], dtype=torch.float64))
    weight = torch.randn(slot.shape, dtype=torch.float64)
    turned = t(weight, code).dense()
    torch.testing.assert_close(turned.sum((-1, -2)), weight.sum((-1, -2)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_a_quarter_turn_of_a_kernel_is_exact(quarters: int, k: int) -> None:
    """Sites coincide with taps, and the kernel turns like the image (without the model's noise term)."""
    slot = Slot.of((2, 3, k, k))
    t = wm.Warp(learn=False, nugget=0.0).build(slot, space=SPACE).double()
    code = SPACE.encode(SPACE.prepare({"angle": 90.0 * quarters, "zoom": 1.0}, dtype=torch.float64))
    weight = torch.randn(slot.shape, dtype=torch.float64)
    torch.testing.assert_close(t(weight, code).dense(), torch.rot90(weight, quarters, (2, 3)), rtol=1e-6, atol=1e-6)


def test_a_flip_of_a_kernel_is_exact() -> None:
    """A map need not be a turn: mirrored images call for mirrored kernels."""
    space = wm.ParameterSpace({"side": wm.Categorical(("left", "right"), affine="flip_x")})
    slot = Slot.of((2, 3, 3, 3))
    t = wm.Warp(learn=False, nugget=0.0).build(slot, space=space).double()
    weight = torch.randn(slot.shape, dtype=torch.float64)
    code = space.encode(space.prepare({"side": ["left", "right"]}, dtype=torch.float64))
    same, mirrored = t(weight, code).dense()
    assert torch.equal(same, weight)
    torch.testing.assert_close(mirrored, weight.flip(-1), rtol=1e-6, atol=1e-6)


def test_zooming_out_does_not_alias() -> None:
    """On images smaller than a tap's spacing the new filter's answer stays near the old one's, unlike nearest taps."""
    slot = Slot.of((1, 1, 5, 5))
    sources = slot.positions()
    plane = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]], dtype=torch.float64)
    r = Resampler(sources, sources, 2.0, 1e-3)(plane)
    assert float(r.abs().sum(-1).max()) < 2.0, "no tap is amplified beyond what cubic sampling does in two dimensions"
    # A smooth blob that the zoom shrinks: x(p) = exp(-|p|²/18).
    blob = torch.exp(-sources.square().sum(-1) / 18)
    shrunk = torch.exp(-(2 * sources).square().sum(-1) / 18)
    torch.testing.assert_close(r @ shrunk, blob, rtol=0.0, atol=0.05)


def test_covariance_is_one_at_zero_and_falls() -> None:
    """A model of images: like pixels are near."""
    d = torch.linspace(0, 6, 50, dtype=torch.float64) ** 2
    c = covariance(d.clone())
    torch.testing.assert_close(covariance(d.clone().requires_grad_()), c)
    assert float(c[0]) == pytest.approx(1.0, abs=1e-9) and bool((c.diff() < 0).all())


def test_translation_moves_a_flattened_map_and_no_kernel() -> None:
    """Convolutions follow a translation by themselves; a Linear over a map does not."""
    space = wm.ParameterSpace({"dx": wm.Interval(-8.0, 8.0, unit="px", affine="translate_x")})
    code = space.encode(space.prepare({"dx": 4.0}, dtype=torch.float64))
    kernel = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    conv = wm.Warp(learn=False).build((1, 1, 3, 3), space=space).double()
    torch.testing.assert_close(conv(kernel, code).dense(), kernel, rtol=1e-2, atol=1e-2)
    slot = Slot.of((1, 16)).as_map((1, 16), pixel=4.0)
    row = torch.zeros(1, 16, dtype=torch.float64)
    row[0, 5] = 1.0
    moved = wm.Warp(learn=False, nugget=0.0).build(slot, space=space).double()(row, code).dense()
    assert int(moved.argmax()) == 6, "four pixels are one position of a map with four pixels a position"


# Joining the library.


def test_the_page_on_extending_runs() -> None:
    """docs/extending.md holds a family, a parameter and an input transform that work as they stand."""
    page = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 10 and not result.failed


def test_every_family_of_the_list_is_public_saved_and_tested() -> None:
    """One entry in `transforms.__all__` does all three; a family that no recipe names is tested with its defaults."""
    families = [name for name in wm.transforms.__all__ if name != "WeightTransform"]
    assert set(families) <= set(wm.__all__)
    assert set(families) - {"Custom"} == set(registry.SHIPPED)
    assert {getattr(wm, name) for name in families} <= {type(make()) for make in zoo.FAMILIES.values()}
    joined = zoo.with_defaults({"scale": wm.Scale, "lowrank": lambda: wm.LowRank(2)}, [wm.Scale, wm.LowRank, wm.Lie])
    assert list(joined) == ["scale", "lowrank", "lie"] and joined["lie"] is wm.Lie


@pytest.mark.parametrize("make", [partial(wm.LowRank, 2), partial(wm.Subspace, 2), wm.PerFilter])
@pytest.mark.parametrize("hidden", ["a", 0, 1.5, True])
def test_hidden_units_are_counted(make: Callable[..., wm.WeightTransform], hidden: Any) -> None:
    with pytest.raises(wm.errors.TransformError, match=rf"expected 1 or more hidden units, got {hidden!r}"):
        make(hidden=hidden)

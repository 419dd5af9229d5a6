"""Laws 1 to 5 of the design, over family x layer x route, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from torch import Tensor, nn
from zoo import CASES, FAMILIES, LAYERS, ROUTES, base, conditioned, forced, one_by_one, settings, shake, space

import weightmorph as wm
from weightmorph.layers import using


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Every family on every layer that it applies to."""
    layer, family = request.param
    return layer, family


def anchor(name: str) -> dict[str, float]:
    return wm.ParameterSpace(space(name)).anchor


@pytest.mark.parametrize("layer", list(LAYERS))
def test_every_layer_of_the_zoo_has_a_conditioned_weight(layer: str) -> None:
    """Not its biases alone, for at least one family: otherwise the laws would say nothing about the layer."""
    families = [family for name, family in CASES if name == layer]
    assert any(slot.kind != "bias" for family in families for slot in conditioned(layer, family)[0].slots.values())


def test_law_1_at_the_anchor_the_base_is_unchanged_bit_for_bit(case: tuple[str, str]) -> None:
    """model(x, θ0) equals net(x) exactly under a shared θ0, and to 1e-12 per sample; away from θ0 it does not."""
    layer, family = case
    model, x = conditioned(layer, family)
    net = model.frozen()
    home = anchor(layer)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(model(x, **home), expected)
        assert torch.equal(model.at(**home)(x), expected)
        per_sample = {name: torch.full((len(x),), value) for name, value in home.items()}
        torch.testing.assert_close(model(x, **per_sample), expected, rtol=1e-12, atol=1e-12)
        mixed = {name: torch.cat((value[:5], settings(layer)[name][5:])) for name, value in per_sample.items()}
        torch.testing.assert_close(model(x, **mixed)[:5], expected[:5], rtol=1e-12, atol=1e-12)
        # Not by much where weights are standardised, which all but cancels a scale of their rows.
        assert not torch.allclose(model(x, **settings(layer)), expected, rtol=1e-6)
    torch.testing.assert_close(model(x, **home), expected, rtol=1e-12, atol=1e-12)


def test_law_1_the_difference_at_the_anchor_is_exactly_zero(case: tuple[str, str]) -> None:
    """Δ(θ0) = 0 as a tensor, for one code, for a batch of them, and beside other codes."""
    layer, family = case
    model, _ = conditioned(layer, family)
    home = torch.tensor(model.space.anchor_code, dtype=torch.float64)
    other = model.space.encode(model.space.prepare(settings(layer, 3), dtype=torch.float64))
    for code in (home, home.expand(4, -1), torch.cat((home[None], other, home[None]))):
        for slot in model.slots.values():
            weight = model.base.frozen[slot.name]
            for term in model.transform.expression(slot, weight, code).terms:
                delta = term.dense()
                rows = delta if code.dim() == 1 else delta[:: max(len(code) - 1, 1)]
                assert not rows.any(), f"{type(term).__name__} of {slot.name} moves the anchor by {rows.abs().max()}"


@pytest.mark.parametrize("route", ROUTES)
def test_law_2_per_sample_equals_baking_each_samples_network(case: tuple[str, str], route: str) -> None:
    """One θ per sample gives what each sample's own baked network gives, on every route, to 1e-10."""
    layer, family = case
    model, x = conditioned(layer, family)
    theta = settings(layer, distinct=2 if route == "bucketed" else None)
    if route == "bucketed":
        x = torch.cat((x, x.flip(0)))[:9]
        theta = settings(layer, 9, distinct=2)
    with forced(model, route):
        got = model(x, **theta)
    torch.testing.assert_close(got, one_by_one(model, x, theta), rtol=1e-10, atol=1e-10)


def test_law_2_shared_equals_baking(case: tuple[str, str]) -> None:
    """One θ for the batch gives what the baked network and `at` give, with and without gradients."""
    layer, family = case
    model, x = conditioned(layer, family)
    theta = {name: float(value[0]) for name, value in settings(layer).items()}
    expected = model.bake(**theta)(x)
    torch.testing.assert_close(model(x, **theta), expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(model(x, **theta), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.at(**theta)(x), expected, rtol=1e-10, atol=1e-10)
    baked = model.bake(**theta).state_dict()
    for name, weight in model.weights(**theta).items():
        torch.testing.assert_close(weight, baked[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("route", ["rule", "bucketed"])
def test_law_3_a_samples_setting_moves_its_output_and_no_other(case: tuple[str, str], route: str) -> None:
    """Changing θ of sample 2 changes output 2 alone."""
    layer, family = case
    model, x = conditioned(layer, family)
    x = torch.cat((x, x))
    theta = settings(layer, 12, distinct=3 if route == "bucketed" else None)
    other = {name: value.clone() for name, value in theta.items()}
    for name in other:
        other[name][2] = theta[name][0 if route == "bucketed" else 3]
    with torch.no_grad():
        before, after = model(x, **theta), model(x, **other)
    moved = (before - after).flatten(1).abs().amax(1) > 1e-12
    assert moved.tolist() == [i == 2 for i in range(12)]


def test_law_4_gradients_arrive_and_the_base_gets_none(case: tuple[str, str]) -> None:
    """After a backward every trainable tensor has a finite gradient; the base has none and is as it was."""
    layer, family = case
    net, x = base(layer)
    net.train()
    flags = [p.requires_grad for p in net.parameters()]
    before = copy.deepcopy(net.state_dict())
    model = wm.condition(net, space(layer), FAMILIES[family](), LAYERS[layer].select, example=x[:2])
    shake(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for theta in (settings(layer), {name: float(v[0]) for name, v in settings(layer).items()}):
        optimiser.zero_grad()
        model(x, **theta).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
            assert bool(parameter.grad.any()), f"{name} has a gradient of zero throughout"
        optimiser.step()
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert net.training
    after = net.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)


@pytest.mark.parametrize("layer", ["conv2d_stride", "conv2d_groups", "transposed2d", "linear_over_map", "batchnorm"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "everything"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per_sample"])
def test_law_5_gradients_agree_with_finite_differences(layer: str, family: str, shared: bool) -> None:
    """For the transform, for θ and for x, also at the anchor."""
    model, x = conditioned(layer, family)
    x = x[:2].requires_grad_()
    names, weights = zip(*list(model.named_parameters()), strict=True)
    # Away from the principal value's cut at 180°, where Lie's coordinate jumps.
    theta = {"angle": torch.tensor([25.0, 0.0]), "zoom": torch.tensor([1.3, 1.0])}
    theta = {k: (v[0] if shared else v).double().requires_grad_() for k, v in theta.items()}

    def run(x: Tensor, angle: Tensor, zoom: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, state, (x,), {"angle": angle, "zoom": zoom})

    inputs = (x, theta["angle"], theta["zoom"], *[w.detach().requires_grad_() for w in weights])
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("route", ["dense", "product"])
def test_law_5_gradients_are_the_same_where_weights_are_recomputed(case: tuple[str, str], route: str) -> None:
    """Large weights and patches are recomputed in the backward pass; the same is asked of small ones here."""
    layer, family = case
    model, x = conditioned(layer, family)
    shake(model)
    theta, gradients = settings(layer), []
    for size in (2**40, 0):
        inner = x.clone().requires_grad_()
        with using(recompute=size), forced(model, route):
            y = model(inner, **theta)
            # The weight of a loss that no two samples share.
            loss = (y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum()
            gradients.append(torch.autograd.grad(loss, [inner, *model.parameters()], allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        assert one is None if other is None else torch.equal(one, other)


@pytest.mark.parametrize("route", ["shared", "rule", "factored", "dense", "product"])
@pytest.mark.parametrize(  # torch's own circular padding writes into views
    ("layer", "family"), [case for case in CASES if case[0] != "conv2d_circular"]
)
def test_law_5_no_gradient_passes_through_a_view_that_was_written_to(layer: str, family: str, route: str) -> None:
    """Autograd copies such a gradient twice: that of the activations, or that of all samples' weights."""
    model, x = conditioned(layer, family)
    theta = settings(layer)
    if route == "shared":
        theta = {name: value[0] for name, value in theta.items()}
    with forced(model, "rule" if route == "shared" else route):
        y = model(x.requires_grad_(), **theta)
    seen, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            assert type(node).__name__ != "CopySlices"
            waiting += [following for following, _ in node.next_functions]
    assert seen


def test_law_3_batchnorm_without_running_statistics_is_refused_per_sample() -> None:
    """Its samples would see each other; under a shared θ it works."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))
    model = wm.condition(net, {"angle": wm.Angle()}, wm.Scale())
    x = torch.randn(4, 1, 5, 5)
    with pytest.raises(wm.errors.ExecutionError, match=r"'1'.*running statistics"):
        model(x, angle=[0.0, 1.0, 2.0, 3.0])
    with pytest.raises(wm.errors.ExecutionError, match=r"'1'.*running statistics"):
        model(x, angle=[3.0, 3.0, 3.0, 3.0])  # whether it works must not hang on the values
    assert model(x, angle=3.0).shape == (4, 2, 3, 3)


NO_EMPTY_BATCH = {"instancenorm"}
"""Networks that torch itself does not run on an empty batch."""


@pytest.mark.parametrize("layer", list(LAYERS))
def test_batches_of_one_and_of_none(layer: str) -> None:
    """A batch of one keeps its axis, under a shared θ and with its own; an empty one gives an empty output."""
    model, x = conditioned(layer, "sum" if zoo.applies(layer, "sum") else "scale")
    theta = settings(layer, 1)
    shared = {k: v[0] for k, v in theta.items()}
    one = model(x[:1], **theta)
    torch.testing.assert_close(one, model(x[:1], **shared), rtol=1e-10, atol=1e-10)
    if layer not in NO_EMPTY_BATCH:
        none = model(x[:0], **{k: v[:0] for k, v in theta.items()})
        assert none.shape == model.frozen()(x[:0]).shape

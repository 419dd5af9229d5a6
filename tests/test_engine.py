"""The engine: what it makes together, what it makes fast, and how it decides; each against its slow form."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from zoo import FAMILIES, LAYERS, Bend, applies, conditioned, forced, one_by_one, settings, shake

import weightmorph as wm
from weightmorph import errors
from weightmorph.execution import costs, kept, make, making, norm, planner, rule, runs
from weightmorph.execution.batch import Batch
from weightmorph.execution.desk import Desk
from weightmorph.execution.patches import Geometry, mixed_convolution
from weightmorph.execution.rule import Kind, Layer
from weightmorph.layers.convolution import PLAIN, Convolution
from weightmorph.model.late import unmade
from weightmorph.slots import Slot
from weightmorph.terms import WeightExpression
from weightmorph.transforms.base import CoefficientTransform

CARRIED = [name for name in FAMILIES if name not in ("perfilter_linear", "perfilter_mlp", "custom")]


class Block(nn.Module):
    """Convolution and norm, as most networks have them, and a convolution without one."""

    def __init__(self, channels: int = 8, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, channels, 3, padding=1), norm(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, 2, 1, bias=False), norm(channels)
        self.last = nn.Conv2d(channels, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc(self.last(x).mean((2, 3)))


def block(
    transform: wm.WeightTransform | None = None, size: int = 9, **kwargs: object
) -> tuple[wm.Conditioned, Tensor]:
    torch.manual_seed(0)
    net = Block().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
    x = torch.randn(6, 3, size, size, dtype=torch.float64)
    transform = transform or wm.Warp() + wm.LowRank(2) + wm.Scale()
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=2)}, transform, example=x, **kwargs)  # type: ignore[arg-type]
    shake(model)
    return model, x


ANGLES = torch.tensor([0.0, 10.0, 200.0, 33.0, 90.0, 271.0])


# Made together


@pytest.mark.parametrize("family", CARRIED)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per_sample"])
def test_carriers_made_together_are_those_made_one_by_one(family: str, shared: bool) -> None:
    """Whatever the slots' sizes, and in one handful of operations."""
    model, _ = block(FAMILIES[family]())
    code = model._encode(model._prepare({"angle": 33.0 if shared else ANGLES}))
    slots = list(model.slots.values())
    together = model.transform.expressions(slots, model._frozen, code)
    for slot in slots:
        alone = model.transform.expression(slot, model._frozen[slot.name], code)
        torch.testing.assert_close(together[slot.name].dense(), alone.dense(), rtol=1e-12, atol=1e-12)
        assert together[slot.name].batch == alone.batch == (() if shared else (6,))


def test_a_family_that_only_inherits_the_batched_form_is_asked_itself() -> None:
    """A user's subclass may have changed what a carrier is."""

    class Half(wm.LowRank):
        def coefficient(self, code: Tensor) -> Tensor:
            return super().coefficient(code) / 2

    model, _ = block(Half(2))
    code = model._encode(model._prepare({"angle": 33.0}))
    made = model.transform.expressions(list(model.slots.values()), model._frozen, code)
    for name, expression in made.items():
        (built,) = model.transform.of(model.slots[name])
        assert isinstance(built, CoefficientTransform)
        torch.testing.assert_close(expression.terms[0].carrier[0], built.coefficient(code))


def test_the_code_side_does_not_grow_with_depth() -> None:
    """Operations per forward on the code side: the same number for three blocks and for twelve, but for one a slot."""

    def count(depth: int) -> int:
        net = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(depth)])
        model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.Warp() + wm.LowRank(2))
        code = model._encode(model._prepare({"angle": ANGLES}))
        with torch.no_grad(), torch.profiler.profile() as seen:
            for kind, _, members in model.transform.groups:
                kind.coefficients(members, code)
        views = "unbind select slice as_strided view reshape expand unsqueeze transpose split narrow permute t".split()
        return sum(e.count for e in seen.key_averages() if e.key.removeprefix("aten::") not in views)

    assert count(12) == count(3)


# Made fast


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("layer", ["conv2d", "conv1d", "conv3d", "depthwise", "conv2d_groups", "transposed", "linear"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per_sample"])
def test_making_a_weight_is_what_dense_says(family: str, layer: str, shared: bool) -> None:
    """`make` against the oracle, and exactly the frozen weight at the anchor."""
    layer = layer if layer in LAYERS else next(name for name in LAYERS if layer.split("_")[0] in name)
    if not applies(layer, family):
        pytest.skip("the family has nothing to do here")
    model, _ = conditioned(layer, family)
    shake(model)
    theta = settings(layer)
    if shared:
        theta = {name: value[1] for name, value in theta.items()}
    code = model._encode(model._prepare(theta))
    home = code.new_tensor(model.space.anchor_code)
    for name, slot in model.slots.items():
        weight = model._frozen[name]
        expression = model.transform.expression(slot, weight, code)
        torch.testing.assert_close(make(expression), expression.dense(), rtol=1e-12, atol=1e-12)
        still = model.transform.expression(slot, weight, home)
        if model.anchored:
            assert torch.equal(make(still), still.dense())


@pytest.mark.parametrize("taps", [3, 5, 9])
@pytest.mark.parametrize("slow", [True, False])
def test_filters_mixed_several_at_once_are_those_mixed_one_by_one(
    taps: int, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the machine prefers."""
    monkeypatch.setattr(making, "THIN_IS_SLOW", slow)
    torch.manual_seed(taps)
    filters, mix = (torch.randn(*shape, dtype=torch.float64) for shape in ((256, taps), (3, taps, taps)))
    expected = torch.einsum("ft,btu->bfu", filters, mix)
    torch.testing.assert_close(making.mixed(filters, mix), expected, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_one_mixing_of_many_filters_is_that_of_one_product() -> None:
    """It is made in pieces, which can run on several cores."""
    torch.manual_seed(0)
    filters = torch.randn(making.MANY_FILTERS, 9, dtype=torch.float64)
    mix = torch.randn(9, 9, dtype=torch.float64, requires_grad=True)
    found = making.mixed(filters, mix)
    torch.testing.assert_close(found, filters @ mix, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(found)
    (grad,) = torch.autograd.grad((found * weight).sum(), mix)
    torch.testing.assert_close(grad, filters.t() @ weight, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("size", [3, 7], ids=["few_pixels", "many"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shared", [False, True])
def test_scale_and_shift_in_one_pass_are_a_multiply_and_an_add(size: int, last: bool, shared: bool) -> None:
    """However the input lies, values, gradients and gradients of gradients."""
    torch.manual_seed(0)
    x = torch.randn(4, 5, size, size, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    batch = () if shared else (4,)
    scale, shift = (torch.randn(*batch, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    wide = (1 if shared else 4, 5, 1, 1)
    torch.testing.assert_close(norm.affine(x, scale, shift), x * scale.reshape(wide) + shift.reshape(wide))
    assert torch.autograd.gradcheck(norm.affine, (x, scale, shift), fast_mode=True)
    assert torch.autograd.gradgradcheck(norm.affine, (x, scale, shift), fast_mode=True)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("update", [True, False], ids=["low_rank", "taps_alone"])
def test_mixed_patches_are_the_mixed_convolution(dims: int, update: bool) -> None:
    """Values, gradients and gradients of gradients, over strides, dilation, padding and a grown support."""
    torch.manual_seed(dims)
    stride, padding, dilation = (2, 1, 1)[:dims], (1, 0, 2)[:dims], (1, 2, 1)[:dims]
    grow = ((0, 1), (1, 1), (0, 0))[:dims]
    size, c, o, t, r = 5, 3, 4, 3**dims, 2
    call = Convolution(PLAIN[dims], dims, stride, padding, dilation, 1)
    x = torch.randn(size, c, *(7, 6, 5)[:dims], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(o, c, *(3,) * dims, dtype=torch.float64)
    g = Geometry.of(call, x, (3,) * dims, grow)
    wide = torch.Size(g.kernel).numel()
    mix = torch.randn(size, t, wide, dtype=torch.float64, requires_grad=True)
    left = torch.randn(size, o, r, dtype=torch.float64, requires_grad=True)
    right = torch.randn(r, wide * c, dtype=torch.float64, requires_grad=True)
    flat = weight.reshape(o, c * t)

    def fast(*given: Tensor) -> Tensor:
        return mixed_convolution(given[0], flat, given[1], given[2:] if update else None, g)  # type: ignore[arg-type]

    inputs = (x, mix, left, right) if update else (x, mix)
    rows = []
    for b in range(size):
        dense = (weight.reshape(o * c, t) @ mix[b]).reshape(o, c, *g.kernel)
        if update:
            dense = dense + (left[b] @ right).reshape(o, wide, c).transpose(1, 2).reshape(dense.shape)
        rows.append(call(x[b : b + 1], dense, grow=grow))
    torch.testing.assert_close(fast(*inputs), torch.cat(rows), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(fast, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(fast, inputs, fast_mode=True)


@pytest.mark.parametrize("route", ["factored", "grouped", "product"])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_a_few_samples_at_a_time_is_all_of_them(route: str, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients do not depend on how many samples fit the cache."""
    model, x = block()
    found = []
    for cache in (1, 70_000, 2**40):
        monkeypatch.setattr(runs, "CACHE", cache)
        model.zero_grad()
        with forced("dense" if route == "grouped" else route), torch.set_grad_enabled(grad):
            y = model(x, angle=ANGLES)
            if grad:
                y.square().sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        assert bool(grads) == grad
        found.append([y.detach(), *grads])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("route", ["grouped", "product"])
def test_large_weights_and_patches_are_made_again_and_not_kept(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd saves how they are made; gradients are those of keeping them, bit for bit."""
    model, x = block()
    hooks, saved = torch.autograd.graph.saved_tensors_hooks, list[object]()

    def noting(pack: Callable[[Tensor], object], unpack: Callable[[Any], Tensor]) -> object:
        return hooks(lambda t: saved.append(pack(t)) or saved[-1], unpack)  # type: ignore[func-returns-value]

    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", noting)
    found = []
    for large in (0, 2**40):
        monkeypatch.setattr(kept, "LARGE", large)
        saved.clear()
        model.zero_grad()
        with forced("dense" if route == "grouped" else route):
            y = model(x.clone().requires_grad_(), angle=ANGLES)
        made = sum(not isinstance(item, Tensor) for item in saved)
        expected = {"grouped": 4, "product": 6}[route]
        assert made == (expected if large == 0 else 0)
        y.square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and len(found[0]) > 10


def test_large_shared_weights_are_made_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, one at a time; the outputs are the same, and a layer called twice makes its weight once."""
    from weightmorph.model import late

    model, x = block()
    with torch.no_grad():
        expected = model(x, angle=33.0)
        monkeypatch.setattr(late, "LARGE_WEIGHT", 1)
        assert model.seen and late.read_once(model.slots, model.seen) == frozenset(model.slots)
        torch.testing.assert_close(model(x, angle=33.0), expected, rtol=1e-12, atol=1e-12)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.relu(self.conv(x)))

    twice = wm.condition(Twice(), {"angle": wm.Angle("deg")}, wm.LowRank(1), example=x.float())
    assert twice.seen and not late.read_once(twice.slots, twice.seen), (
        "LARGE_WEIGHT is 1 here, so it is the two readers"
    )


def test_so_small_an_input_that_the_weight_is_not_made() -> None:
    """One row through a wide linear layer: the shared θ works on the activations, and says what baking says."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 3)).double()
    x = torch.randn(1, 300, dtype=torch.float64)
    model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2) + wm.Scale(), example=x)
    shake(model)
    expressions = model.transform.expressions(
        list(model.slots.values()), model._frozen, model._encode(model._prepare({"angle": 33.0}))
    )
    assert model.seen and "0.weight" in unmade(expressions, model.seen, 1)
    assert not unmade(expressions, model.seen, 4096), "with many rows the weight is worth making"
    torch.testing.assert_close(model(x, angle=33.0), model.bake(angle=33.0)(x), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(model(x, angle=33.0), model.bake(angle=33.0)(x), rtol=1e-10, atol=1e-10)
        assert torch.equal(model(x, angle=0.0), net(x)), "the anchor stays the base's to the bit"


# Norms


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda c: nn.GroupNorm(2, c), nn.InstanceNorm2d, None])
def test_a_convolution_before_a_conditioned_norm_leaves_its_rows_to_it(norm: object) -> None:
    """The norm scales the same channels; by name the rows are scaled all the same, and without an example too."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = norm(4) if callable(norm) else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    x = torch.randn(2, 3, 8, 8)
    model = wm.condition(Net(), {"angle": wm.Angle("deg")}, wm.Scale(), example=x)
    left = norm in (nn.BatchNorm2d,) or (callable(norm) and norm is not nn.InstanceNorm2d)  # InstanceNorm has no scale
    assert ("conv.weight" not in model.slots) == left
    assert ("conv.bias" not in model.slots) == left
    assert "conv.weight" in wm.condition(Net(), {"angle": wm.Angle("deg")}, wm.Scale()).slots
    named = wm.condition(Net(), {"angle": wm.Angle("deg")}, wm.Scale(), select="conv*", example=x)
    assert "conv.weight" in named.slots


def test_a_convolution_that_something_else_reads_as_well_keeps_its_rows() -> None:
    """A norm beside another reader cannot do the scale's work."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    model = wm.condition(Net(), {"angle": wm.Angle("deg")}, wm.Scale(), example=torch.randn(2, 3, 4, 4))
    assert "conv.weight" in model.slots


def test_all_norms_together_are_each_norm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One multiply and one add per layer, made in one row, also setting by setting."""
    from weightmorph.model import conditioned as room

    model, x = block()
    repeated = torch.tensor([5.0, 50.0]).repeat_interleave(4)
    wide = torch.cat([x, x[:2]])
    together = model(x, angle=ANGLES), model(wide, angle=repeated)
    monkeypatch.setattr(room, "prepared", lambda *_: {})
    alone = model(x, angle=ANGLES), model(wide, angle=repeated)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alone[0], one_by_one(model, x, {"angle": ANGLES}), rtol=1e-10, atol=1e-10)


def test_norms_follow_a_move_and_a_copy() -> None:
    """What was gathered of the base's norms is that of the moved or copied base."""
    model, x = block()
    single = copy.deepcopy(model).float()
    torch.testing.assert_close(single(x.float(), angle=ANGLES), model(x, angle=ANGLES).float(), rtol=1e-4, atol=1e-4)
    assert all(n.entries["_buffers"]["running_mean"].dtype == torch.float32 for n in single._norms)


# Deciding

CONV = Layer(positions=64, groups=1, outputs=32, inputs=16, taps=9, grown=9, batch=16)
ALL = (Kind("taps"), Kind("rank", 8), Kind("rows"), Kind("basis", 3))


def test_every_route_that_is_offered_is_exact() -> None:
    """Each of the planner's candidates, on each layer of a network, gives what baking gives."""
    model, x = block()
    expected = one_by_one(model, x, {"angle": ANGLES})
    names = set()

    def all_of_them(x: Tensor, expression: object, layer: Layer, plan: rule.Plan, run: object) -> Tensor:
        y = run(x, expression, plan)  # type: ignore[operator]
        for other in rule.candidates(rule.kinds(expression), layer):  # type: ignore[arg-type]
            names.add(other.name)
            torch.testing.assert_close(run(x, expression, other), y, rtol=1e-10, atol=1e-10)  # type: ignore[operator]
        return y  # type: ignore[no-any-return]

    torch.testing.assert_close(model._watched(all_of_them)(x, angle=ANGLES), expected, rtol=1e-10, atol=1e-10)
    beside = {"grouped, low rank on activations", "product, low rank on activations"}
    assert names == {"factored", "grouped", "product"} | beside


@pytest.fixture(params=["AVX2", "AVX512"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rule as it is on one kind of machine, whichever this one is."""
    monkeypatch.setattr(rule, "COSTS", getattr(costs, request.param))
    for remembered in (rule.remembered, rule.bucketed, rule.spreads):
        remembered.cache_clear()
    yield
    for remembered in (rule.remembered, rule.bucketed, rule.spreads):
        remembered.cache_clear()


@pytest.mark.usefixtures("machine")
def test_the_rule_follows_size() -> None:
    """Few channels on a large map: dense weights. Many channels on a small one: the activations. And it says why."""
    early = Layer(positions=1024, groups=1, outputs=64, inputs=64, taps=9, grown=9, run=32, batch=16)
    late = Layer(positions=16, groups=1, outputs=512, inputs=512, taps=9, grown=9, run=4, batch=16)
    terms = (Kind("taps"), Kind("rank", 8))
    assert rule.plan(terms, early).route == "grouped"
    assert rule.plan(terms, late).route == "factored"
    assert "x the frozen layer, against" in rule.plan(terms, late).reason


@pytest.mark.usefixtures("machine")
def test_layers_run_setting_by_setting_where_that_pays() -> None:
    """Few settings with many samples each, of a sum that is dear per sample; and not where weights are large."""
    early = Layer(positions=784, groups=1, outputs=64, inputs=64, taps=9, grown=9, run=28, batch=64)
    late = Layer(positions=16, groups=1, outputs=512, inputs=512, taps=9, grown=9, run=4, batch=16)
    terms = (Kind("taps"), Kind("rank", 8))
    assert [rule.bucketed(terms, early, n) for n in (2, 4, 64)] == [True, True, False]
    assert not rule.bucketed(terms, late, 4)
    model, x = block()
    x, few = x.repeat(8, 1, 1, 1), torch.tensor([20.0, 50.0, 310.0]).repeat(16)
    counts: list[int] = []

    def decided(terms: tuple[Kind, ...], layer: Layer, settings: int) -> bool:
        counts.append(settings)
        return len(counts) % 2 == 0  # layers of both kinds in one network

    with mock.patch.object(rule, "bucketed", decided):
        torch.testing.assert_close(model(x, angle=few), one_by_one(model, x, {"angle": few}))
    assert counts == [3] * 4
    with mock.patch.object(rule, "bucketed", decided):
        model(x[:18], angle=ANGLES.repeat(3))
    assert len(counts) == 4, "with fewer than four samples a setting nobody asks"


@pytest.mark.parametrize("size", [1, 8])
def test_one_setting_for_all_samples_is_a_shared_one(size: int) -> None:
    """Given sample by sample, it costs what a shared θ costs, and its gradient comes back."""
    model, x = block()
    x = x[:1].repeat(size, 1, 1, 1)
    theta = torch.full((size,), 40.0, dtype=torch.float64)
    assert torch.equal(model(x, angle=theta), model(x, angle=40.0))
    assert "one θ for the batch" in model.summary(x, angle=theta)
    theta.requires_grad_()
    got = torch.autograd.grad(model(x, angle=theta).square().sum(), theta)[0]
    step = 1e-5
    with torch.no_grad():
        ends = [model(x, angle=40.0 + d).square().sum() for d in (step, -step)]
    torch.testing.assert_close(got.sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("layer", [CONV, Layer(64, 16, 1, 1, 9, 9), Layer(1, 1, 10, 64, 49, 49, "linear")])
def test_costs_are_positive_and_sorted(layer: Layer) -> None:
    """A cost rule that could be negative, or that lists the worst first, would mislead."""
    for terms in (ALL, ALL[:1], ALL[1:2], ALL[2:3], (Kind("dense"),), (Kind("whole"),)):
        known = rule.candidates(terms, layer)
        assert known and all(p.cost > 0 and p.flops > 0 and p.numbers > 0 for p in known)
        assert [p.cost for p in known] == sorted(p.cost for p in known)


@pytest.mark.usefixtures("machine")
def test_a_dense_family_beside_a_low_rank_leaves_that_where_it_is_cheap() -> None:
    """A sum executes each part on its best route: the dense part on weights, the low rank on activations."""
    layer = Layer(positions=16, groups=1, outputs=512, inputs=512, taps=9, grown=9, run=4, batch=16)
    chosen = rule.plan((Kind("dense"), Kind("rank", 8)), layer)
    assert chosen.route in ("grouped", "product") and chosen.low_rank == "activations"


def test_tracing_never_looks_at_the_batch() -> None:
    """A graph with a symbolic batch gets the product or the factored route, and no cost with a batch in it."""
    layer = Layer(positions=64, groups=1, outputs=32, inputs=16, taps=9, grown=9, tracing=True)
    assert {p.route for p in rule.candidates(ALL[:2], layer)} == {"factored", "product"}


# Measured plans


@pytest.mark.parametrize("training", [True, False])
def test_autotune_measures_every_route_and_keeps_the_fastest(training: bool) -> None:
    """Outputs stay what they were, the plan is JSON, and the next call follows it."""
    model, x = block()
    before = model(x, angle=ANGLES)
    assert model.plan is None
    with torch.set_grad_enabled(training):
        seconds = model.autotune(x, angle=ANGLES, rounds=1)
    assert set(seconds["conv2.weight"]) >= {"factored", "grouped", "product"}
    plan = json.loads(json.dumps(model.plan))
    (entry,) = plan["layers"]["conv2.weight"]
    assert entry["training"] is training and entry["batch"] == 6
    assert entry["route"] == min(seconds["conv2.weight"], key=seconds["conv2.weight"].__getitem__).split(",")[0]
    torch.testing.assert_close(model(x, angle=ANGLES), before, rtol=1e-10, atol=1e-10)
    assert "measured" in model.summary(x, angle=ANGLES) or training


def test_autotune_leaves_gradients_and_generators_alone() -> None:
    """Measuring a training step trains nothing."""
    model, x = block()
    state = torch.get_rng_state()
    model.autotune(x, angle=ANGLES, rounds=1)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_plan_travels_with_the_checkpoint(tmp_path: Path) -> None:
    """Saved as data; another machine may use it, or measure again."""
    model, x = block()
    with torch.no_grad():
        model.autotune(x, angle=ANGLES, rounds=1)
    model.save(tmp_path / "model.safetensors")
    net = model.frozen()
    again = wm.load(tmp_path / "model.safetensors", net)
    assert again.plan == model.plan
    torch.testing.assert_close(again(x, angle=ANGLES), model(x, angle=ANGLES), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "plan",
    [
        {"version": 99, "layers": {"conv1.weight": [{"route": "factored"}]}},
        {
            "version": 1,
            "layers": {"conv1.weight": [{"route": "teleport", "batch": 6, "positions": 81, "training": False}]},
        },
        {"version": 1, "layers": {"conv1.weight": [{"batch": "six"}, 7, None], "gone.weight": []}},
        {"version": 1, "layers": "none"},
        {"version": 1, "layers": {"conv1.weight": "factored"}},
        {},
        None,
    ],
)
def test_plans_that_do_not_fit_are_passed_over(plan: dict[str, object] | None) -> None:
    """Made for another release, another network, or by hand."""
    model, x = block()
    with torch.no_grad():
        expected = model(x, angle=ANGLES)
        model.plan = plan
        torch.testing.assert_close(model(x, angle=ANGLES), expected, rtol=1e-12, atol=1e-12)


def test_a_measured_plan_is_taken_near_its_size_only() -> None:
    """Twice the batch is near enough, three times is not; another map is another layer."""
    entry = {"positions": 64, "batch": 16, "training": False, "route": "product", "low_rank": "weights"}
    desk = Desk({"weight": [entry]})
    slot = Slot.of((32, 16, 3, 3))
    built = wm.LowRank(2).build(slot, code_dim=2)
    expression = built(torch.zeros(32, 16, 3, 3), torch.ones(16, 2))
    assert expression.batch == (16,)
    for batch, positions, known in ((16, 64, True), (32, 64, True), (48, 64, False), (16, 49, False)):
        layer = Layer(positions, 1, 32, 16, 9, 9, batch=batch)
        assert (desk.measured(expression, layer) is not None) == known


def test_other_threads_go_unwatched_while_one_measures() -> None:
    """Autotuning works on a twin: a call at the same time is neither slowed nor recorded."""
    model, x = block()
    seen: list[str] = []
    inside, done = threading.Event(), threading.Event()

    def watch(x: Tensor, expression: object, layer: Layer, plan: rule.Plan, run: object) -> Tensor:
        seen.append(threading.current_thread().name)
        inside.set()
        done.wait(10)
        return run(x, expression, plan)  # type: ignore[operator,no-any-return]

    watched = threading.Thread(target=lambda: model._watched(watch)(x, angle=ANGLES), name="watched")
    watched.start()
    assert inside.wait(10)
    model(x, angle=ANGLES)
    done.set()
    watched.join()
    assert set(seen) == {"watched"}


def test_summary_of_a_call_says_route_reason_and_cost() -> None:
    """Per sample, shared, and few settings; with multiply-adds and bytes against the frozen layer."""
    model, x = block()
    text = model.summary(x, angle=ANGLES)
    assert "conv1.weight" in text and "multiply-adds" in text and "bytes" in text and "against" in text
    assert "6 samples" in text
    assert "one θ for the batch" in model.summary(x, angle=3.0)
    few = torch.tensor([5.0, 50.0]).repeat(6)
    with forced("bucketed"):
        assert "setting by setting" in model.summary(torch.cat([x, x]), angle=few)
    with forced("factored"):
        assert "12 samples" in model.summary(torch.cat([x, x]), angle=few)


# Memory


def test_without_a_backward_no_dense_weights_of_all_samples_exist() -> None:
    """So a limit that they would pass refuses training on a dense route and nothing else."""
    model, x = block(wm.Warp() + wm.Scale())
    model.memory_limit = 1000
    with torch.no_grad(), forced("dense"):
        model(x, angle=ANGLES)
    with forced("dense"):  # structured terms find a way round
        torch.testing.assert_close(model(x, angle=ANGLES), one_by_one(model, x, {"angle": ANGLES}))
    dense, x = block(wm.PerFilter("mlp"))
    dense.memory_limit = 1000
    with pytest.raises(errors.MemoryLimitError, match="GiB"):
        dense(x, angle=ANGLES)


def test_few_settings_need_a_weight_each_and_not_one_per_sample() -> None:
    """What would pass the limit sample by sample runs setting by setting, whatever the rule finds cheaper."""
    model, x = block(wm.PerFilter("mlp"))
    model.memory_limit = 1000
    few = torch.tensor([33.0, 140.0]).repeat(4)
    x = torch.cat([x, x[:2]])
    with mock.patch.object(rule, "bucketed", lambda terms, layer, settings: False):
        torch.testing.assert_close(model(x, angle=few), one_by_one(model, x, {"angle": few}))


def test_the_memory_limit_counts_the_taps_that_a_kernel_has_grown_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights that training keeps; those that the backward makes again never exist all at once."""
    model, _ = block(wm.Warp(), size=8)
    expression = model._operand("conv2.weight", model._encode(model._prepare({"angle": ANGLES})))
    assert isinstance(expression, WeightExpression)
    assert expression.grow == ((0, 1), (0, 1))
    layer = replace(Layer.of(expression.slot, 16, expression.grow, 6), training=True)
    grouped = next(plan for plan in rule.candidates(rule.kinds(expression), layer) if plan.route == "grouped")
    dense = 6 * 8 * 8 * 16 * 8
    for limit, route in ((dense, "grouped"), (dense - 1, "factored")):
        batch = Batch(6, memory_limit=limit)
        assert planner.within_memory(batch, "conv2", expression, grouped, layer).route == route
    monkeypatch.setattr(kept, "LARGE", dense)
    assert planner.within_memory(batch, "conv2", expression, grouped, layer) is grouped


def test_patches_are_not_kept_for_the_backward() -> None:
    """What autograd saves of the factored route is the input and small matrices, not what the taps see."""
    model, x = block(wm.Warp() + wm.LowRank(2))
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.untyped_storage().nbytes())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), forced("factored"):
        model(x, angle=ANGLES)
    largest_map = 6 * 8 * 9 * 9 * 8  # samples x channels x pixels x bytes
    assert max(saved) <= largest_map


# Precision


@pytest.mark.parametrize("route", ["factored", "dense", "product", "bucketed"])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_autocast_casts_as_the_base_would(route: str, grad: bool) -> None:
    """bfloat16 on every route, near the full result, gradients in full precision; θ is never rounded to it."""
    model, x = block()
    model, x = model.float(), x.float()
    theta = torch.tensor([33.0, 140.0]).repeat_interleave(4) if route == "bucketed" else ANGLES
    x = torch.cat([x, x[:2]]) if route == "bucketed" else x
    with forced(route), torch.set_grad_enabled(grad):
        exact = model(x, angle=theta)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x, angle=theta)
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1 * float(exact.detach().abs().max()))
        if grad:
            rough.float().square().sum().backward()
            assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_formats(channels_last: bool) -> None:
    """An input in channels-last order is no reason for another result."""
    model, x = block()
    expected = model(x, angle=ANGLES)
    given = x.contiguous(memory_format=torch.channels_last) if channels_last else x.transpose(2, 3).contiguous().mT
    for route in ("factored", "dense", "product", "rule"):
        with forced(route):
            torch.testing.assert_close(model(given, angle=ANGLES), expected, rtol=1e-10, atol=1e-10)


def test_a_users_own_module_runs_beside_ours() -> None:
    """Dense terms keep their own way in a sum; each part on its best route is still the sum."""
    model, x = block(wm.Warp() + wm.LowRank(2) + wm.Custom(Bend(), anchored=True) + wm.Scale())
    for route in ("rule", "dense", "product"):
        with forced(route):
            torch.testing.assert_close(
                model(x, angle=ANGLES), one_by_one(model, x, {"angle": ANGLES}), rtol=1e-10, atol=1e-10
            )


# Baking with the norms merged


@pytest.mark.parametrize("given", ["the example's shape", "an input"])
def test_folding_merges_norms_and_changes_nothing_else(given: str) -> None:
    """The same function of the input, with fewer layers."""
    model, x = block()
    plain = model.bake(angle=33.0)
    folded = model.bake(angle=33.0, fold=True if given == "the example's shape" else x)
    torch.testing.assert_close(folded(x), plain(x), rtol=1e-10, atol=1e-10)
    assert isinstance(folded.norm1, nn.Identity) and isinstance(folded.norm2, nn.Identity)
    assert not isinstance(plain.norm1, nn.Identity) and folded.conv2.bias is not None


def test_folding_leaves_alone_what_something_else_reads() -> None:
    """A convolution called twice, one with a second reader, one whose weight is shared, and a norm called twice."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.read, self.plain = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.a, self.b, self.c, self.d = (nn.BatchNorm2d(3) for _ in range(4))
            self.tied = nn.Conv2d(3, 3, 1)
            self.other = nn.Conv2d(3, 3, 1)
            self.other.weight = self.tied.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(self.twice(self.a(self.twice(x))))
            y = self.read(x)
            x = self.b(y) + y
            x = self.d(self.plain(x))
            return self.c(self.tied(x)) + self.other(x)

    torch.manual_seed(0)
    net = Net().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(1), example=x)
    shake(model)
    folded = model.bake(angle=33.0, fold=True)
    assert [name for name, m in folded.named_modules() if isinstance(m, nn.Identity)] == ["d"]
    torch.testing.assert_close(folded(x), model.bake(angle=33.0)(x), rtol=1e-10, atol=1e-10)


def test_folding_without_an_example_says_what_to_give() -> None:
    """It has to run the network."""
    model = wm.condition(nn.Conv2d(3, 4, 3), {"angle": wm.Angle("deg")}, wm.LowRank(1))
    with pytest.raises(errors.SelectionError, match="fold= an input"):
        model.bake(angle=3.0, fold=True)
    with pytest.raises(errors.BaseError, match="fold"):
        wm.condition(nn.Conv2d(3, 4, 3), {"fold": wm.Angle("deg")}, wm.LowRank(1))

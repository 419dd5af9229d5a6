"""The planner: the cost rule, its candidates, forced and measured routes, the memory limit, setting by setting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from zoo import ANGLES, block, code, forced, frozen, observed, one_by_one

import weightmorph as wm
from weightmorph import errors
from weightmorph.execution import Batch, MeasuredPlans, Recorder, candidates, cheapest, factored_pays_when_shared
from weightmorph.execution.planner import choose, setting_by_setting_pays, within_memory
from weightmorph.layers import LayerSize, using
from weightmorph.layers.processor import AVX2, AVX512
from weightmorph.slots import Slot
from weightmorph.terms import (
    TERMS,
    BasisMix,
    Dense,
    LowRankUpdate,
    Replacement,
    RowScale,
    TapMix,
    TermKind,
    WeightExpression,
)

CONV = LayerSize(positions=64, groups=1, outputs=32, inputs=16, taps=9, grown=9, batch=16)
EARLY = LayerSize(positions=1024, groups=1, outputs=64, inputs=64, taps=9, grown=9, row=32, batch=16)
LATE = LayerSize(positions=16, groups=1, outputs=512, inputs=512, taps=9, grown=9, row=4, batch=16)
TAPS_AND_RANK = (TermKind(TapMix), TermKind(LowRankUpdate, 8))
ALL = (*TAPS_AND_RANK, TermKind(RowScale), TermKind(BasisMix, 3))


@pytest.fixture(params=[AVX2, AVX512], ids=["AVX2", "AVX512"])
def machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """The rule as it is on one kind of processor, whichever this one is."""
    with using(request.param):
        yield


def sum_of(*names: str) -> WeightExpression:
    """W(θ) of a convolution as a sum of terms, one per sample for 16 samples."""
    slot = Slot.of((32, 16, 3, 3))
    base = torch.zeros(slot.shape)
    terms = {
        "taps": TapMix(slot, base, torch.zeros(16, 9, 9)),
        "rank": LowRankUpdate(slot, torch.zeros(1, 32, 2), torch.zeros(16, 2), torch.zeros(1, 2, 144)),
        "rows": RowScale(slot, base, torch.zeros(16, 32)),
        "dense": Dense(slot, torch.zeros(16, *slot.shape)),
    }
    return WeightExpression(slot, base, tuple(terms[name] for name in names))


# The cost rule


@pytest.mark.usefixtures("machine")
def test_the_rule_follows_size() -> None:
    """Few channels on a large map: dense weights. Many channels on a small one: the activations. And it says why."""
    assert cheapest(TAPS_AND_RANK, EARLY).route == "grouped"
    assert cheapest(TAPS_AND_RANK, LATE).route == "factored"
    assert "x the frozen layer, against" in cheapest(TAPS_AND_RANK, LATE).reason
    assert cheapest(TAPS_AND_RANK, LATE) == replace(
        candidates(TAPS_AND_RANK, LATE)[0], reason=cheapest(TAPS_AND_RANK, LATE).reason
    )


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("layer", [CONV, LayerSize(64, 16, 1, 1, 9, 9), LayerSize(1, 1, 10, 64, 49, 49, "linear")])
def test_costs_are_positive_and_sorted(layer: LayerSize) -> None:
    """A cost rule that could be negative, or that lists the worst first, would mislead."""
    every = [(TermKind(term, 3),) for term in TERMS.values()]
    for kinds in (ALL, ALL[:1], ALL[1:2], ALL[2:3], *every):
        plans = candidates(kinds, layer)
        assert plans and all(p.cost > 0 and p.flops > 0 and p.numbers > 0 for p in plans)
        assert [p.cost for p in plans] == sorted(p.cost for p in plans)
        training = candidates(kinds, replace(layer, training=True))
        assert {p.name for p in training} == {p.name for p in plans}


@pytest.mark.usefixtures("machine")
def test_a_dense_family_beside_a_low_rank_leaves_that_where_it_is_cheap() -> None:
    """A sum executes each part on its best route: the dense part on weights, the low rank on activations."""
    plan = cheapest((TermKind(Dense), TermKind(LowRankUpdate, 8)), LATE)
    assert plan.route in ("grouped", "product") and plan.low_rank == "activations"


def test_the_candidates_of_each_kind_of_layer() -> None:
    """The routes that exist there; a low rank stands aside only beside another term, and not on a depthwise layer."""

    def names(kinds: tuple[TermKind, ...], layer: LayerSize, constant: bool = False) -> set[str]:
        return {p.name for p in candidates(kinds, layer, constant)}

    rank, taps, dense = ALL[1:2], ALL[:1], (TermKind(Dense),)
    aside = {"grouped, low rank on activations", "product, low rank on activations"}
    assert names(rank, CONV) == {"factored", "grouped", "product"}
    assert names((*dense, *rank), CONV) == {"grouped", "product"} | aside
    assert names((TermKind(Replacement),), CONV) == {"grouped", "product"}
    groups = replace(CONV, groups=4)
    assert names(taps, groups) == {"grouped", "product"}
    assert names(taps, groups, constant=True) == {"factored", "grouped", "product"}
    depthwise = replace(CONV, groups=16, inputs=1)
    assert names(ALL[:2], depthwise) == {"grouped"}
    assert names(rank, depthwise, constant=True) == {"factored", "grouped"}
    transposed = replace(CONV, kind="conv_transpose")
    assert names(taps, transposed) == {"grouped"} and names(rank, transposed) == {"factored", "grouped"}
    assert names(rank, replace(transposed, tiles=True)) == {"factored", "grouped", "product"}
    assert names(taps, replace(CONV, kind="linear")) == {"factored", "product"}


def test_tracing_never_looks_at_the_batch() -> None:
    """A graph with a symbolic batch gets the product or the factored route, and no cost with a batch in it."""
    layer = replace(CONV, batch=None, tracing=True)
    assert {p.route for p in candidates(ALL[:2], layer)} == {"factored", "product"}


@pytest.mark.usefixtures("machine")
def test_applying_pays_under_a_shared_theta_where_the_input_is_small() -> None:
    """One row through a wide layer; not many rows, and never where a term has no form on the activations."""
    wide = LayerSize(1, 1, 200, 300, 1, 1, "linear", batch=1)
    assert factored_pays_when_shared(ALL[1:3], wide)
    assert not factored_pays_when_shared(ALL[1:3], replace(wide, batch=4096))
    assert not factored_pays_when_shared((TermKind(Dense),), wide)
    assert not factored_pays_when_shared(ALL[1:3], replace(wide, batch=None))


# Setting by setting


@pytest.mark.usefixtures("machine")
def test_layers_run_setting_by_setting_where_that_pays() -> None:
    """Few settings with many samples each, of a sum that is expensive per sample; and not where weights are large."""
    early = replace(EARLY, positions=784, row=28, batch=64)
    assert [setting_by_setting_pays(TAPS_AND_RANK, early, n) for n in (2, 4, 64)] == [True, True, False]
    assert not setting_by_setting_pays(TAPS_AND_RANK, LATE, 4)


def test_some_layers_of_a_network_run_setting_by_setting_and_others_do_not() -> None:
    """Each layer decides for itself, by the number of settings; with fewer than four samples a setting none does."""
    model, x = block()
    x, few = x.repeat(8, 1, 1, 1), torch.tensor([20.0, 50.0, 310.0]).repeat(16)
    expected = one_by_one(model, x, {"angle": few})
    convolutions = ["conv1.weight", "conv2.weight", "last.weight"]
    for changes, per_sample in (
        ({"setting": -1e12, "setting_product": -1e12}, []),
        ({"setting": -1e12, "setting_product": 1e12}, ["fc.weight"]),
        ({"setting": 1e12, "setting_product": -1e12}, convolutions),
        ({"setting": 1e12, "setting_product": 1e12}, [*convolutions, "fc.weight"]),
    ):
        recorder = Recorder()
        with using(**changes):
            torch.testing.assert_close(observed(model, recorder)(x, angle=few), expected)
        assert [row.name for row in recorder.rows] == per_sample
    recorder = Recorder()
    with using(setting=-1e12, setting_product=-1e12):
        observed(model, recorder)(x[:18], angle=ANGLES.repeat(3))
    assert len(recorder.rows) == 4, "with fewer than four samples a setting nobody asks"


def test_a_batch_by_setting_is_chosen_with_its_number_of_settings() -> None:
    """Two settings among sixteen samples of one layer, by the cost of one more setting."""
    index = torch.tensor([0, 1]).repeat(8)
    expression = sum_of("taps", "rank").take(torch.tensor([0, 1]))
    two = Batch(16).by_setting(index, 2)
    assert [rows.tolist() for rows in two.rows] == [list(range(0, 16, 2)), list(range(1, 16, 2))]
    with using(setting=-1e12):
        assert choose(two, "conv", expression, CONV).route == "by setting"
        assert choose(Batch(16), "conv", sum_of("taps", "rank"), CONV).route != "by setting"
    with using(setting=1e12):
        assert choose(two, "conv", expression, CONV).route != "by setting"
        assert choose(replace(two, route="by setting"), "conv", expression, CONV).route == "by setting"


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


# Forced and measured routes


@pytest.mark.parametrize("route", ["factored", "grouped", "product"])
def test_a_forced_route_is_taken_where_it_exists(route: Any) -> None:
    """Whatever the rule and measurements say, and whatever it costs."""
    entry = {"positions": 64, "batch": 16, "training": False, "low_rank": "weights"}
    other = "product" if route == "grouped" else "grouped"
    measured = MeasuredPlans({"weight": [{**entry, "route": other}]})
    assert choose(Batch(16, plans=measured), "conv", sum_of("taps", "rank"), CONV).route == other
    batch = Batch(16, plans=measured, route=route)
    assert choose(batch, "conv", sum_of("taps", "rank"), CONV).route == route
    recorder, (model, x) = Recorder(), block()
    with forced(model, route):
        observed(model, recorder)(x, angle=ANGLES)
    missing = {"fc.weight"} if route == "grouped" else set()  # a linear layer has no groups
    assert {row.name for row in recorder.rows if row.plan.route != route} == missing


def test_a_forced_route_that_does_not_exist_leaves_a_dense_one() -> None:
    """A dense term has no form on the activations: its factored route is the cheapest dense one."""
    dense = sum_of("dense", "rank")
    plan = choose(Batch(16, route="factored"), "conv", dense, CONV)
    assert plan.name == next(p.name for p in candidates(dense.kinds, CONV) if p.route != "factored")


def test_constant_weights_are_the_factored_route_or_an_error() -> None:
    """Also where only they are worth its cost; where there is no such form, the error says what to do."""
    groups = replace(CONV, groups=4)
    assert choose(Batch(16, route="constant"), "conv", sum_of("taps", "rank", "rows"), groups).route == "factored"
    with pytest.raises(errors.ExecutionError, match=r"layer 'conv'.*constant_weights.*no form.*model\.bake"):
        choose(Batch(16, route="constant"), "layer 'conv'", sum_of("dense", "rank"), CONV)


def test_a_measured_plan_is_taken_near_its_size_only() -> None:
    """Twice the batch is near enough, three times is not; another map is another layer."""
    entry = {"positions": 64, "batch": 16, "training": False, "route": "product", "low_rank": "weights"}
    plans = MeasuredPlans({"weight": [entry]})
    expression = wm.LowRank(2).build(Slot.of((32, 16, 3, 3)), code_dim=2)(torch.zeros(32, 16, 3, 3), torch.ones(16, 2))
    assert expression.batch == (16,)
    for size, positions, known in ((16, 64, True), (32, 64, True), (48, 64, False), (16, 49, False)):
        layer = LayerSize(positions, 1, 32, 16, 9, 9, batch=size)
        assert (plans.nearest("weight", layer) is not None) == known
        plan = choose(Batch(size, plans=plans), "conv", expression, layer)
        assert (plan.reason == "measured") == known
    assert choose(Batch(16, plans=plans), "conv", expression, replace(CONV, tracing=True)).reason != "measured"
    other = MeasuredPlans({"weight": [{**entry, "route": "teleport"}], "another": [entry]})
    assert choose(Batch(16, plans=other), "conv", expression, CONV).reason != "measured"


# Memory


def test_without_a_backward_no_dense_weights_of_all_samples_exist() -> None:
    """So a limit that they would pass refuses training on a dense route and nothing else."""
    model, x = block(wm.Warp() + wm.Scale())
    model.memory_limit = 1000
    with torch.no_grad(), forced(model, "dense"):
        model(x, angle=ANGLES)
    with forced(model, "dense"):  # structured terms find a way round
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
    with using(setting=1e15, setting_product=1e15):
        torch.testing.assert_close(model(x, angle=few), one_by_one(model, x, {"angle": few}))


def test_the_memory_limit_counts_the_taps_that_a_kernel_has_grown_by() -> None:
    """Of weights that training saves; those that the backward pass recomputes never exist all at once."""
    model, _ = block(wm.Warp(), size=8)
    slot = model.slots["conv2.weight"]
    expression = model.transform.expression(slot, frozen(model)[slot.name], code(model, angle=ANGLES))
    assert expression.grow == ((0, 1), (0, 1))
    layer = replace(LayerSize.of(expression.slot, 16, expression.grow, 6), training=True)
    grouped = next(plan for plan in candidates(expression.kinds, layer) if plan.route == "grouped")
    dense = 6 * 8 * 8 * 16 * 8
    for limit, route in ((dense, "grouped"), (dense - 1, "factored")):
        batch = Batch(6, memory_limit=limit)
        assert within_memory(batch, "conv2", expression, grouped, layer).route == route
    with using(recompute=dense):
        assert within_memory(batch, "conv2", expression, grouped, layer) is grouped


@pytest.mark.parametrize("route", ["rule", "dense", "product", "factored"])
def test_several_low_rank_terms_of_one_weight(route: str) -> None:
    """They are told apart by identity, whatever their sizes, and each plan with them aside is exact."""
    model, x = block(wm.LowRank(2) + wm.LowRank(2) + wm.Warp(grow=0) + wm.LowRank(3))
    expected = one_by_one(model, x, {"angle": ANGLES})
    with forced(model, route):
        torch.testing.assert_close(model(x, angle=ANGLES), expected, rtol=1e-10, atol=1e-10)
    model.autotune(x, angle=ANGLES, rounds=1)
    torch.testing.assert_close(model(x, angle=ANGLES), expected, rtol=1e-10, atol=1e-10)

"""Observers of a model's layers, and plans that were measured."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from zoo import ANGLES, block, forced, observed, one_by_one

import weightmorph as wm
from weightmorph.execution import MeasuredPlans, Recorder, Step, Tuner, candidates
from weightmorph.layers import LayerSize, using


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


@pytest.mark.parametrize("training", [True, False])
def test_a_tuner_does_not_try_routes_whose_saved_weights_pass_the_limit(training: bool) -> None:
    """Only a training step saves dense weights of all samples, and not where it recomputes them."""
    model, x = block()
    tried = []
    for recompute in (2**40, 0):
        tuner = Tuner(rounds=1, limit=1000)
        with torch.set_grad_enabled(training), using(recompute=recompute):
            observed(model, tuner)(x, angle=ANGLES)
        tried.append(set(tuner.seconds["conv2.weight"]))
    assert tried[0] == {"factored"} if training else len(tried[0]) > 3
    assert len(tried[1]) > 3


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


def test_new_measurements_replace_older_ones_of_the_same_size() -> None:
    """Of the same layer, positions, batch size and mode; others stay. As plain data they come back."""
    old = {"positions": 64, "batch": 16, "training": False, "route": "product", "low_rank": "weights"}
    new, larger = {**old, "route": "grouped"}, {**old, "batch": 32}
    plans = MeasuredPlans({"a": [old, larger], "b": [old]}).updated({"a": [new], "c": [old]})
    assert plans.entries == {"a": [larger, new], "b": [old], "c": [old]}
    assert MeasuredPlans.from_data(json.loads(json.dumps(plans.data()))) == plans
    assert MeasuredPlans().data() is None
    layer = LayerSize(64, 1, 32, 16, 9, 9, batch=20)
    assert plans.nearest("a", layer) == new, "the nearest batch size"
    assert plans.nearest("a", LayerSize(64, 1, 32, 16, 9, 9, batch=30)) == larger
    assert plans.nearest("a", LayerSize(64, 1, 32, 16, 9, 9, batch=16, training=True)) is None
    assert plans.nearest("gone", layer) is None


def test_other_threads_go_unobserved_while_one_measures() -> None:
    """Autotuning works on a twin: a call at the same time is neither slowed nor recorded."""
    model, x = block()
    seen: list[str] = []
    inside, done = threading.Event(), threading.Event()

    def observer(step: Step) -> Tensor:
        seen.append(threading.current_thread().name)
        inside.set()
        done.wait(10)
        return step.run()

    thread = threading.Thread(target=lambda: observed(model, observer)(x, angle=ANGLES), name="observed")
    thread.start()
    assert inside.wait(10)
    model(x, angle=ANGLES)
    done.set()
    thread.join()
    assert set(seen) == {"observed"}


def test_a_recorder_notes_every_plan_and_carries_it_out() -> None:
    """In the order of the layers; the output is the model's own."""
    model, x = block()
    recorder = Recorder()
    got = observed(model, recorder)(x, angle=ANGLES)
    torch.testing.assert_close(got, model(x, angle=ANGLES), rtol=1e-12, atol=1e-12)
    assert [row.name for row in recorder.rows] == ["conv1.weight", "conv2.weight", "last.weight", "fc.weight"]
    assert all(row.layer.batch == 6 and row.layer.training and row.plan.reason for row in recorder.rows)


def test_summary_of_a_call_says_route_reason_and_cost() -> None:
    """Per sample, shared, and few settings; with multiply-adds and bytes against the frozen layer."""
    model, x = block()
    text = model.summary(x, angle=ANGLES)
    assert "conv1.weight" in text and "multiply-adds" in text and "bytes" in text and "against" in text
    assert "6 samples" in text
    assert "one θ for the batch" in model.summary(x, angle=3.0)
    few = torch.tensor([5.0, 50.0]).repeat(6)
    with forced(model, "bucketed"):
        assert "setting by setting" in model.summary(torch.cat([x, x]), angle=few)
    with forced(model, "factored"):
        assert "12 samples" in model.summary(torch.cat([x, x]), angle=few)


def test_every_route_that_is_offered_is_exact() -> None:
    """Each of the planner's candidates, on each layer of a network, gives what baking gives."""
    model, x = block()
    expected = one_by_one(model, x, {"angle": ANGLES})
    names = set()

    def all_of_them(step: Step) -> Tensor:
        y = step.run()
        for other in candidates(step.expression.kinds, step.layer):
            names.add(other.name)
            torch.testing.assert_close(step.run(other), y, rtol=1e-10, atol=1e-10)
        return y

    torch.testing.assert_close(observed(model, all_of_them)(x, angle=ANGLES), expected, rtol=1e-10, atol=1e-10)
    aside = {"grouped, low rank on activations", "product, low rank on activations"}
    assert names == {"factored", "grouped", "product"} | aside

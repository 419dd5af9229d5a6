"""The comparison: every row is what the parts give by themselves, with one budget, and a run can go on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightmorph as wm
from weightmorph.comparison import Comparison, Nearest, compare, stored
from weightmorph.errors import BaseError, InputError, TrainingError
from weightmorph.estimator import estimator_of
from weightmorph.evaluation import Contender, evaluate
from weightmorph.inputs import Blur, Rotate
from weightmorph.model import Conditioned
from weightmorph.parameters import Angle, Categorical, Interval, LogInterval, ParameterSpace
from weightmorph.training import fine_tune, fit

STEPS = 3
BUDGET: dict[str, Any] = {"steps": STEPS, "progress": False, "seed": 2}
TRAINING: dict[str, Any] = {"batch_size": 8, "settings": 2}
JUDGING: dict[str, Any] = {"grid": 4, "rounds": 0}


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(36, 3)
    ).eval()


def data(size: int = 24, seed: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return x, network()(x).argmax(1)


TEST = data(20, seed=4)


def run(net: Any = None, transform: Any = None, **options: Any) -> Comparison:
    """A comparison with little to do."""
    given = {**BUDGET, "training": TRAINING, "judging": JUDGING, **options}
    turn = given.pop("input_transform", Rotate())
    return compare(net if net is not None else network(), data(), TEST, turn, transform=transform, **given)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_the_rows_are_what_the_parts_give() -> None:
    """Each training is that of `fit` or `fine_tune` with the same budget, each figure that of `evaluate`."""
    found = run(transform=wm.Warp() + wm.Scale(), one4one=2)
    torch.manual_seed(BUDGET["seed"])
    model = wm.condition(network(), Rotate().parameters, wm.Warp() + wm.Scale(), example=data()[0][:1])
    fit(model, data(), Rotate(), **BUDGET, **TRAINING)
    tuned = fine_tune(network(), data(), Rotate(), **BUDGET, **TRAINING).model
    each = [
        fine_tune(
            network(), data(), lambda x, angle, at=at: Rotate()(x, angle=at), parameters=Rotate().parameters, **BUDGET,
            **TRAINING,
        ).model
        for at in (0.0, 180.0)
    ]  # fmt: skip
    assert same(found.model, model) and same(found.networks["One4All"], tuned)
    nearest = found.networks["One4One, nearest of 2"]
    assert isinstance(nearest, Nearest)
    assert all(same(one, other) for one, other in zip(nearest.networks, each, strict=True))
    expected = evaluate(model, TEST, Rotate(), others={"One4All": tuned}, **JUDGING)
    for row in expected.rows:
        assert found.evaluation[row.name].values == row.values
        assert found.evaluation[row.name].clean == row.clean
    x, y = TEST
    for i, angle in enumerate((0.0, 90.0, 180.0, 270.0)):  # 90° and 270° are as far from both
        if angle in (0.0, 180.0):
            which = each[0 if angle == 0.0 else 1]
            hits = (which(Rotate()(x, angle=angle)).argmax(1) == y).double().mean()
            assert found.evaluation["One4One, nearest of 2"].values[i] == pytest.approx(float(hits))


def test_columns() -> None:
    """Trained numbers, bytes and seconds; those of several networks together."""
    found = run(one4one=2)
    rows = {row.name: row for row in found.evaluation.rows}
    whole = sum(p.numel() for p in network().parameters())
    assert rows["One4All"].trainable == whole
    assert rows["One4One, nearest of 2"].trainable == 2 * whole
    size = stored(network())
    assert size == 4 * (whole + 8) + 8, "weights, running statistics, and a counter of eight bytes"
    ours = sum(p.numel() * p.element_size() for p in found.model.transform.state_dict().values())
    assert [row.stored for row in found.evaluation.rows] == [ours, 0, 0, size, 2 * size]
    assert rows["conditioned"].seconds == found.fits["conditioned"][0].seconds
    assert rows["One4One, nearest of 2"].seconds == sum(f.seconds for f in found.fits["One4One, nearest of 2"])
    assert {f.steps for each in found.fits.values() for f in each} == {STEPS}
    assert "stored" in found.table() and found.advice in str(found)


def test_the_base_and_the_random_numbers_are_left_alone() -> None:
    net = network().train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    run(net, one4one=2)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_repeatable() -> None:
    assert run(one4one=2).evaluation.rows[0].values == run(one4one=2).evaluation.rows[0].values


@pytest.mark.parametrize("inverse", [True, False])
def test_default_transform(inverse: bool) -> None:
    """The geometric prior where θ moves the image, none where it does not; no inverse, no row."""
    found = run(one4all=False, input_transform=Rotate() if inverse else Blur(high=2.0))
    kinds = [part["type"] for part in found.model.recipe["parts"]]
    assert kinds == (["Warp", "LowRank", "Scale"] if inverse else ["LowRank", "Scale"])
    assert [row.name for row in found.evaluation.rows] == ["conditioned", "frozen"] + ["inverse"] * inverse
    assert ("inverse" in found.evaluation.absent) is not inverse


def test_a_trained_model_is_taken_as_it_is() -> None:
    model = wm.condition(network(), Rotate().parameters, wm.LowRank(1), example=data()[0][:1])
    fit(model, data(), Rotate(), **BUDGET, **TRAINING)
    before = copy.deepcopy(model.state_dict())
    found = run(Contender(model, seconds=7.0))
    assert found.model is model and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert found.evaluation.ours.seconds == 7.0 and list(found.fits) == ["One4All"]
    assert same(found.networks["One4All"], fine_tune(network(), data(), Rotate(), **BUDGET, **TRAINING).model)


@pytest.mark.parametrize("trained", [False, True])
def test_theta_that_nobody_knows(trained: bool) -> None:
    """A head is trained beside the transform, or alone where that is trained already."""
    net: Any = network()
    if trained:
        net = wm.condition(network(), Rotate().parameters, wm.LowRank(1), example=data()[0][:1])
    found = run(net, unknown=True, one4all=False)
    assert estimator_of(found.model) is not None
    assert [row.name for row in found.evaluation.rows[-2:]] == ["θ inferred per image", "θ inferred per 64 images"]
    assert list(found.fits) == (["head"] if trained else ["conditioned"])
    assert "Where nobody knows θ" in found.advice
    again = run(found.model, unknown=True, one4all=False)
    assert not again.fits, "the head is there"


def test_a_run_goes_on(tmp_path: Path) -> None:
    """Each training has a folder; what is finished is not done again, and the figures are the same."""
    options: dict[str, Any] = {"checkpoint": tmp_path / "kept", "one4one": 2, "unknown": True}
    first = run(**options)
    folders = sorted(folder.name for folder in (tmp_path / "kept").iterdir())
    assert folders == ["conditioned", "one4all", "one4one-0", "one4one-1"]
    second = run(**options)
    assert {f.resumed for each in second.fits.values() for f in each} == {STEPS}
    assert [row.values for row in second.evaluation.rows] == [row.values for row in first.evaluation.rows]
    third = run(**options, resume=False)
    assert {f.resumed for each in third.fits.values() for f in each} == {0}


def test_one_report(tmp_path: Path) -> None:
    found = run(path=tmp_path / "page.html", report_options={"title": "Ours & theirs", "labels": "abc"})
    assert found.page == tmp_path / "page.html"
    page = found.page.read_text("utf-8")
    assert "Ours &amp; theirs" in page and "One4All" in page and "stored" in page
    assert (tmp_path / "page_files" / "inputs.png").exists()
    assert run().page is None


def test_the_nearest_network_runs() -> None:
    """Distances are parts of each range, the short way round; a category is all or nothing."""
    space = ParameterSpace({"angle": Angle("deg"), "iso": LogInterval(100, 6400), "lens": Categorical(["a", "b"])})
    settings = {
        "angle": torch.tensor([0.0, 350.0, 0.0]),
        "iso": torch.tensor([100.0, 6400.0, 100.0]),
        "lens": torch.tensor([0.0, 0.0, 1.0]),
    }
    nets = [nn.Identity(), nn.Flatten(), nn.ReLU()]
    nearest = Nearest(space, settings, nets)
    assert nearest.at(angle=340.0, iso=200.0, lens=0) is nets[0]
    assert nearest.at(angle=180.0, iso=3200.0, lens=0) is nets[1]
    assert nearest.at(angle=350.0, iso=100.0, lens=1) is nets[2]
    assert torch.equal(nearest(torch.ones(1, 2), angle=0.0, iso=120.0, lens=0), torch.ones(1, 2))


def test_settings_can_be_given() -> None:
    found = run(one4one={"angle": [10.0, 100.0, 250.0]}, one4all=False)
    assert "One4One, nearest of 3" in found.networks


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no network": ({"net": "resnet"}, BaseError, "expected a network or a Contender with one, got str"),
    "a function": ({"input_transform": lambda x, angle: x}, InputError, "expected one of weightmorph.inputs"),
    "steps twice": ({"training": {"steps": 3}}, TrainingError, "give steps= to compare itself"),
    "unknown option": ({"epochs": 2}, TrainingError, "epochs or steps, not both"),
    "one4one": ({"one4one": -1}, InputError, "one4one: expected how many settings"),
    "others": ({"others": {"frozen": nn.Identity()}}, InputError, "'frozen' is not free"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    options, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        run(**{"one4all": False, **options})


def test_a_conditioned_network_has_its_transform() -> None:
    model = wm.condition(network(), Rotate().parameters, wm.LowRank(1))
    assert isinstance(model, Conditioned)
    with pytest.raises(TrainingError, match="conditioned already"):
        run(model, transform=wm.Scale())


def test_an_interval_as_well() -> None:
    found = run(input_transform=Blur(parameter=Interval(0.0, 2.0)), one4one=2)
    assert found.evaluation["One4One, nearest of 2"].needs_theta

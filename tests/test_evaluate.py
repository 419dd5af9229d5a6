"""The evaluation against a slow, explicit loop, and the rule of the advice against made-up figures."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from weightmorph.errors import CheckpointError, InputError, ParameterError
from weightmorph.estimation import attach, infer
from weightmorph.evaluation import Contender, Evaluation, Row, accuracy, evaluate, setting_text
from weightmorph.inputs import Blur, Brightness, Compose, InputTransform, Noise, Rotate
from weightmorph.model import Conditioned, condition
from weightmorph.parameters import Angle, Categorical, Interval, LogInterval, ParameterSpace
from weightmorph.transforms import LowRank, Scale, Warp

IMAGES, CLASSES = 23, 4


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(36, CLASSES),
    )
    for _ in range(3):  # running statistics of its own
        net(torch.randn(16, 1, 9, 9))
    with torch.no_grad():  # and every class about equally likely
        net[-1].bias -= net.eval()(torch.randn(200, 1, 9, 9)).mean(0)
    return net


def trained(model: Conditioned, scale: float = 0.3) -> Conditioned:
    """The transform somewhere away from its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def model() -> Conditioned:
    return trained(condition(network(), {"angle": Angle("deg")}, Warp() + LowRank(2) + Scale()))


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    x = torch.randn(IMAGES, 1, 9, 9)
    return x, network()(x).argmax(1)  # the frozen network is right about every clean image


class Counting(nn.Module):
    """A plain network that records the grad mode and its own training flag."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(5)
        self.seen: set[tuple[bool, bool]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add((torch.is_grad_enabled(), self.net[1].training))
        out: Tensor = self.net(x)
        return out


def slow(
    model: Conditioned, x: Tensor, y: Tensor, transform: InputTransform, angles: list[float]
) -> dict[str, list[float]]:
    """One image, one setting, one baked network at a time."""
    plain = network()
    found: dict[str, list[float]] = {"conditioned": [], "frozen": [], "inverse": []}
    undo = transform.inverse()
    assert undo is not None
    for angle in angles:
        baked = model.bake(angle=angle)
        hits = {name: 0 for name in found}
        for image, label in zip(x, y, strict=True):
            turned = transform(image[None], angle=angle)
            hits["conditioned"] += int(baked(turned).argmax() == label)
            hits["frozen"] += int(plain(turned).argmax() == label)
            hits["inverse"] += int(plain(undo(turned, angle=angle)).argmax() == label)
        for name, count in hits.items():
            found[name].append(count / len(x))
    return found


def test_figures_equal_a_slow_loop(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    """Every value, mean and worst is that of an explicit loop over settings and images with baked networks."""
    x, y = pair
    found = evaluate(model, pair, Rotate(), grid=5, batch_size=7, rounds=0)
    expected = slow(model, x, y, Rotate(), [0.0, 72.0, 144.0, 216.0, 288.0])
    assert found.grid == {"angle": (0.0, 72.0, 144.0, 216.0, 288.0)}
    for name, values in expected.items():
        row = found[name]
        assert row.values == pytest.approx(values, abs=1e-12)
        assert row.mean == pytest.approx(np.mean(values), abs=1e-12)
        assert row.worst == min(values)
        assert row.values[row.worst_at] == min(values)
    assert len({row.values for row in found.rows}) == 3, "three rows that agree would prove nothing"


def test_clean_is_the_frozen_networks(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    """At the anchor, on the untransformed input, conditioned and inverse are the frozen network."""
    found = evaluate(model, pair, Rotate(), grid={"angle": [50.0]}, rounds=0)
    assert [row.clean for row in found.rows] == [1.0, 1.0, 1.0]


def test_clean_sees_the_untransformed_input(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    """The clean value needs neither θ0 on the grid nor a transform that is the identity there."""

    class Always(Rotate):
        def __call__(self, x: Tensor, /, *, generator: torch.Generator | None = None, **theta: Any) -> Tensor:
            return torch.zeros_like(x)

    found = evaluate(model, pair, Always(), grid=3, baselines=["frozen"], rounds=0)
    assert found["frozen"].clean == 1.0
    assert max(found["frozen"].values) < 1.0


def test_standard_errors_are_those_of_per_image_means(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    """The settings of one image are not independent: the error is that of the images' means; differences are paired."""
    scores: list[Tensor] = []

    def metric(output: Tensor, target: Tensor) -> Tensor:
        scores.append(output.softmax(1)[:, 0].double())
        return scores[-1]

    found = evaluate(model, pair, Rotate(), grid=4, metric=metric, baselines=["frozen"], rounds=0)
    ours, frozen = torch.stack(scores[2::2]).mean(0), torch.stack(scores[3::2]).mean(0)  # the first two are clean
    for row, image in ((found["conditioned"], ours), (found["frozen"], frozen)):
        assert row.standard_error == pytest.approx(float(image.std() / math.sqrt(IMAGES)), rel=1e-12)
    paired = float((ours - frozen).std() / math.sqrt(IMAGES))
    assert found.noise(found["conditioned"], found["frozen"]) == pytest.approx(2 * paired, rel=1e-9)
    assert found.errors[0][0] == 0.0
    assert found.metric == "metric"


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (Blur(2.0), "what Blur does"),
        (Noise(), "what Noise does"),
        (Compose([Rotate(), Blur(2.0), Noise()]), "what Blur, Noise does"),
    ],
    ids=["blur", "noise", "compose"],
)
def test_no_inverse_is_told_with_the_reason(
    transform: InputTransform, reason: str, pair: tuple[Tensor, Tensor]
) -> None:
    """Where a transform cannot be undone, the row is absent and the table and the advice say why."""
    model = trained(condition(network(), transform.parameters, LowRank(2)))
    found = evaluate(model, pair, transform, grid=2, rounds=0)
    assert [row.name for row in found.rows] == ["conditioned", "frozen"]
    assert found.absent["inverse"].startswith(reason)
    assert f"inverse is absent: {reason}" in found.table()
    with pytest.raises(KeyError, match=reason):
        found["inverse"]


def test_others_are_judged_and_counted(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    """Plain networks see the transformed input alone; conditioned ones follow θ; numbers and seconds are kept."""
    x, y = pair
    plain, ablation = Counting(), trained(condition(network(), {"angle": Angle("deg")}, Scale()), 0.5)
    given: dict[str, nn.Module | Contender] = {
        "One4All": plain,
        "scale": Contender(ablation, seconds=3.0),
        "told": Contender(plain, trainable=7),
    }
    ours = Contender(model, seconds=20.0)
    found = evaluate(ours, pair, Rotate(), {"angle": [30.0, 200.0]}, others=given, rounds=1)
    for number, angle in enumerate((30.0, 200.0)):
        turned = Rotate()(x, angle=angle)
        assert found["One4All"].values[number] == pytest.approx(
            float((network(5)(turned).argmax(1) == y).float().mean())
        )
        baked = ablation.bake(angle=angle)
        assert found["scale"].values[number] == pytest.approx(float((baked(turned).argmax(1) == y).float().mean()))
    assert found["One4All"].trainable == sum(p.numel() for p in plain.parameters())
    assert found["scale"].trainable == sum(p.numel() for p in ablation.parameters())
    assert found.ours.trainable == sum(p.numel() for p in model.parameters())
    assert (found["told"].trainable, found["told"].seconds) == (7, None)
    assert (found.ours.seconds, found["scale"].seconds, found["frozen"].seconds) == (20.0, 3.0, 0.0)
    assert found["frozen"].trainable == found["inverse"].trainable == 0
    assert Contender(nn.Flatten()).trained is None
    assert all(row.cost is not None and row.cost > 0 and row.cost_each is not None for row in found.rows)


def test_nothing_is_left_behind(pair: tuple[Tensor, Tensor]) -> None:
    """Training flags, random numbers, buffers and gradients are as they were; no gradient is recorded meanwhile."""
    net = network().train()
    model = trained(condition(net, {"angle": Angle("deg")}, LowRank(2)))
    other = Counting()
    other.net[2].eval()
    flags = [m.training for m in (*net.modules(), *model.modules(), *other.modules())]
    state = {k: v.clone() for k, v in (*net.state_dict().items(), *other.state_dict(prefix="other.").items())}
    torch.manual_seed(3)
    random = torch.get_rng_state()
    evaluate(model, TensorDataset(*pair), Compose([Rotate()]), grid=2, others={"other": other}, rounds=1)
    assert other.seen == {(False, False)}
    assert [m.training for m in (*net.modules(), *model.modules(), *other.modules())] == flags
    assert torch.equal(torch.get_rng_state(), random)
    after = {**net.state_dict(), **other.state_dict(prefix="other.")}
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert all(p.grad is None for p in (*net.parameters(), *model.parameters(), *other.parameters()))
    assert torch.is_grad_enabled()


def test_flags_are_restored_after_a_failure(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    other = network(2).train()

    def broken(output: Tensor, target: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(model, pair, Rotate(), grid=2, metric=broken, others={"other": other})
    assert all(module.training for module in other.modules())


def test_random_transforms_are_repeatable(pair: tuple[Tensor, Tensor]) -> None:
    """One seed, one result, whatever torch's global generator does; the same noise at every setting."""
    model = condition(network(), {"noise": Interval(0.0, 0.5)}, LowRank(2))
    seen: list[Tensor] = []

    def metric(output: Tensor, target: Tensor) -> Tensor:
        seen.append(output)
        return accuracy(output, target)

    grid = {"noise": [0.3, 0.3, 0.5]}
    one = evaluate(model, pair, Noise(), grid, metric=metric, baselines=["frozen"], rounds=0)
    assert torch.equal(seen[3], seen[5]), "the same noise at the same setting"
    torch.randn(5)
    assert evaluate(model, pair, Noise(), grid, metric=metric, baselines=["frozen"], rounds=0) == one
    first = seen[3]
    seen.clear()
    evaluate(model, pair, Noise(), grid, metric=metric, baselines=["frozen"], rounds=0, seed=1)
    assert not torch.equal(seen[3], first)


def test_kinds_of_data_agree(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    """Tensors, a Dataset, a loader and a list of batches are one and the same."""
    x, y = pair
    expected = evaluate(model, pair, Rotate(), grid=3, rounds=0)
    dataset = TensorDataset(x, y)
    for data in (dataset, DataLoader(dataset, batch_size=4), list(zip(x.split(9), y.split(9), strict=True)), [x, y]):
        assert evaluate(model, data, Rotate(), grid=3, batch_size=6, rounds=0) == expected


def test_two_threads_agree(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    expected = evaluate(model, pair, Rotate(), grid=3, rounds=0)
    found: list[Evaluation] = []
    threads = [
        threading.Thread(target=lambda: found.append(evaluate(model, pair, Rotate(), grid=3, rounds=0)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected, expected]


def test_grids(pair: tuple[Tensor, Tensor]) -> None:
    """A number of values of each parameter in all combinations, the settings themselves, or a sensible default."""
    both = {"angle": Angle("deg"), "blur": Interval(0.0, 2.0, unit="px")}
    model = condition(network(), both, LowRank(1))
    transform = Compose([Rotate(), Blur(2.0)])
    few = pair[0][:2], pair[1][:2]
    found = evaluate(model, few, transform, grid=2, baselines=["frozen"], rounds=0)
    assert found.settings == tuple({"angle": a, "blur": b} for a in (0.0, 180.0) for b in (0.0, 2.0))
    assert found.at(3) == "angle 180°, blur 2 px"
    assert len(evaluate(model, few, transform, baselines="frozen", rounds=0).settings) == 81
    given = evaluate(model, few, transform, {"angle": [10, 20.0, 30.0], "blur": 1.0}, baselines=(), rounds=0)
    assert given.settings[1] == {"angle": 20.0, "blur": 1.0}
    with pytest.raises(ParameterError):
        evaluate(model, few, transform, {"angle": [10.0]})
    for wrong in (0, True):
        with pytest.raises(InputError, match="grid"):
            evaluate(model, few, transform, wrong)


def test_one_theta_per_image_that_cannot_be_is_left_out(pair: tuple[Tensor, Tensor]) -> None:
    """A layer that cannot have one θ per sample leaves that time unknown, and everything else as it is."""
    model = condition(network(), {"angle": Angle("deg")}, LowRank(1))
    model.spec = dataclasses.replace(model.spec, merged=("0.weight",))
    found = evaluate(model, pair, Rotate(), grid=2, rounds=1)
    assert found.ours.cost is not None
    assert found.ours.cost_each is None
    assert found["inverse"].cost_each is not None


WRONG: dict[str, dict[str, Any]] = {
    "a plain network": {"model": nn.Flatten()},
    "a plain function": {"input_transform": lambda x, angle: x},
    "another name": {"input_transform": Rotate(name="turn")},
    "another unit": {"input_transform": Rotate(parameter=Angle("rad"))},
    "another anchor": {"input_transform": Rotate(parameter=Angle("deg", anchor=30.0))},
    "a baseline": {"baselines": ["frozn"]},
    "a taken name": {"others": {"frozen": nn.Flatten()}},
    "no network": {"others": {"One4All": 3}},
    "a metric's name": {"metric": "f1"},
    "no data": {"data": 3},
    "one-shot data": {"data": iter([])},
    "lengths": {"data": (torch.zeros(3, 1, 9, 9), torch.zeros(2))},
    "one image": {"data": (torch.zeros(1, 1, 9, 9), torch.zeros(1, dtype=torch.long))},
    "batches of one": {"data": [torch.zeros(3, 1, 9, 9)]},
    "batches unlike": {"data": [(torch.zeros(3, 1, 9, 9), torch.zeros(2))]},
    "a batch size": {"batch_size": 0},
    "one number": {"metric": lambda output, target: output.mean()},
    "not a tensor": {"metric": lambda output, target: 1.0},
    "not finite": {"metric": lambda output, target: output[:, 0] * math.nan},
    "floating targets": {"data": (torch.zeros(3, 1, 9, 9), torch.zeros(3))},
}

TOLD = {
    "a plain network": "expected a conditioned network, got Flatten",
    "a plain function": "subclass of InputTransform",
    "another name": "expected the model's parameters angle, got turn",
    "another unit": "'angle' is in deg for the model and in rad",
    "another anchor": "anchor at 0.0 for the model and at 30.0",
    "a baseline": "did you mean 'frozen'",
    "a taken name": "'frozen' is not free",
    "no network": "'One4All' to be a network",
    "a metric's name": "expected 'accuracy' or a function",
    "no data": r"pair of tensors \(x, y\)",
    "one-shot data": "make it a list",
    "lengths": "3 images and 2 targets",
    "one image": "two images or more",
    "batches of one": "batches .* of two tensors",
    "batches unlike": "as many targets as images",
    "a batch size": "batch_size",
    "one number": r"shape \(23,\), got shape \(\)",
    "not a tensor": "got 1.0",
    "not finite": "'conditioned' at .* is not finite",
    "floating targets": "class indices",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case: str, model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    """Each error says what was expected and what came."""
    given: dict[str, Any] = {"model": model, "data": pair, "input_transform": Rotate(), "grid": 2, "rounds": 0}
    with pytest.raises(InputError, match=TOLD[case]):
        evaluate(**given | WRONG[case])


def test_a_shuffled_loader_is_refused(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    """The noise is read off each image's scores over the grid, so the images must come in one order."""
    loader = DataLoader(TensorDataset(*pair), batch_size=5, shuffle=True)
    with pytest.raises(InputError, match="shuffle=False"):
        evaluate(model, loader, Rotate(), grid=2)


def test_a_loader_that_shrinks_is_refused(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    class Shrinking:
        passes = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.passes += 1
            yield pair[0][self.passes :], pair[1][self.passes :]

    with pytest.raises(InputError, match="a later pass"):
        evaluate(model, Shrinking(), Rotate(), grid=2)


def test_accuracy_of_maps_and_of_outputs_with_logits() -> None:
    """One score per sample, whatever the positions; an object that holds its logits is read."""

    @dataclasses.dataclass
    class Output:
        logits: Tensor

    logits = torch.zeros(2, 3, 4, 4)
    logits[:, 1] = 1.0
    target = torch.ones(2, 4, 4, dtype=torch.long)
    target[0, :2] = 2
    assert accuracy(Output(logits), target).tolist() == [0.5, 1.0]
    with pytest.raises(InputError, match=r"\(2, 3, 4, 4\)"):
        accuracy(logits, target[:, 0])
    with pytest.raises(InputError, match="got str"):
        accuracy("logits", target)


# θ told wrong, and θ that nobody told.


def test_offsets_equal_a_slow_loop(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    """Half of the score with θ too large, half with θ too small, image by image."""
    x, y = pair
    found = evaluate(model, pair, Rotate(), grid=3, offsets={"angle": [5, 70.0]}, batch_size=7, rounds=0)
    assert [row.name for row in found.rows[-2:]] == ["angle off by 5°", "angle off by 70°"]
    for off in (5.0, 70.0):
        values = []
        for angle in (0.0, 120.0, 240.0):
            turned = Rotate()(x, angle=angle)
            hits = [(model.bake(angle=angle + side * off)(turned).argmax(1) == y).double() for side in (1, -1)]
            values.append(float(sum(hits).mean()) / 2)  # type: ignore[union-attr]
        row = found[f"angle off by {off:g}°"]
        assert row.values == pytest.approx(values, abs=1e-9) and row.role == "offset" and row.needs_theta
    assert found["angle off by 70°"].mean < found.ours.mean


def test_offsets_stay_within_the_range(pair: tuple[Tensor, Tensor]) -> None:
    """A distance from the end of a range is cut off there, without a warning."""
    space = ParameterSpace({"brightness": Interval(-1.0, 1.0, unit="EV")})
    bright = trained(condition(network(), space, LowRank(1)))
    turn = Brightness(parameter=space["brightness"])
    found = evaluate(bright, pair, turn, grid={"brightness": [1.0]}, offsets={"brightness": 0.5}, rounds=0)
    x, y = pair
    hits = [bright.bake(brightness=b)(turn(x, brightness=1.0)).argmax(1) == y for b in (1.0, 0.5)]
    assert found["brightness off by 0.5 EV"].mean == pytest.approx(float(torch.stack(hits).double().mean()))


def test_inferred_rows_are_what_infer_gives(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    """Per image, and for images together; how far off θ was, and how many were abstained from."""
    x, y = pair
    options: dict[str, Any] = {"candidates": 8, "temperature": 0.5}
    found = evaluate(
        model, pair, Rotate(), grid=2, inferred=["image", 4], infer_options=options, rounds=1, batch_size=8,
    )  # fmt: skip
    hits: dict[str, list[float]] = {"image": [], "4": []}
    away: dict[str, list[Tensor]] = {"image": [], "4": []}
    left: dict[str, list[Tensor]] = {"image": [], "4": []}
    for angle in (0.0, 180.0):
        turned = Rotate()(x, angle=angle)
        one = infer(model, turned, **options)
        many = [infer(model, part, pool="batch", **options) for batch in turned.split(8) for part in batch.split(4)]
        hits["image"].append(float((one.outputs.argmax(1) == y).double().mean()))
        hits["4"].append(float((torch.cat([m.outputs for m in many]).argmax(1) == y).double().mean()))
        away["image"].append((torch.remainder(one["angle"] - angle + 180, 360) - 180).abs())
        away["4"].append(torch.stack([(torch.remainder(m["angle"] - angle + 180, 360) - 180).abs() for m in many]))
        left["image"].append(one.abstain)
        left["4"].append(torch.stack([m.abstain for m in many]))
    for name, title in (("image", "θ inferred per image"), ("4", "θ inferred per 4 images")):
        row = found[title]
        assert row.values == pytest.approx(hits[name], abs=1e-9)
        assert row.off is not None
        assert row.off["angle"] == pytest.approx(float(torch.cat(away[name]).double().quantile(0.5)), abs=1e-2)
        assert row.abstained == pytest.approx(float(torch.cat(left[name]).double().mean()))
        assert row.role == "inferred" and not row.needs_theta and row.trainable == found.ours.trainable
    assert found["θ inferred per image"].cost_each is not None and found["θ inferred per image"].cost is None
    assert found["θ inferred per 4 images"].cost is not None
    remark = next(r for r in found.remarks() if r.startswith("θ inferred per image"))
    assert "angle off by" in remark and "in the median" in remark and "abstained from" in remark
    assert Evaluation.from_json(found.to_json()) == found


def test_a_head_counts_among_the_numbers_where_it_is_asked(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    head = attach(model, pair[0])
    numbers = sum(p.numel() for p in head.parameters())
    for method, more in (("head", numbers), ("search", 0)):
        options = {"method": method, "candidates": 4}
        found = evaluate(model, pair, Rotate(), grid=1, inferred="image", infer_options=options, rounds=0)
        assert found["θ inferred per image"].trainable == (found.ours.trainable or 0) + more
    assert found.ours.trainable == sum(p.numel() for p in model.transform.parameters())


def test_categories_are_wrong_or_right(pair: tuple[Tensor, Tensor]) -> None:
    class Vendor(InputTransform):
        def apply(self, x: Tensor, theta: dict[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
            return x * (1 + theta["vendor"].reshape(-1, 1, 1, 1))

    space = ParameterSpace({"vendor": Categorical(("a", "b", "c"))})
    found = evaluate(trained(condition(network(), space, LowRank(1))), pair, Vendor(space), inferred="image", rounds=0)
    row = found["θ inferred per image"]
    assert row.off is not None and 0 < row.off["vendor"] < 1
    assert any("vendor wrong for" in remark for remark in found.remarks())
    with pytest.raises(ParameterError, match="no parameter with distances"):
        evaluate(condition(network(), space, LowRank(1)), pair, Vendor(space), offsets={"vendor": 1}, rounds=0)


def test_a_network_with_settings_of_its_own_is_told_theta(model: Conditioned, pair: tuple[Tensor, Tensor]) -> None:
    """Whatever has the method `at` gives the network of a setting."""

    class Book(nn.Module):
        def at(self, **theta: float) -> nn.Module:
            return model.bake(**theta)

    found = evaluate(model, pair, Rotate(), grid=4, others={"book": Book(), "plain": network(4)}, rounds=1)
    assert found["book"].values == found.ours.values and found["book"].needs_theta and not found["plain"].needs_theta
    assert found["book"].cost is not None and found["book"].cost_each is None


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"offsets": {"angel": 5}}, ParameterError, "'angel' is no parameter.*did you mean 'angle'"),
        ({"offsets": {"angle": [5, 0]}}, ParameterError, "distances above 0 for 'angle', got 0"),
        ({"inferred": "batch"}, InputError, "'image', or how many images share a θ, got 'batch'"),
        ({"inferred": [1]}, InputError, "got 1"),
        ({"inferred": "image", "infer_options": {"pool": "image"}}, InputError, "'pool' is set by evaluate"),
    ],
)
def test_conditions_that_do_not_fit(
    model: Conditioned, pair: tuple[Tensor, Tensor], options: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        evaluate(model, pair, Rotate(), grid=2, rounds=0, **options)


# The plain data.


def made(*rows: Row, images: int = 1000, **more: Any) -> Evaluation:
    space = ParameterSpace({"angle": Angle("deg")})
    return Evaluation(space.config(), {"angle": (0.0, 180.0)}, rows, images=images, **more)


def row(name: str, mean: float, clean: float = 0.99, error: float = 0.002, **more: Any) -> Row:
    role = more.pop("role", name if name in ("conditioned", "frozen", "inverse") else "other")
    numbers = {"conditioned": 3000, "other": 400000}.get(role, 0)
    return Row(name, role, (mean + 0.01, mean - 0.01), clean, error, **{"trainable": numbers} | more)  # type: ignore[arg-type]


FROZEN, OURS = row("frozen", 0.45), row("conditioned", 0.97)

ADVICE = {
    "ours, by far": (
        [OURS, FROZEN, row("inverse", 0.93), row("One4All", 0.94, 0.97)],
        "conditioned",
        "Prefer the conditioned network: it reaches 97.0 % on average over angle (96.0 % at worst) against 94.0 % for "
        "One4All, a difference beyond the noise of ±0.6 points; its clean accuracy is 99.0 %, and it has 3,000 "
        "trainable numbers.",
    ),
    "ours alone": (
        [OURS],
        "conditioned",
        "Prefer the conditioned network: it reaches 97.0 % on average over angle (96.0 % at worst); its clean accuracy "
        "is 99.0 %, and it has 3,000 trainable numbers.",
    ),
    "inverse, by far": (
        [dataclasses.replace(OURS, cost=1.04), FROZEN, row("inverse", 0.985, cost=1.254)],
        "inverse",
        "Undo the transform on the input: with the frozen network this reaches 98.5 % on average over angle (97.5 % at "
        "worst) against 97.0 % for the conditioned network, a difference beyond the noise of ±0.6 points, and it needs "
        "no training; a call takes 1.25 times the frozen network's time, with conditioned weights made once 1.04 "
        "times.",
    ),
    "inverse, a little lower": (
        [OURS, FROZEN, row("inverse", 0.968)],
        "inverse",
        "Undo the transform on the input: with the frozen network this reaches 96.8 % on average over angle (95.8 % at "
        "worst) against 97.0 % for the conditioned network, as good within the noise of ±0.6 points, and it needs no "
        "training.",
    ),
    "inverse, and One4All a little higher": (
        [OURS, FROZEN, row("inverse", 0.98), row("One4All", 0.983)],
        "inverse",
        "; One4All with 98.3 % is as good within the noise of ±0.6 points, and it needs no training",
    ),
    "One4All, by far": (
        [OURS, FROZEN, row("inverse", 0.96), row("One4All", 0.98, 0.972)],
        "One4All",
        "Prefer One4All: it reaches 98.0 % on average over angle (97.0 % at worst) against 97.0 % for the conditioned "
        "network, a difference beyond the noise of ±0.6 points; but its clean accuracy is 97.2 % against 99.0 %, and "
        "it has 400,000 trainable numbers against 3,000.",
    ),
    "One4All, by far, and clean": (
        [OURS, FROZEN, row("One4All", 0.98, 0.995, trainable=None)],
        "One4All",
        "points; its clean accuracy is 99.5 % against 99.0 %, and it has an unknown number of trainable numbers "
        "against 3,000.",
    ),
    "One4All, a little higher": (
        [OURS, FROZEN, row("One4All", 0.973)],
        "conditioned",
        "against 97.3 % for One4All, as good within the noise of ±0.6 points",
    ),
    "a smaller one, as good": (
        [OURS, FROZEN, row("low rank", 0.968, trainable=500), row("big", 0.972)],
        "low rank",
        "against 97.0 % for the conditioned network, as good within the noise of ±0.6 points; big with 97.2 % is as "
        "good within the noise of ±0.6 points; its clean accuracy is 99.0 % against 99.0 %, and it has 500 trainable "
        "numbers against 3,000.",
    ),
    "a smaller one that loses clean accuracy": (
        [OURS, FROZEN, row("low rank", 0.968, 0.98, trainable=500)],
        "conditioned",
        "Prefer the conditioned network",
    ),
    "an equal one": ([OURS, row("twin", 0.97, trainable=3000)], "conditioned", "Prefer the conditioned network"),
    "nothing to do": (
        [row("conditioned", 0.972), row("frozen", 0.97), row("inverse", 0.971)],
        "frozen",
        "Leave the network as it is: unchanged it reaches 97.0 % on average over angle (96.0 % at worst) against "
        "97.2 % for the conditioned network, as good within the noise of ±0.6 points; undoing the transform with "
        "97.1 % is as good within the noise of ±0.6 points, and nothing needs training.",
    ),
    "training went wrong": ([row("conditioned", 0.2), FROZEN], "frozen", "against 20.0 % for the conditioned network"),
    "no inverse": (
        [OURS, FROZEN],
        "conditioned",
        "beyond the noise of ±0.6 points, and the transform cannot be undone on the input; its clean",
    ),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice(case: str) -> None:
    """The rule picks what asks for least among what is as good as the best, and the sentence names what is better."""
    rows, preferred, expected = ADVICE[case]
    found = made(*rows, absent={"inverse": "what Blur does cannot be undone"} if case == "no inverse" else {})
    assert found.preferred.name == preferred
    assert expected in found.advice
    assert found.advice.endswith(".")
    assert found.advice.count(". ") == 0, "one sentence"
    best = max(rows, key=lambda r: r.mean)
    assert found.text(best.mean) in found.advice, "never hides a better alternative"


ALONE = row("θ inferred per image", 0.94, role="inferred")
SHARED = row("θ inferred per 64 images", 0.968, role="inferred")
MISTOLD = row("angle off by 5°", 0.99, role="offset", needs_theta=True)
KNOWN = dataclasses.replace(OURS, needs_theta=True)
UNTOLD = {
    "inferring, by far": (
        [KNOWN, FROZEN, ALONE, SHARED, row("One4All", 0.90)],
        "Where nobody knows θ, infer it for each image: this reaches 94.0 % against 90.0 % for One4All, a difference "
        "beyond the noise of ±0.6 points; inferred for images that share it, 96.8 % per 64 images.",
    ),
    "One4All": (
        [KNOWN, FROZEN, ALONE, row("One4All", 0.95)],
        "Where nobody knows θ, prefer One4All: it reaches 95.0 % against 94.0 % for inferring it for each image, a "
        "difference beyond the noise of ±0.6 points.",
    ),
    "the frozen network": (
        [KNOWN, row("frozen", 0.938), ALONE],
        "Where nobody knows θ, prefer the frozen network: it reaches 93.8 % against 94.0 % for inferring it for each "
        "image, as good within the noise of ±0.6 points.",
    ),
    "one that is told θ": (
        [KNOWN, FROZEN, ALONE, row("One4One", 0.99, needs_theta=True)],
        "infer it for each image: this reaches 94.0 % against 45.0 % for the frozen network",
    ),
    "none inferred": ([KNOWN, FROZEN], ""),
    "only together": ([KNOWN, FROZEN, SHARED], ""),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_advice_where_nobody_knows(case: str) -> None:
    """Rows that need not be told θ are compared with each other; a second sentence says what to prefer."""
    rows, expected = UNTOLD[case]
    advice = made(*rows).advice
    assert expected in advice
    assert advice.count(". ") == bool(expected) == ("nobody knows" in advice)


def test_rows_under_other_conditions_are_no_alternatives() -> None:
    """However good, a row that was told a wrong θ or none is not preferred where θ is known."""
    found = made(KNOWN, FROZEN, MISTOLD, dataclasses.replace(ALONE, values=(1.0, 1.0), trainable=1))
    assert found.preferred.name == "conditioned"
    assert "off by" not in found.advice
    assert found.advice.startswith("Prefer the conditioned network: it reaches 97.0 % on average over angle (96.0 % at")


@pytest.mark.parametrize(("error", "preferred"), [(0.0005, "conditioned"), (0.0011, "inverse")])
def test_paired_errors_decide_where_known(error: float, preferred: str) -> None:
    """Two standard errors of the paired difference, not of two independent means."""
    rows = row("conditioned", 0.972, error=0.01), row("inverse", 0.970, error=0.01)
    assert made(*rows).preferred.name == "inverse"
    assert made(*rows, errors=((0.0, error), (error, 0.0))).preferred.name == preferred


def test_advice_on_another_metric() -> None:
    found = made(OURS, FROZEN, metric="psnr")
    assert "reaches 0.97 on average" in found.advice
    assert "clean score is 0.99" in found.advice


def test_json_round_trip(model: Conditioned, pair: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """Every field comes back, times included, and the parameters with it."""
    found = evaluate(model, pair, Rotate(), grid=3, others={"One4All": network(4)}, rounds=1)
    back = Evaluation.from_json(found.to_json())
    assert back == found
    assert dataclasses.asdict(back) == dataclasses.asdict(found), "also what == leaves out"
    assert back.space["angle"] == model.space["angle"]
    assert (back.advice, back.table()) == (found.advice, found.table())
    path = found.save(tmp_path / "deep" / "figures.json")
    assert Evaluation.load(path) == found
    assert [file.name for file in path.parent.iterdir()] == ["figures.json"]
    assert {"date", "torch", "threads", "base", "weight transform", "input transform"} <= set(back.about)


def test_json_of_categories_round_trips(pair: tuple[Tensor, Tensor]) -> None:
    """Names come back as names."""

    class Vendor(InputTransform):
        def apply(self, x: Tensor, theta: dict[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
            return x * (1 + theta["vendor"])

    space = ParameterSpace({"vendor": Categorical(("a", "b", "c"), anchor="b")})
    found = evaluate(condition(network(), space, LowRank(1)), pair, Vendor(space), rounds=0)
    assert [found.at(i) for i in range(3)] == ["a", "b", "c"]
    assert Evaluation.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "other"}', '{"format": "weightmorph evaluation 1"}'], ids=range(5)
)
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"Evaluation\.to_json"):
        Evaluation.from_json(text)


def test_json_is_plain() -> None:
    """Nothing that only Python could read."""
    entries = json.loads(made(OURS, FROZEN).to_json(), parse_constant=lambda name: pytest.fail(name))
    assert entries["rows"][0]["name"] == "conditioned"


def test_tables() -> None:
    """Aligned text and Markdown hold the same cells."""
    found = made(OURS, row("a|b", 0.5, trainable=None, seconds=3.21), images=10_000)
    lines = found.table().splitlines()
    assert lines[2].startswith("conditioned  97.00 ± 0.20 %  96.00 % at 180°  99.00 %      3,000")
    assert "3.2 s" in lines[3]
    assert all(line == line.rstrip() for line in lines)
    table = found.markdown().splitlines()
    assert table[3].startswith("| a\\|b | 50.00 ± 0.20 % | 49.00 % at 180° | 99.00 % | – | 3.2 s |")
    assert {line.replace("\\|", "").count("|") for line in table[:4]} == {9}
    with pytest.raises(KeyError, match="did you mean 'conditioned'"):
        found["condtioned"]


def test_stored_bytes_are_a_column_where_they_are_known() -> None:
    found = made(dataclasses.replace(OURS, stored=135_840), dataclasses.replace(FROZEN, stored=0), row("other", 0.9))
    assert [line[5] for line in found.cells()] == ["stored", "136 kB", "0", "–"]
    assert "stored" not in made(OURS, FROZEN).cells()[0]
    assert len({len(line) for line in found.cells()}) == 1


def test_small_noise_is_not_written_as_none() -> None:
    assert made(images=100).text(0.0002, spread=True) == "0.02 points"
    assert made(images=100).text(0.0, spread=True) == "0 points"


@pytest.mark.parametrize(
    ("parameter", "value", "text"),
    [
        (Angle("rad"), 1.5, "1.5 rad"),
        (Interval(0.0, 4.0), 2.5, "2.5"),
        (LogInterval(0.5, 2.0, unit="×"), 0.5, "0.5 ×"),
        (Categorical(("day", "night")), 1.0, "night"),
    ],
)
def test_settings_as_text(parameter: Any, value: float, text: str) -> None:
    assert setting_text({"p": parameter}, {"p": value}) == text


def test_brightness_inverse_is_exact(pair: tuple[Tensor, Tensor]) -> None:
    """Where nothing is lost, undoing the transform is the frozen network on the clean image."""
    model = condition(network(), {"brightness": Interval(-0.5, 0.5)}, LowRank(1))
    found = evaluate(model, pair, Brightness(), grid=3, rounds=0)
    assert found["inverse"].values == (1.0, 1.0, 1.0)

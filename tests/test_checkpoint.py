"""Law 7: saving, loading, moving; and files that are damaged or belong to another base."""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_concurrency import Net as Counting
from torch import Tensor, nn
from zoo import FAMILIES, Bend, shake

import weightmorph as wm
from weightmorph import errors, storage
from weightmorph.base import View
from weightmorph.model import load as checkpoint
from weightmorph.storage import Fingerprint
from weightmorph.terms import RowScale, Term
from weightmorph.transforms import registry
from weightmorph.transforms.base import WeightTransform

SAVED = [f for f in FAMILIES if f != "custom"]
SPACE = {"angle": wm.Angle("deg", harmonics=2)}
THETA = ([0.0, 10.0, 200.0, 33.0], 33.0)


class Shared(nn.Module):
    """A user's own module for 3x3 kernels, one for all filters of all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(9 + 4, 9)

    def forward(self, taps: Tensor, code: Tensor) -> Tensor:
        return self.linear(torch.cat((taps, code), -1))


class Doubling(wm.LowRank):
    """A user's own family that inherits a shipped one's config()."""

    def delta(self, weight: Tensor, code: Tensor) -> Any:
        term = super().delta(weight, code)
        return type(term)(term.slot, 2 * term.left, term.gain, term.right)


class Shift(WeightTransform):
    """A user's own family from scratch."""

    family = "shift"

    def setup(self, slot: Any, code_dim: int) -> None:
        self.slope = nn.Parameter(torch.zeros(code_dim))

    def delta(self, weight: Tensor, code: Tensor) -> Term:
        amount = ((code - self.anchor_code(code)) @ self.slope).unsqueeze(-1)
        return RowScale(self.slot, weight, amount.expand(*amount.shape[:-1], self.slot.outputs))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
        nn.Flatten(), nn.Linear(4 * 16, 3),
    )  # fmt: skip


def make(family: str = "sum") -> tuple[nn.Module, wm.Conditioned, Tensor]:
    net = network()
    x = torch.randn(4, 1, 8, 8)
    model = wm.condition(net, SPACE, FAMILIES[family](), example=x)
    shake(model)
    return net, model, x


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def same(one: wm.Conditioned, other: wm.Conditioned, x: Tensor) -> None:
    """Bit for bit the same model, with the same keys and types."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name
    for theta in THETA:
        assert torch.equal(one(x, angle=theta), other(x, angle=theta))


# There and back.


@pytest.mark.parametrize("family", SAVED)
def test_save_and_load_give_the_same_model(family: str, path: Path) -> None:
    """Bit for bit, and all that goes with it; the base's weights are not in the file."""
    net, model, x = make(family)
    model.memory_limit = 12345
    model.save(path, metrics={"accuracy": np.float32(0.5), "by angle": (1, 2)})
    again = wm.load(path, net)
    same(model, again, x)
    assert again.slots == model.slots and list(again.slots) == list(model.slots)
    assert dict(again.space) == dict(model.space)
    assert (again.memory_limit, again.recipe) == (12345, model.recipe)
    assert again.merged == model.merged == ()
    assert again.summary() == model.summary()
    assert checkpoint.peek(path).metrics == {"accuracy": 0.5, "by angle": [1, 2]}
    content = path.read_bytes()
    for tensor in net.state_dict().values():
        assert tensor.numel() < 8 or tensor.numpy().tobytes() not in content
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    again.save(path.with_name("again.safetensors"), metrics={"accuracy": 0.5, "by angle": [1, 2]})
    assert path.with_name("again.safetensors").read_bytes() == content


@pytest.mark.parametrize(
    "recipe",
    [
        wm.Warp(prior=False, learn=True, grow=2, max_learned=9, max_taps=81, length=2.5, nugget=0.01),
        wm.LowRank(3, hidden=5) + wm.LowRank(1),
        wm.Scale(),
        wm.Subspace(3, hidden=2),
        wm.Lie(max_taps=9),
        wm.PerFilter("linear", anchored=False, max_taps=9),
        (wm.Warp() + wm.PerFilter("mlp", hidden=3)) + (wm.Scale() + wm.Lie()),
    ],
    ids=repr,
)
def test_recipes_are_made_again_from_data(recipe: WeightTransform) -> None:
    """Every option of every family survives JSON, in a sum as well."""
    data = json.loads(json.dumps(registry.describe(recipe)))
    again = registry.remake(data)
    assert [type(p) for p in again.parts] == [type(p) for p in recipe.parts]
    assert [p.config() for p in again.parts] == [p.config() for p in recipe.parts]
    assert registry.describe(again) == data


@pytest.mark.parametrize(
    "space",
    [
        {"angle": wm.Angle("rad", harmonics=3, anchor=0.1, affine=None)},
        {"p": wm.Interval(0.0, 2.0, encode="raw"), "q": wm.Interval(-1, 3, anchor=0.3, unit="px", order=2)},
        {"zoom": wm.LogInterval(0.1, 2.0, order=1, affine="zoom")},
        {"mirror": wm.Categorical(("no", "yes"), affine="flip_x"), "season": wm.Categorical(("a", "b", "c"), "b")},
        {"x": wm.Interval(np.float64(-1.5), np.float32(2.5))},  # type: ignore[arg-type]
    ],
    ids=lambda s: "+".join(s),
)
def test_spaces_survive(space: dict[str, wm.parameters.Parameter], path: Path) -> None:
    """In their order, for the code's columns follow it."""
    net = network()
    wm.condition(net, space, wm.Scale()).save(path)
    again = wm.load(path, net).space
    assert list(again.items()) == list(space.items())


def test_a_model_of_another_dtype_comes_back_on_a_base_of_that_dtype(path: Path) -> None:
    """Double and half; on the float base it is refused, with advice."""
    for dtype in (torch.float64, torch.float16):
        net, model, _ = make()
        model.to(dtype).save(path)
        with pytest.raises(errors.BaseError, match=rf"load it onto net\.to\(torch\.{str(dtype)[6:]}\)"):
            wm.load(path, net)
        again = wm.load(path, copy.deepcopy(net).to(dtype))
        assert again.dtype == model.dtype == dtype
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value) and again.state_dict()[name].dtype == value.dtype


def test_loading_leaves_the_network_and_the_random_numbers_alone(path: Path) -> None:
    net, model, _ = make()
    model.save(path)
    net.train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    wm.load(path, net)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_loaded_model_trains_on_as_the_saved_one(path: Path) -> None:
    net, model, x = make()
    model.save(path)
    again = wm.load(path, net)
    for each in (model, again):
        optimiser = torch.optim.SGD(each.parameters(), lr=0.1)
        each(x, angle=THETA[0]).square().sum().backward()
        optimiser.step()
    same(model, again, x)


# What is the user's own.


def test_a_shared_module_is_stored_once_and_comes_from_the_user(path: Path) -> None:
    """All slots of PerFilter(module) share one object: before, in the file, and after."""
    net, _, x = make()
    model = wm.condition(net, SPACE, wm.PerFilter(Shared()) + wm.Scale(), example=x)
    shake(model)
    model.save(path)
    with safe_open(path, framework="pt") as file:
        assert len([name for name in file.keys() if ".linear." in name]) == 2  # noqa: SIM118
    with pytest.raises(errors.CheckpointError, match=r"PerFilter\(<Shared>\).*transform="):
        wm.load(path, net)
    mine = Shared()
    again = wm.load(path, net, transform=wm.PerFilter(mine) + wm.Scale())
    same(model, again, x)
    again(x, angle=33.0).sum().backward()
    assert mine.linear.weight.grad is not None
    assert len(list(again.parameters())) == len(list(model.parameters()))


@pytest.mark.parametrize("bare", [True, False], ids=["module", "Custom"])
def test_a_users_own_transform_comes_from_the_user(bare: bool, path: Path) -> None:
    """A plain module is taken as `condition` takes it."""
    net, _, x = make()

    def recipe() -> nn.Module:
        return Bend() if bare else wm.Custom(Bend(), anchored=True)

    model = wm.condition(net, SPACE, recipe(), example=x)
    shake(model)
    model.save(path)
    with pytest.raises(errors.CheckpointError, match=r"Custom.*<Bend>.*transform="):
        wm.load(path, net)
    same(model, wm.load(path, net, transform=recipe()), x)


@pytest.mark.parametrize("recipe", [Doubling(2), Shift() + wm.Scale()], ids=["inherits_config", "from_scratch"])
def test_a_users_own_family_comes_from_the_user(recipe: WeightTransform, path: Path) -> None:
    """Also one that says it is a LowRank: it is not rebuilt as one."""
    net, _, x = make()
    model = wm.condition(net, SPACE, recipe, example=x)
    shake(model)
    model.save(path)
    with pytest.raises(errors.CheckpointError, match=rf"<{type(recipe.parts[0]).__name__}>.*transform="):
        wm.load(path, net)
    same(model, wm.load(path, net, transform=recipe), x)


def test_another_transform_than_was_saved_is_refused(path: Path) -> None:
    """Other options or other families; a renamed module of one's own is none of those."""
    net, model, x = make("lowrank")
    model.save(path)
    same(model, wm.load(path, net, transform=wm.LowRank(2)), x)
    for other in (wm.LowRank(3), wm.LowRank(2) + wm.Scale(), Doubling(2), Bend()):
        with pytest.raises(errors.CheckpointError, match="another transform"):
            wm.load(path, net, transform=other)
    with pytest.raises(errors.CheckpointError, match="expected a weight transform"):
        wm.load(path, net, transform="LowRank")  # type: ignore[arg-type]

    class Renamed(Bend):
        pass

    wm.condition(net, SPACE, Bend(), example=x).save(path)
    wm.load(path, net, transform=Renamed())


def test_a_module_whose_tensors_do_not_fit_is_refused_before_it_is_written_to(path: Path) -> None:
    net, _, x = make()
    wm.condition(net, SPACE, wm.PerFilter(Shared()), example=x).save(path)
    other = Shared()
    other.linear = nn.Linear(9 + 4, 9, bias=False)
    before = other.linear.weight.detach().clone()
    with pytest.raises(errors.CheckpointError, match=r"module\.linear\.bias"):
        wm.load(path, net, transform=wm.PerFilter(other))
    assert torch.equal(other.linear.weight, before)


def test_what_is_no_plain_data_is_refused_when_saving(path: Path) -> None:
    """A parameter of the user's own kind, and extra state of a module."""

    @dataclass(frozen=True)
    class Tilt(wm.Angle):
        pass

    net = network()
    with pytest.raises(errors.CheckpointError, match="Tilt"):
        wm.condition(net, {"tilt": Tilt()}, wm.Scale()).save(path)

    class Stateful(Bend):
        def get_extra_state(self) -> object:
            return {"seen": 3}

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(errors.CheckpointError, match=r"_extra_state.*buffer"):
        wm.condition(net, SPACE, Stateful()).save(path)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("value", [math.nan, {"worst": [1.0, -math.inf]}, np.float32("nan")])
def test_metrics_that_json_cannot_say_are_refused(value: Any, path: Path) -> None:
    """By name, because a NaN would make a file that other readers of JSON refuse."""
    _, model, _ = make()
    with pytest.raises(errors.CheckpointError, match=r"metrics: expected what JSON .*(nan|inf).* for 'acc'"):
        model.save(path, metrics={"clean": 0.5, "acc": value})
    assert not path.exists()


# Another base.


def _other_values(net: nn.Sequential) -> nn.Module:
    net[0].weight.data[0, 0, 0, 0] += 1e-3  # type: ignore[union-attr,operator]
    return net


def _other_statistics(net: nn.Sequential) -> nn.Module:
    net[1].running_mean.add_(1e-3)  # type: ignore[union-attr,operator]
    return net


def _one_layer_more(net: nn.Sequential) -> nn.Module:
    return net.append(nn.Linear(3, 3))


OTHERS: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "values": (_other_values, r"1 of 11 tensors differ: 0\.weight \(other values\)"),
    "statistics": (_other_statistics, r"1\.running_mean \(other values\)"),
    "more": (_one_layer_more, r"2 of 13 tensors differ: 6\.weight \(not expected\), 6\.bias \(not expected\)"),
    "less": (lambda net: net[:5], r"5\.weight \(missing\), 5\.bias \(missing\)"),
    "shape": (
        lambda net: nn.Sequential(*net[:5], nn.Linear(64, 2)),
        r"5\.weight \(float32 \(2, 64\), expected float32 \(3, 64\)\)",
    ),
    "untrained": (lambda net: network(1), r"8 of 11 tensors differ|6 of 11 tensors differ"),
}


@pytest.mark.parametrize("change", list(OTHERS))
def test_another_base_is_refused_with_both_fingerprints(change: str, path: Path) -> None:
    """And with the tensors that differ."""
    net, model, _ = make()
    model.save(path)
    alter, words = OTHERS[change]
    other = alter(copy.deepcopy(net))
    with pytest.raises(errors.BaseError, match=words) as caught:
        wm.load(path, other)
    for each in (net, other):
        assert str(Fingerprint.of(View(each).tensors())) in str(caught.value)


def test_the_fingerprint_follows_content_and_not_layout() -> None:
    net = network()
    before = Fingerprint.of(View(net).tensors())
    assert Fingerprint.of(View(copy.deepcopy(net)).tensors()) == before
    assert Fingerprint.of(View(net.to(memory_format=torch.channels_last)).tensors()) == before
    assert len(str(before)) == 16


def test_tied_tensors_count(path: Path) -> None:
    """The same values, but no longer one tensor: the network would answer otherwise."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    untied = copy.deepcopy(net)
    net[2].weight = net[0].weight
    untied[2].load_state_dict(net[2].state_dict())
    wm.condition(net, SPACE, wm.Scale()).save(path)
    wm.load(path, copy.deepcopy(net))
    with pytest.raises(errors.BaseError, match=r"2\.weight \(float32 \(4, 4\), expected tied to 0\.weight\)"):
        wm.load(path, untied)


@pytest.mark.parametrize("how", ["called", "copied", "pickled", "moved"])
def test_buffers_that_the_base_writes_do_not_make_it_another(how: str, path: Path) -> None:
    """A counter in the base has moved on by the time the model is saved."""
    net = Counting()
    model = wm.condition(net, SPACE, wm.Scale())
    x = torch.randn(2, 1, 5, 5)
    model(x, angle=3.0)
    other = {
        "called": lambda: model,
        "copied": lambda: copy.deepcopy(model),
        "pickled": lambda: pickle.loads(pickle.dumps(model)),
        "moved": lambda: model.double().float(),
    }[how]()
    other.save(path)
    assert int(net.calls) == 0
    same_ = wm.load(path, net)
    assert torch.equal(same_(x, angle=33.0), other(x, angle=33.0))


def test_only_a_plain_network_with_values_is_loaded_onto(path: Path) -> None:
    net, model, _ = make()
    model.save(path)
    for wrong in (model, net.state_dict()):
        with pytest.raises(errors.BaseError, match="expected the plain network"):
            wm.load(path, wrong)  # type: ignore[arg-type]
    with pytest.raises(errors.BaseError, match="meta device"):
        wm.load(path, copy.deepcopy(net).to("meta"))


# Damage.


@pytest.mark.parametrize("kind", ["truncated", "flipped", "overwritten", "extended"])
def test_damaged_files_are_refused(kind: str, path: Path) -> None:
    """Two hundred of each: always our own error, or, where the damage is in padding, the same model."""
    net, model, x = make("sum")
    model.save(path)
    whole = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for n in range(200):
        broken = bytearray(whole)
        # One in two hits the first bytes or the tensors, which are few beside the header.
        low, high = ((0, 64), (len(whole) - 2000, len(whole)), (0, len(whole)), (0, len(whole)))[n % 4]
        place = generator.randrange(low, high)
        if kind == "truncated":
            broken = broken[:place]
        elif kind == "flipped":
            broken[place] ^= 1 << generator.randrange(8)
        elif kind == "overwritten":
            broken[place : place + 16] = generator.randbytes(len(broken[place : place + 16]))
        else:
            broken[place:place] = generator.randbytes(generator.randrange(1, 64))
        path.write_bytes(bytes(broken))
        try:
            again = wm.load(path, net)
        except (errors.CheckpointError, errors.BaseError):
            refused += 1
        else:
            same(model, again, x)
    assert refused == 200 if kind == "truncated" else refused > 190


def rewrite(path: Path, alter: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    """Change a file's header and tensors, with the header's checksum made right again."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["weightmorph"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    del header["sha256"]
    alter(header, tensors)
    save_file(tensors, path, {"weightmorph": json.dumps(header | {"sha256": storage.checksum(header)})})


ALTERED: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], object], str]] = {
    "a tensor is missing": (
        lambda h, t: t.pop("transform.scale.1.bias.slope"),
        r"1 of \d+ tensors are missing: transform\.scale\.1\.bias\.slope",
    ),
    "a tensor too many": (lambda h, t: t.update(x=torch.ones(1)), "does not name: x"),
    "a tensor has changed": (
        lambda h, t: t["transform.scale.1.bias.slope"].add_(1),
        r"other bytes than were written in transform\.scale\.1\.bias\.slope",
    ),
    "a newer format": (
        lambda h, t: h.update(format=7),
        r"format 7, and this release .* up to format 1.*pip install -U weightmorph",
    ),
    "no format": (lambda h, t: h.update(format="?"), "format reads"),
    "no format at all": (lambda h, t: h.pop("format"), "lacks 'format'"),
    "no slots": (lambda h, t: h.pop("slots"), "lacks 'slots'"),
    "no base": (lambda h, t: h.update(base={}), "lacks 'tensors'"),
    "no such dtype": (lambda h, t: h.update(dtype="nn"), "no dtype"),
    "no such parameter": (lambda h, t: h["parameters"]["angle"].update(type="Time"), "Time"),
    "no such field": (lambda h, t: h["slots"][0].update(colour=1), "colour"),
    "no such family": (lambda h, t: h["transform"]["parts"][0].update(type="Wrap"), "'Wrap'; did you mean 'Warp'"),
    "no such option": (lambda h, t: h["transform"]["parts"][0].update(speed=1), "Warp.*speed"),
    "no transform": (lambda h, t: h.update(transform={}), "cannot be made again: 'type'"),
    "fewer slots": (lambda h, t: h["slots"].pop(), "do not fit the transform"),
    "a slot of another layer": (lambda h, t: h["slots"][0].update(name="9.weight"), r"'9\.weight' cannot be a tensor"),
    "a slot of no layer": (lambda h, t: h["slots"][0].update(name="9.weight", layer="9"), r"no tensor 9\.weight"),
    "a slot elsewhere": (lambda h, t: h["slots"][0].update(shape=[4, 1, 5, 5]), r"no tensor 0\.weight of shape"),
}


@pytest.mark.parametrize("change", list(ALTERED))
def test_what_is_wrong_with_a_file_is_said(change: str, path: Path) -> None:
    """Missing pieces are named."""
    net, model, _ = make()
    model.save(path)
    alter, words = ALTERED[change]
    rewrite(path, alter)
    with pytest.raises(errors.CheckpointError, match=words) as caught:
        wm.load(path, net)
    assert str(path) in str(caught.value)


def test_files_of_another_kind_are_named(path: Path) -> None:
    net, model, _ = make()
    with pytest.raises(FileNotFoundError):
        wm.load(path, net)
    path.write_bytes(b"")
    with pytest.raises(errors.CheckpointError, match="cut short: it has 0 bytes"):
        wm.load(path, net)
    torch.save(net.state_dict(), path)
    with pytest.raises(errors.CheckpointError, match=r"such as torch\.save writes"):
        wm.load(path, net)
    save_file(net.state_dict(), path)
    with pytest.raises(errors.CheckpointError, match=r"not a checkpoint of weightmorph.*network itself"):
        wm.load(path, net)
    path.write_text("a letter to a friend, which is longer than eight bytes")
    with pytest.raises(errors.CheckpointError, match="not a safetensors file, or cut short"):
        wm.load(path, net)
    path.write_bytes(struct.pack("<Q", 3) + b"[1]")
    with pytest.raises(errors.CheckpointError, match="damaged, or not a safetensors file"):
        wm.load(path, net)
    model.save(path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(errors.CheckpointError, match=f"100 of its {size:,} bytes are missing"):
        wm.load(path, net)


def test_nothing_in_a_file_is_executed(path: Path) -> None:
    """A pickle that would, if anybody unpickled it."""
    net, _, _ = make()

    class Trap:
        def __reduce__(self) -> Any:
            return pytest.fail, ("the file was executed",)

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(errors.CheckpointError):
        wm.load(path, net)


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_failed_write_leaves_the_old_file(step: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and alone in its folder."""
    _net, model, _x = make("lowrank")
    model.save(path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(step, fail)
    shake(model, seed=9)
    with pytest.raises(OSError, match="disk full"):
        model.save(path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_without_safetensors_the_message_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, model, _ = make("scale")
    model.save(path)
    for name in [n for n in sys.modules if n.split(".")[0] == "safetensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for act in (lambda: model.save(path), lambda: wm.load(path, net)):
        with pytest.raises(errors.MissingDependencyError, match=r"'safetensors'.*pip install 'weightmorph\[save\]'"):
            act()


# Without a file.


@pytest.mark.parametrize("family", list(FAMILIES))
def test_moves_copies_and_pickles_round_trip(family: str) -> None:
    """state_dict, deepcopy, pickle, and float to double and back."""
    net, model, x = make(family)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).double().float()):
        same(model, other, x)
    fresh = wm.condition(net, SPACE, FAMILIES[family](), example=x)
    assert not torch.allclose(fresh(x, angle=33.0), model(x, angle=33.0))
    fresh.load_state_dict(model.state_dict())
    same(model, fresh, x)
    with torch.no_grad():
        assert torch.equal(fresh(x, angle=0.0), net.eval()(x))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_low_precision_and_back_is_rounding(family: str) -> None:
    """`.half().float()` is the transform, and the base, rounded to half; the user's network stays as it was."""
    net, model, x = make(family)
    before = copy.deepcopy(net.state_dict())
    rough = copy.deepcopy(model).half().float()
    for name, value in model.state_dict().items():
        assert torch.equal(rough.state_dict()[name], value.half().float()), name
    expected = wm.condition(copy.deepcopy(net).half().float(), SPACE, FAMILIES[family](), example=x)
    expected.load_state_dict(rough.state_dict())
    for theta in THETA:
        torch.testing.assert_close(rough(x, angle=theta), expected(x, angle=theta), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_low_precision_runs() -> None:
    _, model, x = make()
    rough = copy.deepcopy(model).bfloat16()
    assert rough(x.bfloat16(), angle=33.0).dtype == torch.bfloat16
    torch.testing.assert_close(rough.float()(x, angle=33.0), model(x, angle=33.0), rtol=0.1, atol=0.1)


def test_keys_are_readable(path: Path) -> None:
    """Family, slot name, tensor; in the file as well."""
    _, model, _ = make()
    assert list(model.state_dict())[:3] == [
        "transform.warp.0.weight.taps", "transform.warp.0.weight.trust", "transform.warp.3.weight.taps",
    ]  # fmt: skip
    assert {"transform.lowrank.5.weight.left", "transform.scale.1.bias.slope"} <= set(model.state_dict())
    model.save(path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        header = json.loads(file.metadata()["weightmorph"])
    assert header["parameters"]["angle"]["unit"] == "deg" and header["selected"] == "default"
    assert header["base"]["network"] == "Sequential" and len(header["base"]["tensors"]) == 11

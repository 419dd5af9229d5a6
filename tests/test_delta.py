"""Deltas: a setting as a difference, in memory, put into a plain network and taken out bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import CASES, FAMILIES, applies, conditioned, settings, shake

import weightmorph as wm
from weightmorph import errors, storage

SPACE = {"angle": wm.Angle("deg", harmonics=2)}
HEIGHTS = (30.0, 200.0, 0.0, 90.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 16, 3),
    ).eval()  # fmt: skip


def make(family: str = "sum") -> tuple[nn.Module, wm.Conditioned, Tensor]:
    net = network()
    x = torch.randn(4, 1, 8, 8)
    model = wm.condition(net, SPACE, FAMILIES[family](), example=x)
    shake(model)
    return net, model, x


def identity(net: nn.Module) -> dict[str, Any]:
    """Everything of a network that a delta may touch: bytes, strides, storage, flags, what layers say of kernels."""
    found: dict[str, Any] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        found[name] = (
            id(parameter), parameter.data_ptr(), parameter.stride(), parameter.requires_grad,
            parameter.detach().contiguous().flatten().view(torch.uint8).tolist(),
        )  # fmt: skip
    for name, buffer in net.named_buffers(remove_duplicate=False):
        found[name] = (id(buffer), buffer.contiguous().flatten().view(torch.uint8).tolist())
    for name, module in net.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
        found[f"{name}."] = {k: v for k, v in own.items() if not callable(v) and "hook" not in k}
    return found


def same_weights(net: nn.Module, baked: nn.Module) -> None:
    """Bit for bit the baked network's, under the same keys."""
    mine, theirs = net.state_dict(), baked.state_dict()
    assert list(mine) == list(theirs)
    for name, value in theirs.items():
        assert mine[name].dtype == value.dtype and torch.equal(mine[name], value), name


def test_every_family_applies_as_it_bakes_and_comes_out_again() -> None:
    """Bit for bit the weights of `bake`, in whatever order settings follow, and then every bit of the base."""
    for family in FAMILIES:
        net, model, x = make(family)
        before = identity(net)
        deltas = [wm.Delta.of(model, angle=a) for a in HEIGHTS]
        applied = wm.apply_delta(net, deltas[0])
        for delta, angle in [*zip(deltas, HEIGHTS, strict=True)] * 2:
            applied.switch(delta)
            baked = model.bake(angle=angle)
            same_weights(net, baked)
            with torch.no_grad():
                assert torch.equal(net(x), baked(x)), (family, angle)
        applied.revert()
        assert identity(net) == before, family


@pytest.mark.parametrize(("layer", "family"), [c for c in CASES if c[1] in ("sum", "subspace", "warp_grown", "custom")])
def test_every_layer_applies_as_it_bakes(layer: str, family: str) -> None:
    """Transposed, grouped, 3-D, normalised, called twice, with its own padding; in float64, from a file."""
    if not applies(layer, family):
        pytest.skip("the family wants nothing of it")
    model, x = conditioned(layer, family)
    net = model.frozen()
    before = identity(net)
    theta = {name: float(value[1]) for name, value in settings(layer).items()}
    with wm.apply_delta(net, wm.Delta.of(model, **theta)):
        baked = model.bake(**theta)
        same_weights(net, baked)
        with torch.no_grad():
            assert torch.equal(net(x), baked(x))
    assert identity(net) == before


def test_a_grown_kernel_is_widened_and_restored() -> None:
    """`Warp` adds taps to the strided convolution: kernel_size and padding follow, also back and forth."""
    net, model, x = make("warp_grown")
    layer: Any = net[0]  # type: ignore[index]
    assert wm.Delta.of(model, angle=0.0).changes == {}
    applied = wm.apply_delta(net, wm.Delta.of(model, angle=30.0))
    for angle in (70.0, 0.0, 71.0):
        applied.switch(wm.Delta.of(model, angle=angle))
        wide = angle != 0.0
        assert layer.kernel_size == ((5, 5) if wide else (3, 3)) and layer.padding == ((2, 2) if wide else (1, 1))
        assert list(layer._reversed_padding_repeated_twice) == [2 if wide else 1] * 4
        with torch.no_grad():
            assert torch.equal(net(x), model.bake(angle=angle)(x))
    applied()
    assert layer.kernel_size == (3, 3) and layer.weight.shape == (8, 1, 3, 3)


def test_the_base_s_tensors_are_never_written() -> None:
    """A model that was conditioned on this very network goes on as before while a delta is in it."""
    net, model, x = make()
    expected = model(x, angle=30.0)
    for each in (net, model.frozen()):
        assert each.get_parameter("0.weight").data_ptr() == model.base.frozen["0.weight"].data_ptr()
        applied = wm.apply_delta(each, wm.Delta.of(model, angle=200.0))
        assert each.get_parameter("0.weight").data_ptr() != model.base.frozen["0.weight"].data_ptr()
        assert torch.equal(model(x, angle=30.0), expected)
        applied.prepare(wm.Delta.of(model, angle=30.0))
        applied.revert()
        assert torch.equal(model(x, angle=30.0), expected)


def test_a_network_made_under_inference_mode() -> None:
    _net, model, x = make("sum")
    with torch.inference_mode():
        net = copy.deepcopy(model.frozen())
        expected = net(x)
        with wm.apply_delta(net, wm.Delta.of(model, angle=200.0)):
            assert torch.equal(net(x), model.bake(angle=200.0)(x))
        assert torch.equal(net(x), expected)


def test_it_comes_out_of_a_network_in_any_state() -> None:
    """Channels-last, in train mode, with frozen parameters and hooks; its mode and flags stay."""
    net, model, x = make("sum")
    net = net.to(memory_format=torch.channels_last).train()
    net[0].weight.requires_grad_(False)  # type: ignore[index,union-attr,operator]
    seen: list[int] = []
    net[2].register_forward_hook(lambda *_: seen.append(1))  # type: ignore[index,operator]
    before = identity(net)
    applied = wm.apply_delta(net, wm.Delta.of(model, angle=30.0))
    assert net.training and not net[0].weight.requires_grad  # type: ignore[index,union-attr]
    with torch.no_grad():
        net.eval()(x)
    net.train()
    applied()
    assert identity(net) == before and seen == [1]


def test_tied_tensors_follow() -> None:
    """One parameter under two names changes under both."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    model = wm.condition(net, {"p": wm.Interval(0.0, 1.0)}, wm.LowRank(2))
    shake(model)
    with wm.apply_delta(net, wm.Delta.of(model, p=0.7)):
        assert net[2].weight is net[0].weight and torch.equal(net[2].weight, model.bake(p=0.7)[2].weight)  # type: ignore[index]


def test_a_prepared_setting_is_the_same_and_can_be_forgotten() -> None:
    net, model, _ = make()
    one, two = (wm.Delta.of(model, angle=a) for a in (30.0, 60.0))
    applied = wm.apply_delta(net, one)
    applied.prepare(one, two)
    made, _ = applied._prepared[id(two)][1]["0.weight"]
    applied.switch(two)
    assert net.get_parameter("0.weight").data_ptr() == made.data_ptr()
    same_weights(net, model.bake(angle=60.0))
    applied.forget()
    applied.switch(one)
    same_weights(net, model.bake(angle=30.0))


def test_a_setting_of_several_parameters_and_a_category(tmp_path: Path) -> None:
    space = {"turn": wm.Angle("deg"), "season": wm.Categorical(("dry", "wet"))}
    net = network()
    model = wm.condition(net, space, wm.Scale())
    shake(model)
    delta = wm.Delta.of(model, turn=30, season="wet")
    assert delta.theta == {"turn": 30.0, "season": 1.0}
    delta.save(tmp_path / "d.safetensors")
    with wm.apply_delta(net, wm.Delta.load(tmp_path / "d.safetensors")):
        same_weights(net, model.bake(turn=30, season="wet"))


# What is refused.


def test_another_network_is_refused_and_left_alone() -> None:
    """Other values, other statistics, other layers, and one that has a delta in it already."""
    net, model, _ = make()
    delta = wm.Delta.of(model, angle=30.0)
    changes: dict[str, Callable[[Any], Any]] = {
        r"0\.weight \(other values\)": lambda n: n[0].weight.data[0, 0, 0, 0].add_(1e-3),
        r"1\.running_mean \(other values\)": lambda n: n[1].running_mean.add_(1e-3),
        r"7\.weight \(not expected\)": lambda n: n.append(nn.Linear(3, 3)),
        r"applied\.switch": lambda n: wm.apply_delta(n, wm.Delta.of(model, angle=60.0)),
    }
    for words, change in changes.items():
        other = copy.deepcopy(net)
        change(other)
        before = identity(other)
        with pytest.raises(errors.BaseError, match=words) as caught:
            wm.apply_delta(other, delta)
        assert identity(other) == before
        for each in (net, other):
            assert str(storage.Fingerprint.of_network(each)) in str(caught.value)
    with pytest.raises(errors.BaseError, match=r"net\.to\(torch\.float32\)"):
        wm.apply_delta(copy.deepcopy(net).double(), delta)


def test_what_is_no_plain_network_is_refused() -> None:
    net, model, _ = make("scale")
    delta = wm.Delta.of(model, angle=30.0)
    with pytest.raises(errors.BaseError, match=r"got a conditioned one; model\.at"):
        wm.apply_delta(model, delta)
    with pytest.raises(errors.BaseError, match=r"as an nn\.Module, got dict"):
        wm.apply_delta(dict(net.named_modules()), delta)  # type: ignore[arg-type]


def test_without_verification_shapes_are_looked_at() -> None:
    """Other values pass, as asked; other shapes and missing tensors do not."""
    net, model, _ = make("lowrank")
    delta = wm.Delta.of(model, angle=30.0)
    other = copy.deepcopy(net)
    other[0].weight.data.add_(1)  # type: ignore[index,union-attr,operator]
    wm.apply_delta(other, delta, verify=False).revert()
    with pytest.raises(errors.BaseError, match=r"6\.weight \(missing, expected \(3, 128\)\)"):
        wm.apply_delta(net[:6], delta, verify=False)  # type: ignore[index]
    with pytest.raises(errors.BaseError, match=r"6\.weight \(\(2, 128\), expected \(3, 128\)\)"):
        wm.apply_delta(nn.Sequential(*net[:6], nn.Linear(128, 2)), delta, verify=False)  # type: ignore[index,misc]


@pytest.mark.parametrize(
    "act",
    [
        lambda net: net.double(),
        lambda net: net.to_empty(device="cpu"),
        lambda net: net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True),
        lambda net: net.load_state_dict(copy.deepcopy(net.state_dict())),
        lambda net: setattr(net[0], "weight", nn.Parameter(torch.ones(8, 1, 3, 3))),
    ],
    ids=["cast", "emptied", "assigned", "loaded", "replaced"],
)
def test_a_network_that_was_touched_meanwhile_is_not_overwritten(act: Callable[[nn.Module], object]) -> None:
    """What somebody else put there stays: the delta says so and does nothing."""
    net, model, _ = make("sum")
    applied = wm.apply_delta(net, wm.Delta.of(model, angle=30.0))
    act(net)
    before = identity(net)
    delta = applied.delta
    assert delta is not None
    for attempt in (applied.revert, lambda: applied.switch(delta)):
        with pytest.raises(errors.BaseError, match=r"trained or loaded into.*0\.weight"):
            attempt()
        assert identity(net) == before


def test_a_switch_that_fails_leaves_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between two tensors, the network is the base again and not a mixture."""
    net, model, _ = make("sum")
    before = identity(net)
    applied = wm.apply_delta(net, wm.Delta.of(model, angle=30.0))
    site = applied._sites["3.weight"]
    put = site.put

    def interrupted(weight: nn.Parameter | None) -> None:
        put(weight)
        if weight is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(site, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        applied.switch(wm.Delta.of(model, angle=60.0))
    assert applied.delta is None and identity(net) == before


def test_a_delta_of_another_base_is_not_switched_to() -> None:
    net, model, _ = make("scale")
    torch.manual_seed(3)
    other = wm.condition(nn.Sequential(*[copy.deepcopy(m) for m in net]).float(), SPACE, wm.Scale())  # type: ignore[arg-type]
    applied = wm.apply_delta(net, wm.Delta.of(model, angle=30.0))
    applied.switch(wm.Delta.of(other, angle=30.0))  # equal bytes are the same base
    changed = copy.deepcopy(net)
    changed[6].weight.data.add_(1)  # type: ignore[index,union-attr,operator]
    with pytest.raises(errors.BaseError, match="of another base: expected fingerprint"):
        applied.switch(wm.Delta.of(wm.condition(changed, SPACE, wm.Scale()), angle=30.0))


def test_settings_that_are_none_are_refused() -> None:
    _, model, _ = make("scale")
    with pytest.raises(errors.ParameterLengthError, match="one value per parameter"):
        wm.Delta.of(model, angle=[1.0, 2.0])
    with pytest.raises(errors.ParameterValueError):
        wm.Delta.of(model, angle=float("nan"))
    with pytest.raises(errors.MissingParameterError):
        wm.Delta.of(model)

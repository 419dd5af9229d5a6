"""Which tensors are conditioned, and how they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightmorph as wm
from weightmorph.base import inspect_base, select_slots
from weightmorph.slots import Slot


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(4, 8, 1, bias=False))
        self.fc = nn.Linear(8 * 3 * 3, 5)
        self.own = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.max_pool2d(self.body(x) * self.own, 2)
        return self.fc(nn.functional.dropout(torch.relu(x.flatten(1)), 0.5, training=False))


X = torch.randn(2, 1, 13, 13)
ALL = slice(None)


def names(select: object = None) -> list[str]:
    return [slot.name for slot in select_slots(Net(), select)[0]]  # type: ignore[arg-type]


def test_the_default_is_every_known_layer_in_order() -> None:
    assert names() == [
        "stem.weight", "stem.bias", "norm.weight", "norm.bias", "body.0.weight", "body.0.bias", "body.2.weight",
        "fc.weight", "fc.bias",
    ]  # fmt: skip


def test_patterns_types_predicates_and_lists() -> None:
    assert names("body.*.weight") == ["body.0.weight", "body.2.weight"]
    assert names("body.0") == ["body.0.weight", "body.0.bias"]
    assert names(nn.Conv2d) == ["stem.weight", "stem.bias", "body.0.weight", "body.0.bias", "body.2.weight"]
    assert names(lambda slot: slot.n_taps == 9) == ["stem.weight", "body.0.weight"]
    assert names(["fc*", nn.BatchNorm2d]) == ["norm.weight", "norm.bias", "fc.weight", "fc.bias"]
    assert names("own") == ["own"]


def test_the_order_does_not_depend_on_the_selection() -> None:
    assert names(["fc.weight", "stem.weight"]) == ["stem.weight", "fc.weight"]


def test_families_take_what_they_want() -> None:
    """Warp wants taps, LowRank weights, Scale everything that no conditioned norm scales right after it."""

    def slots(transform: wm.WeightTransform) -> list[str]:
        return list(wm.condition(Net(), {"angle": wm.Angle()}, transform, example=X).slots)

    assert slots(wm.Warp()) == ["stem.weight", "body.0.weight", "fc.weight"]
    assert slots(wm.LowRank(2)) == ["stem.weight", "body.0.weight", "body.2.weight", "fc.weight"]
    assert slots(wm.Scale()) == [name for name in names() if not name.startswith("stem.")]
    assert list(wm.condition(Net(), {"angle": wm.Angle()}, wm.Scale()).slots) == names(), "unknown without an example"


def test_a_linear_after_a_flatten_is_a_kernel() -> None:
    """Recognised by the example, through ReLU and dropout, or told."""
    found = wm.condition(Net(), {"angle": wm.Angle()}, wm.Warp(), example=X).slots["fc.weight"]
    assert found.kernel == (3, 3) and found.fixed and found.pixel == pytest.approx(13 / 3)
    told = wm.condition(Net(), {"angle": wm.Angle()}, wm.Warp(), maps={"fc": (3, 3)}).slots["fc.weight"]
    assert told.kernel == (3, 3)
    with pytest.raises(wm.errors.SelectionError, match=r"'fc'.*\(5, 5\).*multiple of 25"):
        wm.condition(Net(), {"angle": wm.Angle()}, wm.Warp(), maps={"fc": (5, 5)})
    with pytest.raises(wm.errors.SelectionError, match="no conditioned Linear is named 'fcc'; did you mean 'fc'"):
        wm.condition(Net(), {"angle": wm.Angle()}, wm.Warp(), maps={"fcc": (3, 3)})


@pytest.mark.parametrize(
    "reads",
    [
        lambda y, norm: torch.cat([y, norm(y)], 1),
        lambda y, norm: (y, norm(y)),
        lambda y, norm: y.mT + norm(y),
    ],
)
def test_a_layer_with_a_second_reader_is_scaled_beside_its_norm(reads: Callable[[Tensor, nn.Module], Any]) -> None:
    """A second reader may take the output in a list, return it, or read an attribute of it."""

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Any:
            return reads(self.conv(x), self.norm)

    model = wm.condition(Read(), {"angle": wm.Angle()}, wm.Scale(), example=X)
    assert list(model.slots) == ["conv.weight", "conv.bias", "norm.weight", "norm.bias"]


@pytest.mark.parametrize("example", [torch.zeros(0, 1, 13, 13), torch.zeros(1, 13, 13), {"x": torch.zeros(1, 13, 13)}])
def test_an_example_needs_a_sample_and_a_batch_axis(example: Any) -> None:
    expected = "at least one sample" if torch.is_tensor(example) and not len(example) else "'stem'.*a batch axis"
    with pytest.raises(wm.errors.SelectionError, match=f"{expected}.*13, 13"):
        wm.condition(Net(), {"angle": wm.Angle()}, wm.Warp(), example=example)


def test_a_base_may_read_its_samples_one_by_one() -> None:
    """Nothing is learned of a layer whose maps have no batch axis, and it cannot have one θ per sample."""

    class OneByOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.conv = nn.MaxPool2d(2), nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.conv(self.pool(one)) for one in x])

    model = wm.condition(OneByOne(), {"angle": wm.Angle("deg")}, wm.Warp(), example=X)
    assert model.slots["conv.weight"].taps == ((-1.0, 0.0, 1.0),) * 2
    assert model(X, angle=30.0).shape == (2, 4, 6, 6)
    with pytest.raises(wm.errors.BatchSizeError, match="'conv'"):
        model(X, angle=[30.0, 60.0])


def test_nothing_is_known_of_the_batch_where_the_example_cannot_be_resized() -> None:
    """So a call whose first and second axis are equally long says that it takes the first."""

    class State(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.register_buffer("state", torch.ones(4, 4, 3))

        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == len(self.state)
            return self.fc(x + self.state)

    x = torch.randn(4, 4, 3)
    model = wm.condition(State(), {"angle": wm.Angle("deg")}, wm.LowRank(1), example=x)
    assert model.merged is None
    with pytest.warns(wm.errors.ConditioningWarning, match="cannot tell whether the first axis or the second"):
        model(x, angle=[10.0, 20.0, 30.0, 40.0])


class Cut(nn.Module):
    """Slices of a map."""

    def __init__(self, *index: Any) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        return x[self.index]


class Join(nn.Module):
    """Channels of several maps."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x)[:, :1] for part in self.parts], 1).sum(1, keepdim=True)


class Geometry(nn.Module):
    """A convolution after something that moves grids."""

    def __init__(self, before: nn.Module, conv: nn.Module) -> None:
        super().__init__()
        self.before, self.conv = before, conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.before(x))


@pytest.mark.parametrize(
    ("before", "conv", "size", "taps"),
    [
        (nn.Identity(), nn.Conv2d(1, 1, 3, padding=1), 8, [-1, 0, 1]),
        (nn.Identity(), nn.Conv2d(1, 1, 3), 8, [-1, 0, 1]),
        (nn.Identity(), nn.Conv2d(1, 1, 3, padding=1, stride=2), 9, [-1, 0, 1]),
        (nn.Identity(), nn.Conv2d(1, 1, 3, padding=1, stride=2), 8, [-1.5, -0.5, 0.5]),
        (nn.Identity(), nn.Conv2d(1, 1, 3, dilation=2, padding=2), 8, [-2, 0, 2]),
        (nn.Identity(), nn.Conv2d(1, 1, 2, stride=2), 8, [-0.5, 0.5]),
        (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 1, 3, stride=2), 8, [-0.5, 0.5, 1.5]),
        (nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, padding=1), 8, [-1, 0, 1]),
        (nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, padding=1), 9, [-1.25, -0.25, 0.75]),
        (nn.LPPool2d(2, 2), nn.Conv2d(1, 1, 3, padding=1), 9, [-1.25, -0.25, 0.75]),
        (nn.MaxPool2d(2, 1, dilation=2), nn.Conv2d(1, 1, 3, padding=1), 8, [-1, 0, 1]),
        (nn.MaxPool2d(3, dilation=2), nn.Conv2d(1, 1, 3, padding=1), 9, [-7 / 6, -1 / 6, 5 / 6]),
        (nn.AvgPool2d(3, 2, 1, True), nn.Conv2d(1, 1, 3, padding=1), 8, [-0.75, 0.25, 1.25]),
        (Cut(..., slice(2, None), slice(2, None)), nn.Conv2d(1, 1, 3, padding=1), 8, [0, 1, 2]),
        (nn.ZeroPad2d((-2, 0, -2, 0)), nn.Conv2d(1, 1, 3, padding=1), 8, [0, 1, 2]),
        (Cut(ALL, ALL, slice(1, None, 2), slice(-7, None, 2)), nn.Conv2d(1, 1, 3), 8, [-0.75, 0.25, 1.25]),
        (nn.Sequential(nn.MaxPool2d(2), Cut(ALL, [0])), nn.Conv2d(1, 1, 3), 9, [-1.25, -0.25, 0.75]),
        (Join(nn.MaxPool2d(2), nn.MaxPool2d(2)), nn.Conv2d(1, 1, 3), 9, [-1.25, -0.25, 0.75]),
        (Join(nn.MaxPool2d(1, 2), Cut(..., *[slice(1, None, 2)] * 2)), nn.Conv2d(1, 1, 3), 8, [-1, 0, 1]),
        (nn.Identity(), nn.ConvTranspose2d(1, 1, 2, stride=2), 4, [-0.5, 0.5]),
        (nn.Identity(), nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1, output_padding=1), 4, [-1.5, -0.5, 0.5]),
    ],
)
def test_taps_lie_about_the_point_that_the_output_grids_centre_rests_on(
    before: nn.Module, conv: nn.Module, size: int, taps: list[float]
) -> None:
    """Strides on even maps, padding on one side, and pools that drop a row all move it."""
    net = Geometry(before, conv)
    slots = select_slots(net)[0]
    usage = inspect_base(net, slots, (torch.randn(1, 1, size, size),), {}).usages["conv.weight"]
    assert usage.taps == (pytest.approx(taps), pytest.approx(taps))


def _mirror(x: Tensor) -> Tensor:
    return x.flip(-1)


@pytest.mark.parametrize("size", [8, 9, 12, 13])
def test_a_half_turn_of_every_kernel_turns_the_output(size: int) -> None:
    """With taps where they are, a half turn of kernels and image gives the turned map exactly: strides, even maps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1)).double()
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    model = wm.condition(net, {"angle": wm.Angle()}, wm.Warp(learn=False, nugget=0.0), example=x)
    with torch.no_grad():
        turned = model(torch.rot90(x, 2, (2, 3)), angle=180.0)
        quarter = model(torch.rot90(x, 1, (2, 3)), angle=90.0)
    torch.testing.assert_close(turned, torch.rot90(net(x), 2, (2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(quarter, torch.rot90(net(x), 1, (2, 3)), rtol=1e-5, atol=1e-5)


def test_growing_widens_kernel_and_padding_and_keeps_keys() -> None:
    """`bake` gives an ordinary layer with a larger kernel."""
    net = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1))
    x = torch.randn(2, 1, 8, 8)
    model = wm.condition(net, {"angle": wm.Angle()}, wm.Warp(), example=x)
    baked = model.bake(angle=30.0)
    assert baked[0].kernel_size == (4, 4) and baked[0].weight.shape == (3, 1, 4, 4)
    assert list(baked.state_dict()) == list(net.state_dict())
    told = "kernel_size=(4, 4), stride=(2, 2), padding=(1, 1), padding_mode=constant"
    assert repr(baked[0]) == f"Conv2d(1, 3, {told})"
    for other in (x, torch.randn(2, 1, 9, 7)):  # at odd sizes no pixel is left over that the new tap could read
        torch.testing.assert_close(baked(other), model(other, angle=30.0))
        torch.testing.assert_close(baked(other), model(other, angle=[30.0, 30.0]))
        assert baked(other).shape == net(other).shape
    assert net[0].kernel_size == (3, 3)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("pads", [(0, 1), (1, 0), (1, 1)])
def test_a_tap_on_one_side_makes_supports_symmetric(dims: int, pads: tuple[int, int]) -> None:
    """On whichever side it is missing, in every dimension; half a turn (a flip) of the base is then exact."""
    torch.manual_seed(0)
    shape = (6, 8, 8)[-dims:]
    pad: nn.Module = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}[dims](pads * dims, 0.0)  # type: ignore[abstract]
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](2, 3, 3, stride=2)
    net = nn.Sequential(pad, conv).double()
    x = torch.randn(4, 2, *shape, dtype=torch.float64)
    parameter = wm.Angle("deg") if dims > 1 else wm.Categorical(["as it is", "mirrored"], affine="flip_x")
    model = wm.condition(net, {"turn": parameter}, wm.Warp(nugget=0.0), example=x)
    turn, axes = (180.0, (-2, -1)) if dims > 1 else ("mirrored", (-1,))
    wide = model.bake(turn=turn).get_parameter("1.weight").shape[2:]
    assert tuple(wide) == ((3,) if dims == 3 else ()) + (4,) * min(dims, 2)
    expected = net(x.flip(axes)).flip(axes)
    torch.testing.assert_close(model(x, turn=turn), expected.detach(), rtol=1e-9, atol=1e-9)


def test_taps_go_to_both_sides_where_the_layer_can_only_be_told_of_both() -> None:
    """A forward of its own that reads `padding`, as EfficientNet's does."""

    class Own(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    net = nn.Sequential(Own(1, 3, 3, stride=2, padding=1))
    model = wm.condition(net, {"angle": wm.Angle()}, wm.Warp(), example=torch.zeros(1, 1, 8, 8))
    assert model.bake(angle=30.0).get_parameter("0.weight").shape[2:] == (5, 5)


def test_slots_canonical_form_round_trips() -> None:
    for slot in (
        Slot.of((6, 4, 3, 5)),
        Slot("w", "", "w", "conv", (6, 2, 3), groups=3, kernel=(3,)),
        Slot("w", "", "w", "conv_transpose", (6, 2, 3, 3), groups=3, kernel=(3, 3)),
        Slot.of((5, 18)).as_map((3, 3)),
        Slot.of((7,)),
        Slot("w", "", "w", "other", (2, 3, 4)),
    ):
        for batch in ((), (4,)):
            weight = torch.randn(*batch, *slot.shape)
            canonical = slot.canonical(weight)
            assert canonical.shape == (*batch, *slot.canonical_shape)
            assert torch.equal(slot.restore(canonical), weight)


def test_summary_tells_what_is_conditioned() -> None:
    model = wm.condition(Net(), {"angle": wm.Angle()}, wm.Warp() + wm.LowRank(8) + wm.Scale(), example=X)
    text = model.summary()
    for piece in ("stem.weight", "4x1x3x3", "conv 3x3", "linear 3x3", "warp + lowrank + scale", "factored", "KiB"):
        assert piece in text
    assert f"{sum(p.numel() for p in model.parameters()):,} trainable" in text

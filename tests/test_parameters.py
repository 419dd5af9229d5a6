"""Parameters and their spaces: what is accepted, what is refused and how, and what the code is."""

from __future__ import annotations

import ast
import copy
import json
import math
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import weightmorph
from weightmorph import affine
from weightmorph.errors import (
    InputError,
    MissingParameterError,
    OutOfRangeWarning,
    ParameterError,
    ParameterLengthError,
    ParameterValueError,
    UnknownParameterError,
    WeightmorphError,
)
from weightmorph.parameters import KINDS, Angle, Categorical, Interval, LogInterval, Parameter, ParameterSpace

quick = settings(max_examples=50, deadline=None, derandomize=True)

PARAMETERS: dict[str, Parameter] = {
    "angle": Angle("deg"),
    "angle_one_harmonic": Angle("deg", harmonics=1, affine=None),
    "angle_anchored": Angle("deg", anchor=33.3),
    "radians": Angle("rad", harmonics=2, anchor=0.1),
    "interval": Interval(-2.0, 3.0),
    "interval_anchored": Interval(0.0, 1.0, anchor=0.1, order=5),
    "interval_wide": Interval(0.0, 1000.0, anchor=333.3, unit="ms"),
    "interval_above_zero": Interval(2.0, 5.0),
    "interval_raw": Interval(-1.0, 2.0, encode="raw"),
    "interval_raw_anchored": Interval(0.0, 1.0, anchor=0.1, encode="raw"),
    "tilt": Interval(-20.0, 20.0, unit="deg", affine="rotation"),
    "log": LogInterval(0.25, 2.0, affine="zoom"),
    "log_anchored": LogInterval(50.0, 6400.0, anchor=100.0, order=1),
    "log_odd": LogInterval(0.05, 1.0, anchor=0.1),
    "log_above_one": LogInterval(3.0, 49.0),
    "log_raw": LogInterval(0.5, 4.0, encode="raw"),
    "categorical": Categorical(("day", "night", "dusk"), anchor="night"),
    "flip": Categorical(("no", "yes"), affine="flip_x"),
}


def harmonics(parameter: Angle, value: float) -> list[float]:
    turn = 360.0 if parameter.unit == "deg" else 2 * math.pi
    t = (value - parameter.anchor) / turn * 2 * math.pi
    return [f(k * t) for k in range(1, parameter.harmonics + 1) for f in (math.cos, math.sin)]


def one_hot(parameter: Categorical, value: float) -> list[float]:
    return [float(i == value) for i in range(len(parameter.names))]


def powers(parameter: Interval, value: float) -> list[float]:
    low, high, anchor = parameter.low, parameter.high, parameter.anchor_value
    u = (value - anchor) / max(high - anchor, anchor - low)
    return [value] if parameter.encode_as == "raw" else [u**k for k in range(1, parameter.order + 1)]


def powers_of_the_logarithm(parameter: LogInterval, value: float) -> list[float]:
    low, high, anchor = parameter.low, parameter.high, parameter.anchor_value
    u = math.log(value / anchor) / max(math.log(high / anchor), math.log(anchor / low))
    return [value] if parameter.encode_as == "raw" else [u**k for k in range(1, parameter.order + 1)]


FORMULAS: dict[type[Parameter], Callable[[Any, float], list[float]]] = {
    Angle: harmonics,
    Interval: powers,
    LogInterval: powers_of_the_logarithm,
    Categorical: one_hot,
}
"""The code of one value of each kind, written again from its docstring."""

every_parameter = pytest.mark.parametrize("parameter", PARAMETERS.values(), ids=list(PARAMETERS))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def space() -> ParameterSpace:
    return ParameterSpace({"angle": Angle("deg", harmonics=2), "blur": Interval(0.0, 4.0, unit="px")})


# --- the code --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_every_kind_is_tested(kind: type[Parameter]) -> None:
    """A kind that joins the library needs an instance in PARAMETERS, and its formula in FORMULAS."""
    assert kind in {type(parameter) for parameter in PARAMETERS.values()}, "add an instance to PARAMETERS"
    assert kind in FORMULAS, "add its formula to FORMULAS"
    assert getattr(weightmorph, kind.__name__) is kind and kind.__name__ in weightmorph.__all__


@every_parameter
def test_the_code_agrees_with_its_formula(parameter: Parameter) -> None:
    """Harmonics for angles, powers of the normalised value for ranges, one-hot for categories."""
    values = parameter.grid(7).double()
    got = parameter.encode(values)
    assert got.shape == (len(values), parameter.code_dim)
    expected = torch.tensor([FORMULAS[type(parameter)](parameter, v) for v in values.tolist()], dtype=torch.float64)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


@every_parameter
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (37,), (2, 3)])
def test_the_anchor_has_its_code_exactly(parameter: Parameter, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Bit for bit, in every dtype and shape: laws at the anchor stand on this."""
    code = parameter.encode(torch.full(shape, parameter.anchor_value, dtype=dtype))
    assert code.dtype == dtype
    assert code.shape == (*shape, parameter.code_dim)
    expected = torch.tensor(parameter.anchor_code, dtype=dtype).expand_as(code)
    assert torch.equal(code, expected)
    assert torch.equal(parameter.coordinate(code), torch.zeros(shape, dtype=dtype))


@every_parameter
def test_encode_and_decode_round_trip(parameter: Parameter) -> None:
    """Every value of the range comes back; an angle as its principal value, within half a turn of the anchor."""
    values = torch.cat((parameter.sample(20, seeded()), parameter.grid(5))).double()
    back = parameter.decode(parameter.encode(values))
    if isinstance(parameter, Angle):
        half = parameter.turn / 2
        assert ((back - parameter.anchor).abs() <= half * (1 + 1e-12)).all()
        back = values + torch.remainder(back - values + half, parameter.turn) - half
    torch.testing.assert_close(back, values, atol=1e-9, rtol=1e-9)


@every_parameter
def test_codes_of_different_values_differ(parameter: Parameter) -> None:
    """Along a grid no two settings look alike."""
    code = parameter.encode(parameter.grid(9).double())
    distance = (code[:, None] - code[None]).abs().sum(-1) + torch.eye(len(code), dtype=torch.float64)
    assert distance.min() > 1e-3


@pytest.mark.parametrize("unit", ["deg", "rad"])
@pytest.mark.parametrize("anchor", [0.0, 0.75])
def test_a_full_turn_is_no_turn(unit: Any, anchor: float) -> None:
    """360° is 0° exactly, and the code is the same one turn on."""
    angle = Angle(unit, anchor=anchor)
    turns = torch.tensor([-2.0, -1.0, 0.0, 1.0, 5.0], dtype=torch.float64) * angle.turn + anchor
    code = angle.encode(turns)
    torch.testing.assert_close(code, torch.tensor(angle.anchor_code).double().expand_as(code), atol=1e-12, rtol=0)
    if anchor == 0:
        assert torch.equal(code, code[2].expand_as(code))
        single = angle.encode(turns.float()[[0, 2, 3]])
        if unit == "deg":
            assert torch.equal(single, single[1].expand_as(single))


@quick
@given(st.floats(-1e4, 1e4), st.integers(-5, 5))
def test_angles_are_circular(value: float, turns: int) -> None:
    """$c(\\theta + 360° n) = c(\\theta)$; the second half of each pair is odd in θ, the first even."""
    angle = Angle("deg", harmonics=3)
    here = angle.encode(torch.tensor(value, dtype=torch.float64))
    there = angle.encode(torch.tensor(value + 360.0 * turns, dtype=torch.float64))
    torch.testing.assert_close(there, here, atol=1e-9, rtol=0)
    mirrored = angle.encode(torch.tensor(-value, dtype=torch.float64))
    torch.testing.assert_close(mirrored[0::2], here[0::2], atol=1e-9, rtol=0)
    torch.testing.assert_close(mirrored[1::2], -here[1::2], atol=1e-9, rtol=0)
    torch.testing.assert_close(here[0::2] ** 2 + here[1::2] ** 2, torch.ones(3).double(), atol=1e-12, rtol=0)


finite = st.floats(-1e3, 1e3)


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    low = draw(finite)
    high = low + draw(st.floats(0.1, 1e3))
    anchor = draw(st.none() | st.floats(low, high))
    return Interval(low, high, anchor, order=draw(st.integers(1, 4)))


@st.composite
def log_intervals(draw: st.DrawFn) -> LogInterval:
    low = draw(st.floats(1e-3, 1e3))
    high = low * draw(st.floats(1.1, 1e3))
    anchor = draw(st.none() | st.floats(low, high))
    return LogInterval(low, high, anchor, order=draw(st.integers(1, 4)))


@quick
@given(intervals() | log_intervals(), st.floats(0, 1))
def test_ranges_normalise_and_round_trip(parameter: Interval | LogInterval, share: float) -> None:
    """Inside its range the code lies in [-1, 1], touches ±1 at an end, and gives the value back."""
    low, high = parameter.bounds
    value = torch.tensor(min(low + share * (high - low), high), dtype=torch.float64)
    code = parameter.encode(value)
    assert code.shape == (parameter.order,)
    assert code.abs().max() <= 1 + 1e-9
    ends = parameter.encode(torch.tensor([low, high], dtype=torch.float64))[:, 0]
    assert ends.abs().max().item() == pytest.approx(1)
    torch.testing.assert_close(parameter.decode(code), value, rtol=1e-9, atol=1e-9 * (high - low))
    at = parameter.encode(torch.tensor(parameter.anchor_value, dtype=torch.float64))
    assert at.tolist() == [0.0] * parameter.order == list(parameter.anchor_code)


@quick
@given(
    intervals() | log_intervals(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.integers(1, 40),
)
def test_any_anchor_has_its_code_exactly(parameter: Interval | LogInterval, dtype: torch.dtype, size: int) -> None:
    """Whatever the anchor: rounding it to the dtype and normalising must cancel to zero."""
    code = parameter.encode(torch.full((size,), parameter.anchor_value, dtype=dtype))
    assert code.tolist() == [[0.0] * parameter.order] * size


@quick
@given(intervals() | log_intervals())
def test_the_coordinate_adds(parameter: Interval | LogInterval) -> None:
    """Differences of the value add for an Interval, ratios multiply for a LogInterval; 0 is the anchor."""
    values = parameter.grid(3).double()
    u = parameter.coordinate(parameter.encode(values))
    assert u[1].item() == pytest.approx((u[0].item() + u[2].item()) / 2, abs=1e-4 * (1 + u.abs().max().item()))


@every_parameter
def test_codes_are_differentiable_in_the_value(parameter: Parameter) -> None:
    """Gradients of encode, decode and plane agree with finite differences (a category has none)."""
    if isinstance(parameter, Categorical):
        return
    values = (parameter.sample(3, seeded(1)).double() + 1e-3).requires_grad_()
    assert torch.autograd.gradcheck(parameter.encode, values)
    assert torch.autograd.gradcheck(lambda v: parameter.decode(parameter.encode(v)), values, atol=1e-4)
    if parameter.affine is not None:
        assert torch.autograd.gradcheck(lambda v: parameter.plane(parameter.encode(v)), values)


# --- sampling and grids ----------------------------------------------------------------------------------------------


@every_parameter
def test_samples_are_repeatable_and_in_range(parameter: Parameter) -> None:
    """A seeded generator gives the same values again, over the whole range, and none that the check objects to."""
    first, again = parameter.sample(500, seeded()), parameter.sample(500, seeded())
    assert first.shape == (500,) and first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, parameter.sample(500, seeded(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parameter.check("p", first)
    if isinstance(parameter, Angle):
        low, high = parameter.anchor, parameter.anchor + parameter.turn
    else:
        assert parameter.bounds is not None
        low, high = parameter.bounds
    assert first.min() >= low - 1e-5 * abs(low) and first.max() <= high + 1e-5 * abs(high)
    if isinstance(parameter, Categorical):
        assert sorted(set(first.tolist())) == list(range(len(parameter.names)))
        return
    share = (first.double() - low) / (high - low)
    if isinstance(parameter, LogInterval):
        share = (first.double() / low).log() / math.log(high / low)
    assert share.min() < 0.02 and share.max() > 0.98
    assert abs(share.mean().item() - 0.5) < 0.05


def test_sampling_without_a_generator_follows_torch() -> None:
    """`torch.manual_seed` decides."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = space().sample(4)
        torch.manual_seed(3)
        again = space().sample(4)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_grids() -> None:
    """Evenly spread, ends included; evenly in the logarithm; round the circle without its end; every category."""
    assert Interval(-1.0, 3.0).grid(5).tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert LogInterval(0.25, 4.0).grid(5).tolist() == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert Angle("deg", anchor=10.0).grid(4).tolist() == [10.0, 100.0, 190.0, 280.0]
    assert Categorical("abc").grid(99).tolist() == [0.0, 1.0, 2.0]
    ends = LogInterval(0.1, 0.7).grid(6)
    assert ends[0].item() == pytest.approx(0.1) and ends[-1].item() == pytest.approx(0.7)


def test_a_space_lays_out_all_combinations() -> None:
    """The first parameter varies slowest; each entry is a flat tensor of one length."""
    grid = ParameterSpace({"a": Interval(0, 1), "b": Categorical("xy"), "c": Interval(0, 2)}).grid(3)
    assert {name: values.shape for name, values in grid.items()} == {name: (18,) for name in "abc"}
    assert grid["a"].tolist() == [0.0] * 6 + [0.5] * 6 + [1.0] * 6
    assert grid["b"].tolist() == ([0.0] * 3 + [1.0] * 3) * 3
    assert grid["c"].tolist() == [0.0, 1.0, 2.0] * 6


@every_parameter
def test_spaced_values_show_the_range(parameter: Parameter) -> None:
    """At most as many as asked for, all accepted, and exactly the anchor among those of a number."""
    for size in (1, 4, 7, 8):
        values = parameter.spaced(size)
        assert values.dtype == torch.float64 and 1 <= len(values) <= size
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parameter.check("p", values)
        if not parameter.discrete:
            assert parameter.anchor_value in values.tolist()
            assert len(values) == (size if parameter.turn else size - (size + 1) % 2)
    assert Angle("deg").spaced(8).tolist() == [45.0 * k for k in range(8)]
    assert Categorical("abc").spaced(2).tolist() == [0.0, 1.0]


# --- what a parameter says of itself ---------------------------------------------------------------------------------


@every_parameter
def test_distances(parameter: Parameter) -> None:
    """Zero to itself, symmetric, and never more than the range or half a turn; names are 0 or 1 apart."""
    a, b = parameter.sample(50, seeded()).double(), parameter.sample(50, seeded(1)).double()
    away = parameter.distance(a, b)
    assert torch.equal(parameter.distance(a, a), torch.zeros_like(a))
    torch.testing.assert_close(parameter.distance(b, a), away)
    torch.testing.assert_close(parameter.distance(a, float(b[0])), parameter.distance(a, b[:1]))
    if parameter.discrete:
        assert away.tolist() == [float(x != y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    elif parameter.turn is not None:
        assert away.max() <= parameter.turn / 2
        torch.testing.assert_close(parameter.distance(a + 3 * parameter.turn, b), away, atol=1e-9, rtol=0)
        direct = (a - b).abs()
        torch.testing.assert_close(away, torch.where(direct > parameter.turn / 2, parameter.turn - direct, direct))
    else:
        assert torch.equal(away, (a - b).abs())


@every_parameter
def test_mirrored_values_change_the_sign_of_the_coordinate(parameter: Parameter) -> None:
    """As far from the anchor on the other side, in the coordinate in which the parameter adds."""
    if parameter.discrete:
        return
    values = parameter.sample(20, seeded()).double()
    there = parameter.coordinate(parameter.encode(parameter.mirrored(values)))
    torch.testing.assert_close(there, -parameter.coordinate(parameter.encode(values)), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(parameter.mirrored(parameter.mirrored(values)), values, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "text", "description"),
    [
        ("angle", "33.3°", "Angle: all round in deg, anchor at 0°"),
        ("radians", "33.3 rad", "Angle: all round in rad, anchor at 0.1 rad"),
        ("interval_wide", "33.3 ms", "Interval: 0 to 1000 ms, anchor at 333.3 ms"),
        ("log_anchored", "33.3", "LogInterval: 50 to 6400, anchor at 100"),
    ],
)
def test_a_number_as_text(name: str, text: str, description: str) -> None:
    parameter = PARAMETERS[name]
    assert parameter.format(33.3) == text and parameter.describe() == description
    assert parameter.format(33.3333, unit=False) == "33.33" and parameter.format(33.3333, 2, unit=False) == "33"
    assert not parameter.discrete and parameter.choices == ()


def test_a_category_as_text() -> None:
    parameter = PARAMETERS["categorical"]
    assert [parameter.format(i) for i in range(3)] == ["day", "night", "dusk"] == list(parameter.choices)
    assert parameter.describe() == "Categorical: day, night, dusk, anchor at night"
    assert parameter.discrete


@every_parameter
def test_an_example_is_a_value_that_is_taken(parameter: Parameter) -> None:
    """As Python code, inside the range, and not the anchor."""
    value = parameter.tensor("p", ast.literal_eval(parameter.example))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parameter.check("p", value)
    assert float(value) != parameter.anchor_value


@every_parameter
def test_steps_of_a_grid_are_equal_on_the_axis_of_a_plot(parameter: Parameter) -> None:
    """In ratios where the axis is logarithmic, in differences elsewhere."""
    if parameter.discrete:
        assert not parameter.log_scale
        return
    values = parameter.grid(5).double()
    steps = (values.log() if parameter.log_scale else values).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-5, atol=0)


def test_spaces_that_mean_the_same_agree() -> None:
    """A missing unit goes with any; a rotation in radians needs none; ranges and codes may differ."""
    mine = ParameterSpace({"a": Angle("rad"), "b": Interval(0.0, 4.0, unit="px")})
    other = {"b": Interval(0.0, 9.0, order=1), "a": Interval(-1.0, 1.0, affine="rotation")}
    mine.require_same(other, "the other")
    ParameterSpace(other).require_same(mine, "the other")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"turn": Angle("deg")}, "parameters angle, got turn for the other; .*Rotate.name='angle'"),
        ({"angle": Angle("deg"), "blur": Interval(0, 1)}, "parameters angle, got angle, blur"),
        ({"angle": Angle("rad")}, "'angle' is in deg for the model and in rad for the other; declare it once"),
        ({"angle": Angle("deg", anchor=9.0)}, "anchor at 0.0 for the model and at 9.0 for the other"),
        ({"angle": Categorical("ab")}, "names .* for the model and .'a', 'b'. for the other"),
    ],
)
def test_spaces_that_differ_are_refused(other: dict[str, Parameter], message: str) -> None:
    mine = ParameterSpace({"angle": Angle("deg")})
    for error in (ParameterError, InputError):
        with pytest.raises(error, match=message):
            mine.require_same(other, "the other", error)


# --- preparing values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [90, 90.0, np.float64(90), np.float32(90), torch.tensor(90), torch.tensor(90.0), torch.tensor(90.0).double(),
     torch.tensor(90.0).half()],
)  # fmt: skip
def test_one_value_in_every_form(value: Any) -> None:
    """Numbers and 0-d tensors, integers included, become one float32 scalar."""
    theta = space().prepare({"angle": value, "blur": 1})
    assert theta["angle"].shape == theta["blur"].shape == ()
    assert theta["angle"].dtype == torch.float32 and theta["angle"].item() == 90


@pytest.mark.parametrize(
    "value",
    [[0, 90, 180], (0.0, 90.0, 180.0), torch.tensor([0, 90, 180]), torch.tensor([0.0, 90.0, 180.0]),
     np.array([0, 90, 180]), np.array([0.0, 90.0, 180.0], dtype=np.float32)],
)  # fmt: skip
def test_one_value_per_sample_in_every_form(value: Any) -> None:
    """Lists, tuples, arrays and `(B,)` tensors; a shared value beside them is repeated."""
    theta = space().prepare({"angle": value, "blur": 2.0})
    assert theta["angle"].tolist() == [0.0, 90.0, 180.0]
    assert theta["blur"].tolist() == [2.0, 2.0, 2.0]


def test_order_dtype_and_batch_axis() -> None:
    """The space's order, not the caller's; an axis of length 1 stays; float32 at least, more if asked."""
    theta = space().prepare({"blur": [1.0], "angle": 5.0})
    assert list(theta) == ["angle", "blur"]
    assert theta["angle"].shape == theta["blur"].shape == (1,)
    assert space().prepare({"angle": 1, "blur": 1}, dtype=torch.float16)["angle"].dtype == torch.float32
    wide = space().prepare({"angle": 0.1, "blur": 1}, dtype=torch.float64)["angle"]
    assert wide.dtype == torch.float64 and wide.item() == 0.1


def test_gradients_pass_through_prepare() -> None:
    """θ may be something to find, so its graph is kept, repeated or not."""
    angle = torch.tensor(30.0, requires_grad=True)
    theta = space().prepare({"angle": angle, "blur": [1.0, 2.0]}, dtype=torch.float64)
    space().encode(theta).sum().backward()
    assert angle.grad is not None and angle.grad.isfinite()


def test_categories_by_name_and_by_index() -> None:
    """Names, a list of names, indices: all the same."""
    season = ParameterSpace({"season": Categorical(("winter", "summer"), anchor="summer")})
    for value in (["summer", "winter"], ("summer", "winter"), [1, 0], torch.tensor([1, 0]), torch.tensor([1.0, 0.0])):
        assert season.encode(season.prepare({"season": value})).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert season.prepare({"season": "summer"})["season"].item() == 1
    assert season.anchor == {"season": 1.0}
    assert season.anchor_code == (0.0, 1.0)
    integer = season["season"].encode(torch.tensor([0, 1]))
    assert integer.dtype == torch.get_default_dtype()


@quick
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "d"]), intervals() | log_intervals() | st.just(Angle()), min_size=1
    ),
    st.integers(1, 5),
    st.integers(0, 100),
)
def test_spaces_encode_and_decode_column_by_column(parameters: dict[str, Parameter], size: int, seed: int) -> None:
    """The code is the parameters' codes side by side, in order; the way back gives each its own."""
    united = ParameterSpace(parameters)
    theta = united.prepare(united.sample(size, seeded(seed)), dtype=torch.float64, check=False)
    code = united.encode(theta)
    assert code.shape == (size, united.code_dim)
    assert torch.equal(code, torch.cat([p.encode(theta[name]) for name, p in parameters.items()], -1))
    back = united.decode(code)
    assert list(back) == list(parameters)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.encode(back[name]), parameter.encode(theta[name]), atol=1e-8, rtol=1e-8)
    coordinates = united.coordinates(code)
    assert coordinates.shape == (size, len(united))
    at = united.encode(united.prepare(united.anchor, dtype=torch.float64, check=False))
    assert at.tolist() == list(united.anchor_code)
    assert united.coordinates(at).tolist() == [0.0] * len(united)


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(error: type[WeightmorphError], *parts: str) -> Any:
    """Expect an error whose message holds all the parts."""
    return pytest.raises(error, match="".join(f"(?=.*{re.escape(part)})" for part in parts))


def test_missing_values_are_named_with_an_example_call() -> None:
    """What is missing, how to give it, and where the anchor is."""
    with refused(MissingParameterError, "no value for 'blur'", "model(x, angle=…, blur=…)", "angle=0, blur=0"):
        space().prepare({"angle": 1.0})
    with refused(MissingParameterError, "'angle', 'blur'"):
        space().prepare({})
    assert issubclass(MissingParameterError, TypeError)


def test_unknown_names_are_named_with_their_neighbours() -> None:
    """What came, what is known, and what was probably meant."""
    with refused(UnknownParameterError, "'agnle'", "angle, blur", "did you mean 'angle'?"):
        space().prepare({"agnle": 1.0, "blur": 0.0})
    with pytest.raises(UnknownParameterError, match=r"'iso'.*angle, blur$"):
        space().prepare({"angle": 1.0, "blur": 0.0, "iso": 100})
    assert issubclass(UnknownParameterError, TypeError)


def test_wrong_lengths_are_refused() -> None:
    """A column is not a batch, and parameters given per sample have one length."""
    with refused(ParameterLengthError, "'angle'", "(B,)", "(3, 1)", "flatten()"):
        space().prepare({"angle": torch.zeros(3, 1), "blur": 0.0})
    with refused(ParameterLengthError, "one length", "angle: 3", "blur: 2"):
        space().prepare({"angle": [1, 2, 3], "blur": [1.0, 2.0]})
    with refused(ParameterLengthError, "angle: 1", "blur: 2"):
        space().prepare({"angle": [1], "blur": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (math.nan, ("finite", "nan")),
        (math.inf, ("finite", "inf")),
        ([0.0, math.nan], ("finite", "[0.0, nan]")),
        ([math.nan] * 9, ("finite", "…")),
        (torch.tensor([1.0, -math.inf]), ("finite", "-inf")),
        ("ninety", ("a number", "str", "'ninety'")),
        (None, ("a number", "NoneType")),
        (True, ("a number", "True")),
        ({"a": 1}, ("a number", "dict")),
        ([1.0, "two"], ("a number", "list")),
        (torch.tensor(1j), ("real numbers", "torch.complex64")),
        (torch.tensor(True), ("real numbers", "torch.bool")),
    ],
)
def test_values_that_are_not_finite_numbers_are_refused(value: Any, parts: tuple[str, ...]) -> None:
    """The parameter, what was expected, and what came."""
    with refused(ParameterValueError, "'angle'", *parts):
        space().prepare({"angle": value, "blur": 0.0})


def test_unknown_categories_are_refused() -> None:
    """By name with the near ones, by index with the range of indices; halves are not categories."""
    season = ParameterSpace({"season": Categorical(("winter", "summer"))})
    with refused(ParameterValueError, "'season'", "'winter', 'summer'", "'sumer'", "did you mean 'summer'?"):
        season.prepare({"season": "sumer"})
    with refused(ParameterValueError, "'season'", "'autumn'"):
        season.prepare({"season": ["winter", "autumn"]})
    for wrong in (2, -1, 0.5, [0, 3], math.nan):
        with refused(ParameterValueError, "'season'", "0 to 1", "winter, summer"):
            season.prepare({"season": wrong})


def test_log_intervals_refuse_what_has_no_logarithm() -> None:
    """Zero and below are errors, not warnings; NaN is still NaN."""
    zoom = ParameterSpace({"zoom": LogInterval(0.5, 2.0)})
    for wrong in (0.0, -1.0, [1.0, 0.0]):
        with refused(ParameterValueError, "'zoom'", "positive"):
            zoom.prepare({"zoom": wrong})
    with refused(ParameterValueError, "'zoom'", "finite"):
        zoom.prepare({"zoom": math.nan})


def test_out_of_range_is_a_warning() -> None:
    """The call goes on; the message holds name, range, unit and value. An angle has no range to leave."""
    blur = space()["blur"]
    with pytest.warns(OutOfRangeWarning, match=r"'blur': expected values in \[0, 4\] px, got 5\.0"):
        theta = space().prepare({"angle": 0, "blur": 5.0})
    assert theta["blur"].item() == 5.0
    with pytest.warns(OutOfRangeWarning, match=r"got 4\.01"):
        space().prepare({"angle": 0, "blur": 4.01})
    with pytest.warns(OutOfRangeWarning, match=r"\[1\.0, -0\.5\]"):
        space().prepare({"angle": 0, "blur": [1.0, -0.5]})
    with pytest.warns(OutOfRangeWarning, match=r"\[0\.5, 2\], got 3\.0"):
        ParameterSpace({"zoom": LogInterval(0.5, 2.0)}).prepare({"zoom": 3.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        space().prepare({"angle": 1e4, "blur": 4.0 + 1e-6})  # rounding is not leaving
        blur.check("blur", torch.zeros(0))
        space().prepare({"angle": 0, "blur": 5.0}, check=False)
        space().prepare({"angle": math.nan, "blur": 5.0}, check=False)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Angle("grad"), ("unit", "'deg' or 'rad'", "'grad'")),  # type: ignore[arg-type]
        (lambda: Angle(harmonics=0), ("harmonics", "positive integer", "0")),
        (lambda: Angle(harmonics=1.5), ("harmonics", "1.5")),  # type: ignore[arg-type]
        (lambda: Angle(anchor=math.nan), ("anchor", "finite", "nan")),
        (lambda: Angle(affine="rotate"), ("Angle", "'rotate'", "zoom", "did you mean 'rotation'")),
        (lambda: Interval(1.0, 1.0), ("Interval", "low < high", "low=1.0, high=1.0")),
        (lambda: Interval(2.0, 1.0), ("low < high",)),
        (lambda: Interval(0.0, math.inf), ("finite", "inf")),
        (lambda: Interval(math.nan, 1.0), ("finite", "nan")),
        (lambda: Interval(0.0, 1.0, anchor=2.0), ("anchor in [0, 1]", "2.0")),
        (lambda: Interval(0.0, 1.0, anchor=math.nan), ("anchor in [0, 1]", "nan")),
        (lambda: Interval(0.0, 1.0, encode="onehot"), ("'polynomial' or 'raw'", "'onehot'")),  # type: ignore[arg-type]
        (lambda: Interval(0.0, 1.0, order=0), ("order", "0")),
        (lambda: Interval(0.0, 1.0, affine="zom"), ("Interval", "'zom'", "did you mean 'zoom'")),
        (lambda: LogInterval(0.0, 1.0), ("LogInterval", "low > 0", "0.0")),
        (lambda: Interval("0", "1"), ("Interval: expected a number for low, got the str '0'",)),  # type: ignore[arg-type]
        (lambda: Interval(0, 1, anchor=[0]), ("number for anchor, got the list [0]",)),  # type: ignore[arg-type]
        (lambda: LogInterval("1", 2.0), ("LogInterval: expected a number for low, got the str '1'",)),  # type: ignore[arg-type]
        (lambda: Angle(anchor="north"), ("Angle: expected a number for anchor, got the str 'north'",)),  # type: ignore[arg-type]
        (lambda: LogInterval(-1.0, 1.0), ("low > 0",)),
        (lambda: LogInterval(math.nan, 1.0), ("low > 0",)),
        (lambda: LogInterval(2.0, 1.0), ("LogInterval", "low < high")),
        (lambda: Categorical(("one",)), ("two or more distinct", "one")),
        (lambda: Categorical(("a", "a")), ("two or more distinct",)),
        (lambda: Categorical(("day", "night"), anchor="nihgt"), ("'anchor'", "'nihgt'", "did you mean 'night'")),
        (lambda: Categorical(("a", "b"), affine="flip"), ("Categorical", "'flip'", "did you mean 'flip_")),
        (lambda: ParameterSpace({}), ("dict of parameters", "{}")),
        (lambda: ParameterSpace([Angle()]), ("dict of parameters",)),  # type: ignore[arg-type]
        (lambda: ParameterSpace({"a b": Angle()}), ("identifier", "'a b'")),
        (lambda: ParameterSpace({1: Angle()}), ("identifier", "1")),  # type: ignore[dict-item]
        (lambda: ParameterSpace({"angle": (0, 360)}), ("'angle'", "Angle, Interval", "tuple (0, 360)")),  # type: ignore[dict-item]
        (lambda: ParameterSpace.from_config({"a": {"type": "Range"}}), ("'a'", "'Range'", "LogInterval")),
        (lambda: ParameterSpace.from_config({"a": {}}), ("'a'", "None")),
    ],
)
def test_parameters_that_make_no_sense_are_refused(make: Any, parts: tuple[str, ...]) -> None:
    """At construction, with what was expected and what came."""
    with refused(ParameterError, *parts):
        make()


def test_every_refusal_is_one_of_ours_and_a_value_error() -> None:
    """One `except` catches them all."""
    for error in (MissingParameterError, UnknownParameterError, ParameterLengthError, ParameterValueError):
        assert issubclass(error, ParameterError)
    assert issubclass(ParameterError, WeightmorphError) and issubclass(ParameterError, ValueError)


# --- defaults, plain data --------------------------------------------------------------------------------------------


def test_default_anchors() -> None:
    """0 where an Interval contains it, 1 where a LogInterval does, otherwise the lower end; the first category."""
    assert Interval(-1.0, 1.0).anchor == Interval(0.0, 1.0).anchor == Interval(-1.0, 0.0).anchor == 0.0
    assert Interval(2.0, 3.0).anchor == 2.0 and Interval(-3.0, -2.0).anchor == -3.0
    assert LogInterval(0.5, 2.0).anchor == LogInterval(1.0, 2.0).anchor == 1.0
    assert LogInterval(2.0, 3.0).anchor == 2.0 and LogInterval(0.2, 0.5).anchor == 0.2
    assert Categorical("ab").anchor == "a" and Angle().anchor == 0.0
    assert isinstance(Interval(0, 1).low, float)  # integers become what they are used as


@every_parameter
def test_config_round_trips_through_json(parameter: Parameter) -> None:
    """A saved space is plain data, and the space made from it is equal."""
    original = ParameterSpace({"p": parameter, "q": Angle()})
    back = ParameterSpace.from_config(json.loads(json.dumps(original.config())))
    assert dict(back) == dict(original)
    assert list(back) == ["p", "q"]
    assert repr(back) == repr(original)
    assert back.config() == original.config()


@every_parameter
def test_pickle_copy_equality_and_hash(parameter: Parameter) -> None:
    """Parameters are values: equal when their fields are, usable as keys, and not to be changed."""
    for other in (pickle.loads(pickle.dumps(parameter)), copy.copy(parameter), copy.deepcopy(parameter)):
        assert other == parameter
        assert hash(other) == hash(parameter)
        assert type(other) is type(parameter)
    whole = pickle.loads(pickle.dumps(ParameterSpace({"p": parameter})))
    assert dict(whole) == {"p": parameter}
    with pytest.raises(AttributeError):
        parameter.anchor = 1.0
    assert sum(parameter == p for p in PARAMETERS.values()) == 1


def test_a_space_is_a_mapping_and_independent_of_its_source() -> None:
    """It reads like a dict, keeps the order, and does not follow later changes to the dict it came from."""
    source: dict[str, Parameter] = {"b": Angle(), "a": Interval(0, 1)}
    united = ParameterSpace(source)
    source["c"] = Angle()
    assert list(united) == ["b", "a"] and len(united) == 2 and "c" not in united
    assert united["a"] == Interval(0, 1)
    assert ParameterSpace(united) == united
    assert united.code_dim == 8 + 3
    assert united.anchor == {"b": 0.0, "a": 0.0}
    assert united.anchor_code == (1.0, 0.0) * 4 + (0.0,) * 3
    assert eval(repr(Angle("rad", anchor=1.0))) == Angle("rad", anchor=1.0)


# --- the image plane -------------------------------------------------------------------------------------------------


@every_parameter
def test_the_plane_is_the_named_map_relative_to_the_anchor(parameter: Parameter) -> None:
    """$A(\\theta)\\,A(\\theta_0)^{-1}$, degrees converted; the identity for what is not geometric."""
    values = parameter.grid(5).double()
    got = parameter.plane(parameter.encode(values))
    assert got.shape == (len(values), 2, 3)
    if parameter.affine is None:
        assert torch.equal(got, affine.identity(values))
        return
    scale = math.pi / 180 if parameter.unit == "deg" else 1.0
    map_ = affine.MAPS[parameter.affine]
    home = affine.inverse(map_(torch.tensor(parameter.anchor_value, dtype=torch.float64) * scale))
    expected = affine.compose(map_(values * scale), home.expand(len(values), 2, 3))
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)
    at = parameter.plane(torch.tensor(parameter.anchor_code, dtype=torch.float64))
    torch.testing.assert_close(at, affine.identity(at[0, 0]), atol=1e-12, rtol=0)


def test_a_space_composes_its_maps_in_order() -> None:
    """The first parameter acts first: zoom, then shift, is not shift, then zoom."""

    def plane(*names: str) -> Tensor:
        kinds = {"zoom": LogInterval(0.5, 4.0, affine="zoom"), "dx": Interval(-9, 9, affine="translate_x"),
                 "blur": Interval(0, 4)}  # fmt: skip
        united = ParameterSpace({name: kinds[name] for name in names})
        values = {"zoom": 2.0, "dx": 3.0, "blur": 1.0}
        return united.plane(united.encode(united.prepare({name: values[name] for name in names}, dtype=torch.float64)))

    assert plane("zoom", "blur", "dx")[:, 2].tolist() == pytest.approx([3.0, 0.0])
    assert plane("dx", "zoom")[:, 2].tolist() == pytest.approx([6.0, 0.0])
    united = ParameterSpace({"zoom": LogInterval(0.5, 2, affine="zoom"), "blur": Interval(0, 4), "angle": Angle()})
    assert united.affine_names == ("zoom", "rotation")

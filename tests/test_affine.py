"""Affine maps of the plane: their formulas, their sense, and the algebra of composing and inverting them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weightmorph import affine

quick = settings(max_examples=40, deadline=None, derandomize=True)

amount = st.floats(-3, 3)
RANGES = {  # values at which each map can be inverted
    "rotation": amount,
    "zoom": st.floats(0.1, 10),
    "shear_x": amount,
    "shear_y": amount,
    "translate_x": amount,
    "translate_y": amount,
    "flip_x": st.sampled_from([0.0, 1.0]),
    "flip_y": st.sampled_from([0.0, 1.0]),
}


@st.composite
def any_map(draw: st.DrawFn) -> Tensor:
    name = draw(st.sampled_from(sorted(RANGES)))
    return affine.MAPS[name](torch.tensor(draw(RANGES[name]), dtype=torch.float64))


maps = st.lists(any_map(), min_size=1, max_size=3)


def product(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = affine.compose(part, total)
    return total


def move(map_: Tensor, point: tuple[float, float]) -> list[float]:
    x, y = point
    return (map_ @ torch.tensor([x, y, 1.0], dtype=map_.dtype)).tolist()


def identity() -> Tensor:
    return affine.identity(torch.tensor(0.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rotation", math.pi / 2, (2.0, -1.0)),
        ("rotation", math.pi, (-1.0, -2.0)),
        ("zoom", 2.0, (2.0, 4.0)),
        ("shear_x", 0.5, (2.0, 2.0)),
        ("shear_y", 0.5, (1.0, 2.5)),
        ("translate_x", 3.0, (4.0, 2.0)),
        ("translate_y", 3.0, (1.0, 5.0)),
        ("flip_x", 1.0, (-1.0, 2.0)),
        ("flip_y", 1.0, (1.0, -2.0)),
        ("flip_x", 0.0, (1.0, 2.0)),
        ("flip_y", 0.0, (1.0, 2.0)),
    ],
)
def test_each_map_moves_a_point_as_its_formula_says(name: str, value: float, expected: tuple[float, float]) -> None:
    """The point (1, 2), x to the right and y downwards, lands where the docstring says."""
    here = affine.MAPS[name](torch.tensor(value, dtype=torch.float64))
    assert move(here, (1.0, 2.0)) == pytest.approx(expected, abs=1e-12)


def test_positive_angles_are_counter_clockwise_on_the_screen() -> None:
    """What points to the right points up after a quarter turn, and up is negative y."""
    quarter = affine.rotation(torch.tensor(math.pi / 2, dtype=torch.float64))
    assert move(quarter, (1.0, 0.0)) == pytest.approx((0.0, -1.0), abs=1e-12)
    assert move(quarter, (0.0, -1.0)) == pytest.approx((-1.0, 0.0), abs=1e-12)


def test_every_map_is_known_by_its_function_name_and_covered_here() -> None:
    """`MAPS` is plain data: the name of a map is that of its function."""
    assert set(affine.MAPS) == set(RANGES)
    for name, function in affine.MAPS.items():
        assert function is getattr(affine, name)


@quick
@given(maps)
def test_inverse_undoes_on_both_sides(parts: list[Tensor]) -> None:
    """$m^{-1} \\circ m = m \\circ m^{-1} = 1$."""
    total = product(parts)
    back = affine.inverse(total)
    torch.testing.assert_close(affine.compose(back, total), identity(), atol=1e-9, rtol=0)
    torch.testing.assert_close(affine.compose(total, back), identity(), atol=1e-9, rtol=0)


@quick
@given(any_map(), any_map())
def test_inverse_of_a_product_is_the_product_of_inverses_reversed(a: Tensor, b: Tensor) -> None:
    """$(a \\circ b)^{-1} = b^{-1} \\circ a^{-1}$."""
    expected = affine.compose(affine.inverse(b), affine.inverse(a))
    torch.testing.assert_close(affine.inverse(affine.compose(a, b)), expected, atol=1e-9, rtol=1e-9)


@quick
@given(any_map(), any_map(), any_map())
def test_compose_is_associative_and_applies_the_second_argument_first(a: Tensor, b: Tensor, c: Tensor) -> None:
    """$(a \\circ b) \\circ c = a \\circ (b \\circ c)$, and $(a \\circ b)(p) = a(b(p))$."""
    left = affine.compose(affine.compose(a, b), c)
    torch.testing.assert_close(left, affine.compose(a, affine.compose(b, c)), atol=1e-9, rtol=1e-9)
    x, y = move(b, (1.5, -0.5))
    assert move(affine.compose(a, b), (1.5, -0.5)) == pytest.approx(move(a, (x, y)), abs=1e-9)


@quick
@given(any_map())
def test_identity_is_neutral(a: Tensor) -> None:
    """$1 \\circ a = a \\circ 1 = a$, exactly."""
    assert torch.equal(affine.compose(identity(), a), a)
    assert torch.equal(affine.compose(a, identity()), a)


@pytest.mark.parametrize(("name", "neutral"), [(name, 1.0 if name == "zoom" else 0.0) for name in sorted(RANGES)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_map_is_exactly_the_identity_at_its_neutral_value(name: str, neutral: float, dtype: torch.dtype) -> None:
    """No rounding at 0 (1 for zoom): this is what exactness at the anchor stands on."""
    value = torch.tensor([neutral], dtype=dtype)
    assert torch.equal(affine.MAPS[name](value), affine.identity(value))
    assert torch.equal(affine.inverse(affine.MAPS[name](value)), affine.identity(value))


@pytest.mark.parametrize("name", sorted(RANGES))
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)])
def test_batch_shapes_are_kept_and_elements_are_independent(name: str, shape: tuple[int, ...]) -> None:
    """`(*B) -> (*B, 2, 3)`; an axis of length 1 stays, and each element is what it would be alone."""
    values = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    batch = affine.MAPS[name](values)
    assert batch.shape == (*shape, 2, 3)
    assert affine.inverse(batch).shape == affine.compose(batch, batch).shape == (*shape, 2, 3)
    alone = [affine.MAPS[name](v) for v in values.flatten()]
    assert torch.equal(batch.reshape(-1, 2, 3), torch.stack(alone))
    back = [affine.inverse(m) for m in alone]
    assert torch.equal(affine.inverse(batch).reshape(-1, 2, 3), torch.stack(back))


@pytest.mark.parametrize("name", sorted(set(RANGES) - {"flip_x", "flip_y"}))
def test_maps_and_their_inverses_are_differentiable(name: str) -> None:
    """Derivatives agree with finite differences."""
    value = torch.tensor([0.7, 1.3], dtype=torch.float64, requires_grad=True)
    shift = affine.translate_x(torch.tensor(0.3, dtype=torch.float64))

    def path(v: Tensor) -> Tensor:
        return affine.inverse(affine.compose(shift.expand(2, 2, 3), affine.MAPS[name](v)))

    assert torch.autograd.gradcheck(path, value)


def test_separable_maps_do_not_mix_the_axes() -> None:
    """For a one-dimensional signal: where a point lands along x does not depend on y."""
    for name in affine.SEPARABLE:
        map_ = affine.MAPS[name](torch.tensor(0.8, dtype=torch.float64))
        assert map_[0, 1] == map_[1, 0] == 0

"""Weight expressions: `materialise` and `simplified` against `dense`, and small vectors made at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import zoo
from pieces import BATCHES, CASES, LAYERS, OPERATIONS, SIZE, TERMS, draw, on, operation, term_of, total, weight
from torch import Tensor

from weightmorph.errors import TransformError
from weightmorph.slots import Slot
from weightmorph.terms import Dense, LowRankUpdate, RowScale, WeightExpression, materialise_vectors, widen

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's note on even kernels


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def mixtures(layer: str) -> list[tuple[str, ...]]:
    """Every term alone, every pair, a few threes, and all of them at once."""
    names = [name for name in TERMS if (layer, name) in CASES]
    structured = [name for name in names if name not in ("dense", "replacement")]
    pairs = [*itertools.combinations(names, 2), *((name, name) for name in names)]
    return [*((name,) for name in names), *pairs, *itertools.combinations(structured, 3), tuple(names)]


def expression(layer: str, names: Sequence[str], batch: tuple[int, ...], mixed: bool = False) -> WeightExpression:
    """A sum of random terms; `mixed` gives every second of them one coefficient for all samples."""
    slot = LAYERS[layer].slot
    parts = [term_of(layer, name, () if mixed and number % 2 else batch) for number, name in enumerate(names)]
    return WeightExpression(slot, weight(slot), tuple(parts))


@pytest.mark.parametrize("batch", ["shared", "per_sample", "mixed"])
@pytest.mark.parametrize("layer", list(LAYERS))
def test_materialise_and_simplified_are_dense(layer: str, batch: str) -> None:
    """Of every mixture of terms: the fast way to the tensor, and the sum of the terms that stand for all of W(θ)."""
    for names in mixtures(layer):
        e = expression(layer, names, () if batch == "shared" else (SIZE,), batch == "mixed")
        replaced = names.count("replacement")
        dense = e.dense()
        assert e.batch == (() if batch == "shared" else (SIZE,))
        close(e.materialise(), dense)
        close(dense, widen(e.base, e.grow) + total(e.terms, e.grow))
        part = e.terms[1:]
        rest = widen(e.base, e.grow) + total(part, e.grow) if part else widen(e.base, e.grow)
        close(e.materialise(part), rest)
        if replaced:
            continue  # it is the weight itself, and never applied to activations
        for join in (False, True):
            simplified = e.simplified(join)
            shape = torch.broadcast_shapes(*(on(t, e.grow).shape for t in simplified))
            close(total(simplified, e.grow).expand(shape), dense)


def test_simplified_merges_absorbs_and_joins() -> None:
    """As few terms as can be, the first of which holds the frozen weight."""

    def kinds(*names: str, join: bool = False) -> list[str]:
        return [type(t).__name__.lstrip("_") for t in expression("conv2d", names, (SIZE,)).simplified(join)]

    assert kinds("low_rank") == ["Frozen", "LowRankUpdate"]
    assert kinds("low_rank", "low_rank", "basis_mix") == ["Frozen", "LowRankUpdate", "BasisMix"]
    assert kinds("low_rank", "row_scale") == ["RowScale", "LowRankUpdate"]
    assert kinds("row_scale", "low_rank", "tap_mix") == ["TapMix", "RowScale", "LowRankUpdate"]
    assert kinds("row_scale", "low_rank", "tap_mix_grown", "tap_mix", join=True) == ["TapMixAndUpdate", "RowScale"]


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("layer", list(OPERATIONS))
def test_simplified_terms_applied_are_the_layer(layer: str, join: bool) -> None:
    """One after the other, in their order, on the activations."""
    found = LAYERS[layer]
    op, x = operation(found), draw(SIZE, *found.x)
    for names in mixtures(layer):
        e = expression(layer, names, (SIZE,))
        if not all(t.applies_to(found.size(op, e.grow), constant=True) for t in e.terms):
            continue
        y: Tensor | None = None
        for term in e.simplified(join and op.shares_patches):
            y = term.apply(op, x, y)
        assert y is not None
        torch.testing.assert_close(y, found.call(x, e.dense(), e.grow), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", ["conv2d", "linear", "norm"])
def test_the_batch_of_an_expression(layer: str) -> None:
    """A shared W(θ) for so many samples, and rows that are taken."""
    names = mixtures(layer)[-1]
    e = expression(layer, names, ())
    dense = e.dense()
    close(e.expand_batch(SIZE).dense(), dense.expand(SIZE, *dense.shape))
    per_sample, index = expression(layer, names, (SIZE,), mixed=True), torch.tensor([1, 1, 0, 3, 2])
    close(per_sample.take(index).dense(), per_sample.dense()[index])
    assert not e.requires_grad
    first = e.terms[0].with_coefficient(e.terms[0].coefficient.requires_grad_())
    assert replace(e, terms=(first, *e.terms[1:])).requires_grad


@pytest.mark.parametrize("batch", BATCHES, ids=["shared", "per_sample"])
@pytest.mark.parametrize("layer", ["conv2d", "conv2d_groups", "depthwise", "transposed2d", "linear_over_map", "other"])
def test_the_gradients_of_materialise_are_those_of_dense(layer: str, batch: tuple[int, ...]) -> None:
    """Also where the weight is written into while it is made."""
    for names in mixtures(layer):
        e = expression(layer, names, batch)
        leaves = [t.coefficient.requires_grad_() for t in e.terms]
        outer = torch.randn_like(e.dense())
        fast, slow = (torch.autograd.grad((w * outer).sum(), leaves) for w in (e.materialise(), e.dense()))
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# What families make


@pytest.mark.parametrize(("layer", "family"), zoo.CASES)
def test_making_a_weight_is_what_dense_says(layer: str, family: str) -> None:
    """`materialise` against `dense`, for every family on every layer; and exactly the frozen weight at the anchor."""
    model, _ = zoo.conditioned(layer, family)
    per_sample = zoo.settings(layer)
    shared = {name: value[1] for name, value in per_sample.items()}
    codes = [zoo.code(model, **theta) for theta in (shared, per_sample)]
    for name, frozen in zoo.frozen(model).items():
        slot = model.slots[name]
        for code in codes:
            expression = model.transform.expression(slot, frozen, code)
            close(expression.materialise(), expression.dense())
        still = model.transform.expression(slot, frozen, codes[0].new_tensor(model.space.anchor_code))
        assert model.anchored
        assert torch.equal(still.materialise(), still.dense()) and torch.equal(still.dense(), widen(frozen, still.grow))


# Vectors


def test_vectors_made_at_once_are_those_made_one_by_one() -> None:
    """Scales together and shifts together; a single one, a sum and a matrix are left to `materialise`."""

    def vector(length: int, *names: str) -> WeightExpression:
        slot = Slot.of((length,))
        base = weight(slot)
        both = {"scale": RowScale(slot, base, draw(length)), "shift": Dense(slot, draw(length))}
        return WeightExpression(slot, base, tuple(both[name] for name in names))

    expressions = {
        "a": vector(5, "scale"), "b": vector(3, "shift"), "c": vector(7, "scale"), "d": vector(1, "shift"),
        "sum": vector(4, "scale", "shift"), "matrix": expression("linear", ["row_scale"], ()),
    }  # fmt: skip
    ready = materialise_vectors(expressions)
    assert set(ready) == {"a", "b", "c", "d"}
    for name, tensor in ready.items():
        close(tensor, expressions[name].dense())
    alone = {name: expressions[name] for name in ("a", "b", "matrix")}
    assert materialise_vectors(alone) == {}, "one scale and one shift are no rows to join"


def test_vectors_are_exactly_the_frozen_ones_where_nothing_moves() -> None:
    """The anchor, bit for bit."""
    slot = Slot.of((64,))
    base = draw(64)
    for term in (RowScale(slot, base, torch.zeros(64).double()), Dense(slot, torch.zeros(64).double())):
        ready = materialise_vectors({name: WeightExpression(slot, base, (term,)) for name in "ab"})
        assert torch.equal(ready["a"], base) and torch.equal(ready["b"], base)


def test_terms_of_one_weight_have_one_number_of_settings() -> None:
    """Two and three settings side by side are refused, by the layer's name."""
    slot = LAYERS["conv2d"].slot
    terms = tuple(RowScale(slot, weight(slot), torch.zeros(size, slot.outputs)) for size in (2, 3))
    with pytest.raises(TransformError, match="same number of settings, got 2 and 3"):
        WeightExpression(slot, weight(slot), terms)


def test_a_tap_mixing_takes_in_one_update() -> None:
    """A second one, of a class of its own that is not merged with the first, stays a term beside it."""

    class Other(LowRankUpdate):
        """Not the class that it derives from, so the two are not merged."""

    slot = LAYERS["conv2d"].slot
    first, second = (term_of("conv2d", "low_rank", (SIZE,)) for _ in range(2))
    assert isinstance(first, LowRankUpdate) and isinstance(second, LowRankUpdate)
    other = Other(slot, second.left, second.gain, second.right)
    e = WeightExpression(slot, weight(slot), (term_of("conv2d", "tap_mix", (SIZE,)), first, other))
    simplified = e.simplified(True)
    assert len(simplified) == 2
    close(total(simplified, e.grow), e.dense())

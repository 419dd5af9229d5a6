"""Terms: each method against `dense`, and `dense` against the formula."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pieces import (
    BATCHES,
    CASES,
    LAYERS,
    OPERATIONS,
    SIZE,
    TERMS,
    canonical,
    draw,
    from_canonical,
    on,
    operation,
    term_of,
    weight,
)
from torch import Tensor

from weightmorph import terms
from weightmorph.layers import using
from weightmorph.layers.processor import AVX2, AVX512
from weightmorph.slots import Grow
from weightmorph.terms import Term, WeightExpression, widen
from weightmorph.terms.tap_mix import mix_filters, wider

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's note on even kernels


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def grows(layer: str, term: Term) -> list[Grow]:
    """Supports on which a term can be added: its own, and one that other terms have grown further."""
    more = LAYERS[layer].grow
    return [term.grow] if not more else [term.grow, wider(term.grow, more), tuple((b + 1, a) for b, a in more)]


def test_every_term_is_tested() -> None:
    """A term that joins the library's list joins the tests' list."""
    tested = {type(term_of(*case)) for case in CASES}
    assert tested == set(terms.TERMS.values())


# One term


@pytest.mark.parametrize(("layer", "name"), CASES)
def test_dense_is_the_terms_formula(layer: str, name: str) -> None:
    """Written again in NumPy, sample by sample; `batch` and `grow` are what the tensor shows."""
    slot = LAYERS[layer].slot
    whole = canonical(slot, weight(slot).numpy())
    for batch in BATCHES:
        term = term_of(layer, name, batch)
        rows = list(term.coefficient.numpy()) if batch else [term.coefficient.numpy()]
        formula = [from_canonical(slot, np.asarray(TERMS[name].formula(term, row, whole)), term.grow) for row in rows]
        close(term.dense(), torch.from_numpy(np.stack(formula) if batch else formula[0]))
        assert term.batch == batch
        assert any(t is term.coefficient for t in term.tensors)


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize(("layer", "name"), CASES)
def test_add_to_adds_dense(layer: str, name: str, owned: bool) -> None:
    """To a weight as a matrix, on any support, shared or per sample; what is not owned is not written into."""
    for batch, lead in itertools.product(BATCHES, BATCHES):
        term = term_of(layer, name, batch)
        for grow in grows(layer, term):
            shape = on(term, grow).shape[len(batch) :]
            start = draw(*lead, *shape)
            rows = start.reshape(*lead, shape[0] if shape else 1, -1)
            given = rows.clone()
            got = term.add_to(given, grow, owned)
            expected = start + on(term, grow)
            close(got.reshape(expected.shape), expected)
            assert got.dim() == (3 if batch or lead else 2)
            assert owned or torch.equal(given, rows), "a total that is not owned was written into"


@pytest.mark.parametrize(("layer", "name"), CASES)
def test_what_takes_the_frozen_weight_in_is_the_sum_of_both(layer: str, name: str) -> None:
    """`with_frozen` as a term where one absorbs it, and `frozen_plus` as a matrix where one product gives both."""
    slot = LAYERS[layer].slot
    for batch in BATCHES:
        term = term_of(layer, name, batch)
        for grow in grows(layer, term):
            expected = widen(weight(slot), grow) + on(term, grow)
            if term.absorbs:
                both = term.with_frozen(grow)
                close(on(both, grow), expected)
                assert type(both) is type(term) and both.grow in (grow, ())
            else:
                with pytest.raises(NotImplementedError, match=type(term).__name__):
                    term.with_frozen(grow)
            both_at_once = term.frozen_plus(grow)
            if both_at_once is not None:
                matrix, new = both_at_once
                close(matrix.reshape(expected.shape), expected)
                assert matrix.dim() == 2 + len(batch)
                assert new or not term.absorbs, "a product is new"
                assert new != any(matrix.data_ptr() == t.data_ptr() for t in term.tensors)


def test_a_replacement_is_the_weight_itself() -> None:
    """V and not W + (V - W), which would round."""
    term = term_of("conv2d", "replacement")
    expression = WeightExpression(term.slot, weight(term.slot), (term,))
    assert torch.equal(expression.materialise(), term.coefficient)
    assert torch.equal(expression.dense(), term.coefficient)


def test_a_tap_mixing_of_a_plain_kernel_takes_the_frozen_weight_in_with_one_product() -> None:
    """The fast path exists: it is not always None."""
    for layer in ("conv2d", "linear_over_map", "conv2d_groups", "depthwise"):
        assert term_of(layer, "tap_mix").frozen_plus(()) is not None
    grown = term_of("conv2d", "tap_mix_grown")
    assert grown.frozen_plus(grown.grow) is not None and grown.frozen_plus(()) is None
    assert term_of("transposed2d", "tap_mix").frozen_plus(()) is None, "a transposed weight is no matrix of filters"


@pytest.mark.parametrize(("layer", "name"), CASES)
def test_merged_and_joined_terms_are_the_sum(layer: str, name: str) -> None:
    """Two terms of one class as one; a tap mixing with a low-rank update as one that reads patches once."""
    others = [other for other in TERMS if (layer, other) in CASES]
    for other, batch in itertools.product(others, BATCHES):
        one, two = term_of(layer, name, batch), term_of(layer, other, batch)
        grow = wider(one.grow, two.grow)
        expected = on(one, grow) + on(two, grow)
        merged = one.merged(two) if type(one) is type(two) else None
        if merged is not None:
            close(on(merged, grow), expected)
            assert merged.batch == batch
        joined = one.with_frozen(grow).joined(two) if one.absorbs else one.joined(two)
        if joined is not None:
            close(on(joined, grow), expected + (widen(weight(one.slot), grow) if one.absorbs else 0))


def test_which_terms_merge_and_join() -> None:
    """Scales, low ranks and tap mixings do; a shared low rank and one per sample do not."""
    for name in ("row_scale", "low_rank", "tap_mix"):
        assert term_of("conv2d", name).merged(term_of("conv2d", name)) is not None
    assert term_of("conv2d", "low_rank").merged(term_of("conv2d", "low_rank", ())) is None
    for name in ("row_scale", "tap_mix"):
        one, two = term_of("conv2d", name), term_of("conv2d", name, ())
        merged = one.merged(two)
        assert merged is not None
        close(merged.dense(), one.dense() + two.dense())
    assert term_of("conv2d", "tap_mix").joined(term_of("conv2d", "low_rank")) is not None
    assert term_of("conv2d_groups", "tap_mix").joined(term_of("conv2d_groups", "low_rank")) is None
    assert term_of("conv2d", "tap_mix").joined(term_of("conv2d", "row_scale")) is None


@pytest.mark.parametrize(("layer", "name"), CASES)
def test_a_scale_a_shift_and_patch_factors_are_dense(layer: str, name: str) -> None:
    """Where a term offers them."""
    slot = LAYERS[layer].slot
    for batch in BATCHES:
        term = term_of(layer, name, batch)
        if term.scale is not None:
            close(slot.restore(slot.canonical(weight(slot)) * slot.rows(term.scale)), term.dense())
        if term.shift is not None:
            close(term.shift, term.dense())
        for grow in grows(layer, term):
            factors = term.patch_factors(grow)
            if factors is not None:
                left, right = factors
                product = (left @ right.flatten(1)).reshape(*batch, *slot.shape[:2], *slot.grown(grow))
                close(product, on(term, grow))
        assert (term.scale is not None) == (name == "row_scale")
        assert (term.shift is not None) == (name == "dense" and len(slot.shape) == 1)


@pytest.mark.parametrize(("layer", "name"), CASES)
def test_the_batch_of_a_term(layer: str, name: str) -> None:
    """Rows that are taken, split off or repeated are those of `dense`."""
    index = torch.tensor([2, 0, 0, 3, 1, 2])
    for batch in BATCHES:
        term = term_of(layer, name, batch)
        dense = term.dense()
        expanded = term.expand_batch(SIZE)
        close(expanded.dense(), dense if batch else dense.expand(SIZE, *dense.shape))
        assert expanded.batch == (SIZE,)
        assert expanded.coefficient.data_ptr() == term.coefficient.data_ptr(), "expanding copies nothing"
        if batch:
            close(term.take(index).dense(), dense[index])
        parts = term.split(3, 2)
        assert len(parts) == 2
        for part, start in zip(parts, (0, 3), strict=True):
            close(part.dense(), dense[start : start + 3] if batch else dense)
        other = torch.randn_like(term.coefficient)
        assert term.with_coefficient(other).coefficient is other


@pytest.mark.parametrize(("layer", "name"), [case for case in CASES if case[0] in ("conv2d", "linear")])
def test_a_detached_term_has_leaves_of_its_own(layer: str, name: str) -> None:
    """With the same numbers and the same `requires_grad` flags, so that a backward pass ends there."""
    term = term_of(layer, name)
    changed = term.with_coefficient((term.coefficient.clone().requires_grad_()) * 2)
    apart = changed.detached()
    close(apart.dense(), changed.dense())
    assert apart.coefficient.is_leaf and apart.coefficient.requires_grad
    flags = [t.requires_grad for t in changed.tensors]
    assert [t.requires_grad for t in apart.tensors] == flags and flags.count(True) == 1


# Work on the activations


APPLIED = [case for case in CASES if case[0] in OPERATIONS]


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize(("layer", "name"), APPLIED)
def test_apply_is_the_layer_with_dense(layer: str, name: str, traced: bool) -> None:
    """`term.apply(op, x, y)` is y plus the layer with each sample's Δ; a term without such a form says so."""
    found, term = LAYERS[layer], term_of(layer, name)
    op, x = operation(found, traced), draw(SIZE, *found.x)
    expected = found.call(x, term.dense(), term.grow)
    y = torch.randn_like(expected)
    if not term.applies_to(found.size(op, term.grow), constant=True):
        with pytest.raises((NotImplementedError, AssertionError)):
            term.apply(op, x, y)
        return
    torch.testing.assert_close(term.apply(op, x, y.clone()), y + expected, rtol=1e-10, atol=1e-10)
    if name.startswith("low_rank") and not traced and found.op.kind != "linear" and not found.slot.depthwise:  # type: ignore[union-attr]
        with pytest.raises(AssertionError, match="frozen layer"):
            term.apply(op, x, None)
    else:
        torch.testing.assert_close(term.apply(op, x, None), expected, rtol=1e-10, atol=1e-10)


def test_the_terms_that_have_no_form_on_the_activations() -> None:
    """Dense tensors have none anywhere; tap mixings have none on a transposed convolution."""
    for layer, name in APPLIED:
        found = LAYERS[layer]
        none = name in ("dense", "replacement") or (name.startswith("tap") and found.slot.kind == "conv_transpose")
        term = term_of(layer, name)
        assert term.applies_to(found.size(operation(found)), constant=True) == (not none), (layer, name)


# Tap mixing


@pytest.mark.parametrize("taps", [3, 5, 9])
@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("filters", [256, 255, 12])
def test_filters_mixed_several_at_once_are_those_mixed_one_by_one(taps: int, slow: bool, filters: int) -> None:
    """Whatever the machine prefers."""
    torch.manual_seed(taps)
    given, mix = draw(filters, taps), draw(3, taps, taps)
    with using(thin_products_are_slow=slow):
        close(mix_filters(given, mix), torch.einsum("ft,btu->bfu", given, mix))
        close(mix_filters(given, mix[0]), given @ mix[0])


@pytest.mark.parametrize("processor", [AVX2, AVX512], ids=["AVX2", "AVX512"])
def test_the_gradient_of_one_mixing_of_many_filters_is_that_of_one_product(processor: object) -> None:
    """It is made in pieces, which can run on several cores."""
    torch.manual_seed(0)
    with using(processor) as machine:  # type: ignore[arg-type]
        filters = draw(machine.many_filters, 9)
        mix = draw(9, 9).requires_grad_()
        mixed = mix_filters(filters, mix)
        close(mixed, filters @ mix)
        outer = torch.randn_like(mixed)
        (grad,) = torch.autograd.grad((mixed * outer).sum(), mix)
    torch.testing.assert_close(grad, filters.t() @ outer, rtol=1e-12, atol=1e-9)

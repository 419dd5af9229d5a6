"""Layer operations: each way in which work moves to the activations, against the layer called sample by sample.

Every operation of `pieces.LAYERS` runs as an eager call has it and as a traced graph has it. Values, gradients and
gradients of gradients are compared.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from pieces import LAYERS, OPERATIONS, SIZE, derivatives, draw, operation, weight
from torch import Tensor

from weightmorph.layers import Convolution, LayerOp, rematerialise, using, with_room
from weightmorph.slots import Grow
from weightmorph.terms import LowRankUpdate, TapMix, widen

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's note on even kernels

layers = pytest.mark.parametrize("layer", list(OPERATIONS))
flavours = pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])


def close(got: Tensor | list[Tensor], expected: Tensor | list[Tensor]) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def wide_weight(layer: str, grow: Grow = (), batch: tuple[int, ...] = (SIZE,)) -> Tensor:
    """Weights with a kernel that has grown."""
    slot = LAYERS[layer].slot
    return draw(*batch, *(slot.shape if not grow else (*slot.shape[:2], *slot.grown(grow))))


# The function itself


@layers
def test_an_operation_is_torchs_function(layer: str) -> None:
    """With its stride, padding, dilation and groups; and its size in numbers is the layer's."""
    found = LAYERS[layer]
    op, x, w = operation(found), draw(SIZE, *found.x), weight(found.slot)
    y = found.plain(x, w)
    close(op(x, w), y)
    size = found.size(op)
    assert (size.groups, size.outputs, size.inputs, size.taps) == found.slot.canonical_shape
    assert size.batch == SIZE and found.size(operation(found, traced=True)).batch is None
    work_at = x if op.kind == "conv_transpose" else y  # a transposed convolution's work is at its input's positions
    positions = work_at.shape[1:-1].numel() if op.kind == "linear" else work_at.shape[2:].numel()
    assert size.positions == positions
    assert found.plain(x, w).shape[0] == SIZE


@pytest.mark.parametrize("layer", [name for name, found in OPERATIONS.items() if found.grow])
def test_a_kernel_that_has_grown_by_zeros_changes_nothing(layer: str) -> None:
    """The padding grows with it, whichever side it grows on; also where torch's function is called itself."""
    found = LAYERS[layer]
    op, x, w = operation(found), draw(SIZE, *found.x), weight(found.slot)
    zeros = ((0, 0),) * len(found.grow)
    grows = [
        found.grow,
        tuple((a, b) for b, a in found.grow),
        *[(*zeros[:axis], (1, 0), *zeros[axis + 1 :]) for axis in range(len(zeros))],
    ]
    for grow in grows:
        assert isinstance(op, Convolution)
        close(op(x, widen(w, grow), grow=grow), found.plain(x, w))
    extra = [2] * found.slot.spatial
    wide = widen(w, found.slot.sides(extra))
    given = (x, wide, None, op.stride, op.padding, op.dilation, op.groups)
    function = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[op.dims - 1]
    close(function(**with_room(function, given, {}, found.slot)), found.plain(x, w))


@layers
def test_numbers_per_output_multiply_and_bias_adds(layer: str) -> None:
    """`(G·O,)` for all samples, `(B, G·O)` with one per sample."""
    found = LAYERS[layer]
    op, x = operation(found), draw(SIZE, *found.x)
    y = found.plain(x, weight(found.slot))
    channels = y.movedim(-1 if op.kind == "linear" else 1, 1)
    for batch in ((), (SIZE,)):
        value = draw(*batch, found.slot.outputs)
        shape = (SIZE if batch else 1, -1, *(1,) * (channels.dim() - 2))
        for got, expected in (
            (y * op.per_output(value, y), channels * value.reshape(shape)),
            (op.with_bias(y.clone(), value), channels + value.reshape(shape)),
        ):
            close(got.movedim(-1 if op.kind == "linear" else 1, 1), expected)


# Work that moves to the activations


@flavours
@pytest.mark.parametrize("layer", [name for name, found in OPERATIONS.items() if not found.slot.depthwise])
def test_low_rank_is_the_layer_with_the_product(layer: str, traced: bool) -> None:
    """A narrow layer to r channels, and a small product to the outputs, added to the output so far."""
    found, rank = LAYERS[layer], 2
    slot, op = found.slot, operation(found, traced)
    g, o, i, t = slot.canonical_shape

    def fast(x: Tensor, left: Tensor, gain: Tensor, right: Tensor, y: Tensor) -> Tensor:
        narrow = slot.restore(right.reshape(g, rank, i, t))
        return op.low_rank(x, narrow, left, gain, y.clone())

    def slow(x: Tensor, left: Tensor, gain: Tensor, right: Tensor, y: Tensor) -> Tensor:
        return y + found.call(x, LowRankUpdate(slot, left, gain, right).dense())

    x = draw(SIZE, *found.x)
    y = torch.randn_like(found.plain(x, weight(slot)))
    inputs = (x, draw(g, o, rank), draw(SIZE, rank), draw(g, rank, i * t), y)
    close(derivatives(fast, inputs), derivatives(slow, inputs))
    if y.dim() > 3:  # an output in another order of axes cannot be written into as a matrix
        last = y.contiguous(memory_format=torch.channels_last if y.dim() == 4 else torch.channels_last_3d)
        close(fast(x, *inputs[1:4], last), slow(*inputs))


@flavours
@layers
def test_weight_sets_are_the_layer_with_the_mixture(layer: str, traced: bool) -> None:
    """Each sample's own mixture of whole weights, with and without an output so far."""
    found = LAYERS[layer]
    op = operation(found, traced)

    def fast(x: Tensor, bank: Tensor, mix: Tensor) -> Tensor:
        return op.weight_sets(x, bank, mix, None)

    def slow(x: Tensor, bank: Tensor, mix: Tensor) -> Tensor:
        return found.call(x, torch.einsum("bd,d...->b...", mix, bank))

    inputs = draw(SIZE, *found.x), draw(3, *found.slot.shape), draw(SIZE, 3)
    close(derivatives(fast, inputs), derivatives(slow, inputs))
    y = torch.randn_like(slow(*inputs))
    close(op.weight_sets(*inputs, y.clone()), y + slow(*inputs))


MIXED = [n for n, found in OPERATIONS.items() if found.slot.kernel and found.slot.kind != "conv_transpose"]


@flavours
@pytest.mark.parametrize("layer", MIXED)
def test_mixed_taps_are_the_layer_with_the_mixed_kernel(layer: str, traced: bool) -> None:
    """On the frozen support and on a grown one; where patches are shared, with a low-rank update of them as well."""
    found = LAYERS[layer]
    slot, op, w = found.slot, operation(found, traced), weight(found.slot)
    for grow in {(), found.grow}:
        mix = draw(SIZE, slot.n_taps, torch.Size(slot.grown(grow)).numel())

        def fast(x: Tensor, mix: Tensor, grow: Grow = grow) -> Tensor:
            return op.mixed_taps(x, slot, w, mix, grow, None)

        def slow(x: Tensor, mix: Tensor, grow: Grow = grow) -> Tensor:
            return found.call(x, TapMix(slot, w, mix, grow).dense(), grow)

        inputs = draw(SIZE, *found.x), mix
        close(derivatives(fast, inputs), derivatives(slow, inputs))
        if not op.shares_patches:
            continue

        def with_update(x: Tensor, mix: Tensor, left: Tensor, right: Tensor, grow: Grow = grow) -> Tensor:
            return op.mixed_taps(x, slot, w, mix, grow, (left, right))

        def dense(x: Tensor, mix: Tensor, left: Tensor, right: Tensor, grow: Grow = grow) -> Tensor:
            update = (left @ right.flatten(1)).reshape(SIZE, *slot.shape[:2], *slot.grown(grow))
            return found.call(x, TapMix(slot, w, mix, grow).dense() + update, grow)

        more = draw(SIZE, slot.outputs, 2), draw(2, slot.shape[1], *slot.grown(grow))
        close(derivatives(with_update, (*inputs, *more)), derivatives(dense, (*inputs, *more)))


def test_which_operations_share_patches() -> None:
    """Plain convolutions without groups, outside of a traced graph."""
    shared = {name for name, found in OPERATIONS.items() if operation(found).shares_patches}
    assert shared == {n for n, found in OPERATIONS.items() if found.slot.kind == "conv" and found.slot.groups == 1}
    assert not any(operation(found, traced=True).shares_patches for found in OPERATIONS.values())


@pytest.mark.parametrize("few", [0, 10**6])
def test_a_narrow_convolution_with_one_tap_is_a_product_or_a_convolution(few: int) -> None:
    """Both give the same, with groups and without."""
    for layer in ("conv2d_one_tap", "conv2d_one_tap_groups"):
        found = LAYERS[layer]
        op, x, narrow = operation(found), draw(SIZE, *found.x), draw(2 * found.slot.groups, found.slot.shape[1], 1, 1)
        assert isinstance(op, Convolution)
        with using(few_columns=few):
            got = op.narrow(x, narrow)
        close(got, op(x, narrow).reshape(got.shape))


def test_a_transposed_convolution_mixes_no_taps() -> None:
    """It reads no patches."""
    found = LAYERS["transposed2d"]
    w, mix = weight(found.slot), draw(SIZE, 9, 9)
    with pytest.raises(AssertionError, match="reads no patches"):
        operation(found).mixed_taps(draw(SIZE, *found.x), found.slot, w, mix, (), None)


# One dense weight per sample


def parts(x: Tensor, weights: Tensor, step: int) -> list[tuple[Tensor, partial[Tensor]]]:
    """Chunks of the batch, each with what materialises its weights (times one, so that it is a computation)."""
    rows = weights.split(step) if len(weights) == len(x) else [weights] * -(-len(x) // step)
    return [(a, partial(torch.mul, w, 1.0)) for a, w in zip(x.split(step), rows, strict=True)]


@pytest.mark.parametrize("route", ["grouped", "product"])
@layers
def test_weights_per_sample_are_the_layer_sample_by_sample(layer: str, route: str) -> None:
    """A few samples at a time or all at once, weights saved or recomputed, on a plain support or a grown one."""
    found = LAYERS[layer]
    op = operation(found)
    for grow in {(), found.grow}:
        inputs = draw(SIZE, *found.x), wide_weight(layer, grow)
        expected = derivatives(lambda x, w, grow=grow: found.call(x, w, grow), inputs)
        for step, recompute in ((SIZE, False), (3, False), (1, True), (SIZE, True)):

            def fast(x: Tensor, w: Tensor, step: int = step, grow: Grow = grow, recompute: bool = recompute) -> Tensor:
                return op.per_sample(x, parts(x, w, step), route, grow, recompute)

            if recompute:  # what is recomputed is saved as a recipe, and has no second derivative
                leaves = [t.clone().requires_grad_() for t in inputs]
                value = fast(*leaves)
                got = [value.detach(), *torch.autograd.grad(value.tanh().sum(), leaves)]
                close(got, expected[:3])
            else:
                close(derivatives(fast, inputs), expected)
        with torch.no_grad():
            for step in (SIZE, 3):
                close(op.per_sample(inputs[0], parts(*inputs, step), route, grow, False), expected[0])


@layers
def test_weights_per_sample_in_a_traced_graph(layer: str) -> None:
    """Patches cut by slicing, times weights; a transposed convolution as a plain one."""
    found = LAYERS[layer]
    op = operation(found, traced=True)
    for grow in {(), found.grow}:
        inputs = draw(SIZE, *found.x), wide_weight(layer, grow)
        close(
            derivatives(lambda x, w, grow=grow: op.per_sample(x, parts(x, w, len(x)), "product", grow, False), inputs),
            derivatives(lambda x, w, grow=grow: found.call(x, w, grow), inputs),
        )


@pytest.mark.parametrize("route", ["grouped", "product"])
@layers
def test_one_weight_for_all_samples_on_a_dense_route(layer: str, route: str) -> None:
    """Where no term that was added to the weight depends on the sample."""
    found = LAYERS[layer]
    x, w = draw(SIZE, *found.x), weight(found.slot)
    chunks = [(part, partial(torch.mul, w, 1.0)) for part in x.split(3)]
    for recompute in (False, True):
        close(operation(found).per_sample(x, chunks, route, (), recompute), found.plain(x, w))


@pytest.mark.parametrize("vector", [4, 16])
@pytest.mark.parametrize("layer", ["conv2d_many_inputs", "conv3d_eight_outputs", "conv2d"])
def test_outputs_of_zeros_fill_vector_units_and_are_cut_off(layer: str, vector: int) -> None:
    """A sample's outputs are padded where that is faster, and the result does not show it."""
    found = LAYERS[layer]
    inputs = draw(SIZE, *found.x), wide_weight(layer)

    def fast(x: Tensor, w: Tensor) -> Tensor:
        return operation(found).per_sample(x, parts(x, w, 2), "grouped", (), False)

    with using(vector=vector):
        got = derivatives(fast, inputs)
    close(got, derivatives(found.call, inputs))
    with using(vector=vector), torch.no_grad():
        assert fast(*inputs).is_contiguous()


@pytest.mark.parametrize(
    ("layer", "route"),
    [
        ("conv2d", "grouped"),
        ("conv2d", "product"),
        ("transposed2d", "grouped"),
        ("tiles", "product"),
        ("linear", "product"),
    ],
)
def test_recomputed_weights_are_computed_again_in_the_backward_pass(layer: str, route: str) -> None:
    """Once a chunk, and never where they are saved; the gradients are equal bit for bit."""
    found = LAYERS[layer]
    x, w = draw(SIZE, *found.x).requires_grad_(), wide_weight(layer).requires_grad_()
    calls: list[int] = []

    def materialise(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return rows * 1.0

    gradients, counts = [], []
    for recompute in (False, True):
        calls.clear()
        chunks = [(part, partial(materialise, rows)) for part, rows in zip(x.split(2), w.split(2), strict=True)]
        y = operation(found).per_sample(x, chunks, route, (), recompute)
        before = len(calls)
        gradients.append(torch.autograd.grad(y.square().sum(), (x, w)))
        counts.append(len(calls) - before)
    assert counts[0] == 0 and counts[1] == 2
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_rematerialise_saves_a_recipe_in_place_of_a_tensor() -> None:
    """Only where it is asked to, and with the shape and strides under which autograd saved it."""
    x, w = draw(5, 3).requires_grad_(), draw(4, 3).requires_grad_()
    calls: list[int] = []

    def recompute() -> Tensor:
        calls.append(1)
        return w * 2

    for when in (False, True):
        calls.clear()
        large = w * 2
        with rematerialise((large, recompute), when=when):
            y = x @ large.t()
        large.detach().fill_(float("nan"))  # what was saved is not this tensor any more
        if not when:
            with pytest.raises(RuntimeError, match="modified by an inplace"):
                y.sum().backward()
            continue
        (grad,) = torch.autograd.grad(y.sum(), x)
        close(grad, (w * 2).sum(0).expand(5, 3))
        assert calls == [1]


def test_every_operation_is_tested() -> None:
    """A class of layer operation that is added joins the tests' list."""
    seen = {type(found.op) for found in OPERATIONS.values()}
    kinds, waiting = set(), [LayerOp]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if not getattr(kind, "__abstractmethods__", None):
            kinds.add(kind)
    assert kinds <= seen

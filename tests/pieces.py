"""Layers and terms, one by one, that the tests of `terms` and `layers` run on.

A layer that joins LAYERS and a term that joins TERMS inherit every test of `test_terms.py` and `test_layer_ops.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightmorph.layers import Convolution, LayerOp, LayerSize, Linear, TransposedConvolution, each
from weightmorph.slots import Grow, Slot
from weightmorph.terms import BasisMix, Dense, LowRankUpdate, Replacement, RowScale, TapMix, Term, beyond, widen

Array = np.ndarray
SIZE = 4
"""Samples in a batch."""

BATCHES: tuple[tuple[int, ...], ...] = ((), (SIZE,))
"""A shared θ, and one per sample."""


@dataclass(frozen=True)
class Layer:
    """A weight's slot, the operation that reads it, the shape of one input, and taps by which its kernel may grow.

    `plain(x, w)` is the operation as torch writes it. A vector has no operation.
    """

    slot: Slot
    op: LayerOp | None = None
    plain: Callable[[Tensor, Tensor], Tensor] = torch.mul
    x: tuple[int, ...] = ()
    grow: Grow = ()

    def size(self, op: LayerOp, grow: Grow = ()) -> LayerSize:
        """The layer in numbers, for a batch."""
        return op.size(torch.zeros(SIZE, *self.x), self.slot, grow, False)

    def call(self, x: Tensor, weight: Tensor, grow: Grow = ()) -> Tensor:
        """The oracle: the layer sample by sample, with weights `(B, *S)`, or one weight `(*S)` for all samples."""
        assert self.op is not None
        weights = weight if weight.dim() > len(self.slot.shape) else weight.expand(len(x), *weight.shape)
        return torch.cat([self.op(x[i : i + 1], weights[i], grow=grow) for i in range(len(x))])


def _conv(
    shape: tuple[int, ...], x: tuple[int, ...], grow: Grow = (), groups: int = 1, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1,
) -> Layer:  # fmt: skip
    n = len(shape) - 2
    pads = padding if isinstance(padding, str) else each(padding, n)
    function = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    return Layer(
        replace(Slot.of(shape), groups=groups, growable=True),
        Convolution(n, each(stride, n), pads, each(dilation, n), groups),
        lambda x, w: function(x, w, None, stride, padding, dilation, groups),
        x,
        grow,
    )


def _transposed(
    shape: tuple[int, ...], x: tuple[int, ...], groups: int = 1, stride: Any = 1, padding: Any = 0, more: Any = 0,
    dilation: Any = 1,
) -> Layer:  # fmt: skip
    n = len(shape) - 2
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    return Layer(
        replace(Slot.of(shape), kind="conv_transpose", groups=groups),
        TransposedConvolution(
            n, each(stride, n), each(padding, n), each(dilation, n), groups, output_padding=each(more, n)
        ),
        lambda x, w: function(x, w, None, stride, padding, more, groups, dilation),
        x,
    )


LAYERS: dict[str, Layer] = {
    "conv1d": _conv((4, 3, 5), (3, 9), ((1, 0),), stride=2, padding=2),
    "conv2d": _conv((4, 3, 3, 3), (3, 7, 6), ((0, 1), (1, 1)), padding=1),
    "conv2d_stride": _conv((4, 3, 3, 2), (3, 7, 6), ((1, 1), (0, 2)), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "conv2d_same": _conv((4, 3, 4, 2), (3, 7, 6), ((0, 1), (0, 0)), padding="same"),
    "conv2d_valid": _conv((4, 3, 3, 3), (3, 7, 6), padding="valid"),
    "conv2d_one_tap": _conv((4, 3, 1, 1), (3, 7, 6)),
    "conv2d_one_tap_stride": _conv((4, 3, 1, 1), (3, 7, 6), stride=2, padding=1),
    "conv2d_one_tap_groups": _conv((4, 3, 1, 1), (6, 7, 6), groups=2),
    "conv2d_groups": _conv((4, 3, 3, 3), (6, 7, 6), ((1, 1), (0, 1)), groups=2, padding=1),
    "conv2d_many_inputs": _conv((4, 9, 3, 3), (9, 5, 5), padding=1),
    "depthwise": _conv((6, 1, 3, 3), (3, 7, 6), ((1, 1), (1, 1)), groups=3, padding=1, stride=2),
    "conv3d": _conv((4, 2, 3, 2, 1), (2, 5, 4, 6), ((1, 1), (0, 1), (0, 0)), padding=1, stride=(2, 1, 1)),
    "conv3d_eight_outputs": _conv((8, 9, 1, 3, 3), (9, 3, 4, 4)),
    "transposed1d": _transposed((3, 4, 4), (3, 9), stride=2, padding=1),
    "transposed2d": _transposed((3, 4, 3, 3), (3, 5, 4), stride=2, padding=1, more=1),
    "transposed2d_groups": _transposed((4, 3, 3, 3), (4, 5, 4), groups=2, dilation=2),
    "transposed_depthwise": _transposed((3, 2, 3, 3), (3, 5, 4), groups=3),
    "tiles": _transposed((3, 4, 2, 2), (3, 5, 4), stride=2),
    "tiles_groups": _transposed((4, 3, 2, 3), (4, 5, 4), groups=2, stride=(2, 3)),
    "tiles3d": _transposed((2, 3, 2, 2, 2), (2, 3, 4, 2), stride=2),
    "linear": Layer(Slot.of((5, 6)), Linear(), F.linear, (6,)),
    "linear_tokens": Layer(Slot.of((5, 6)), Linear(), F.linear, (3, 6)),
    "linear_over_map": Layer(Slot.of((5, 18)).as_map((3, 3)), Linear(), F.linear, (18,)),
    "norm": Layer(Slot.of((5,))),
    "bias": Layer(replace(Slot.of((5,)), kind="bias")),
    "other": Layer(Slot("gain", "", "gain", "other", (4, 2, 1))),
    "scalar": Layer(Slot("gain", "", "gain", "other", ())),
}

OPERATIONS = {name: layer for name, layer in LAYERS.items() if layer.op is not None}


def operation(layer: Layer, traced: bool = False) -> LayerOp:
    """The layer's operation, as an eager call has it or as a traced graph has it."""
    assert layer.op is not None
    return replace(layer.op, traced=traced)  # type: ignore[type-var]  # every operation is a dataclass


def draw(*shape: int) -> Tensor:
    """Random numbers in float64."""
    return torch.randn(shape, dtype=torch.float64)


def weight(slot: Slot) -> Tensor:
    """The slot's frozen weight, always the same."""
    return torch.randn(slot.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# Terms, each with its formula on a canonical weight `(G, O, I, T)`, for one sample.


class Maker(NamedTuple):
    """How to draw a term of a layer for a batch (None where it has none), and Δ by its formula.

    The formula takes the term, its coefficient for one sample and the canonical weight, and gives Δ `(G, O, I, T')`,
    or as a tensor of the slot's shape where it knows no canonical form.
    """

    draw: Callable[[Layer, tuple[int, ...]], Term | None]
    formula: Callable[[Any, Array, Array], Array]


def _row_scale(layer: Layer, batch: tuple[int, ...]) -> Term:
    return RowScale(layer.slot, weight(layer.slot), draw(*batch, layer.slot.outputs))


def _low_rank(rank: int) -> Callable[[Layer, tuple[int, ...]], Term | None]:
    def made(layer: Layer, batch: tuple[int, ...]) -> Term | None:
        slot = layer.slot
        if slot.kind not in ("conv", "conv_transpose", "linear"):
            return None
        g, o, i, t = slot.canonical_shape
        g, o, i = (1, g * o, 1) if slot.depthwise else (g, o, i)
        return LowRankUpdate(slot, draw(g, o, rank), draw(*batch, rank), draw(g, rank, i * t))

    return made


def _tap_mix(grown: bool) -> Callable[[Layer, tuple[int, ...]], Term | None]:
    def made(layer: Layer, batch: tuple[int, ...]) -> Term | None:
        slot, more = layer.slot, layer.grow if grown else ()
        if not slot.kernel or (grown and not more):
            return None
        wide = int(np.prod(slot.grown(more)))
        return TapMix(slot, weight(slot), draw(*batch, slot.n_taps, wide), more)

    return made


def _basis(layer: Layer, batch: tuple[int, ...]) -> Term:
    return BasisMix(layer.slot, draw(3, *layer.slot.shape), draw(*batch, 3))


def _dense(layer: Layer, batch: tuple[int, ...]) -> Term:
    return Dense(layer.slot, draw(*batch, *layer.slot.shape))


def _replacement(layer: Layer, batch: tuple[int, ...]) -> Term:
    return Replacement(layer.slot, weight(layer.slot), draw(*batch, *layer.slot.shape))


def _low_rank_formula(term: LowRankUpdate, gain: Array, canonical: Array) -> Array:
    return np.einsum("gor,r,grk->gok", term.left.numpy(), gain, term.right.numpy()).reshape(canonical.shape)


TERMS: dict[str, Maker] = {
    "row_scale": Maker(_row_scale, lambda term, s, w: s.reshape(*w.shape[:2], 1, 1) * w),
    "low_rank": Maker(_low_rank(2), _low_rank_formula),
    "low_rank_1": Maker(_low_rank(1), _low_rank_formula),
    "tap_mix": Maker(_tap_mix(False), lambda term, mix, w: np.einsum("goit,tu->goiu", w, mix)),
    "tap_mix_grown": Maker(_tap_mix(True), lambda term, mix, w: np.einsum("goit,tu->goiu", w, mix)),
    "basis_mix": Maker(_basis, lambda term, m, w: np.einsum("d,d...->...", m, term.bank.numpy())),
    "dense": Maker(_dense, lambda term, delta, w: delta),
    "replacement": Maker(_replacement, lambda term, value, w: value - term.weight.numpy()),
}

CASES = [
    (layer, term) for layer in LAYERS for term, maker in TERMS.items() if maker.draw(LAYERS[layer], ()) is not None
]
"""Every term on every layer that has it."""


def term_of(layer: str, name: str, batch: tuple[int, ...] = (SIZE,)) -> Term:
    """A random term of a layer."""
    term = TERMS[name].draw(LAYERS[layer], batch)
    assert term is not None
    return term


def on(term: Term, grow: Grow) -> Tensor:
    """Δ on a support that is grown by `grow`."""
    return widen(term.dense(), beyond(grow, term.grow))


def total(terms: Sequence[Term], grow: Grow) -> Tensor:
    """The sum of some terms on one support."""
    summed = on(terms[0], grow)
    for term in terms[1:]:
        summed = summed + on(term, grow)
    return summed


def canonical(slot: Slot, value: Array) -> Array:
    """`(*S) -> (G, O, I, T)`, by the layouts that torch documents."""
    g, o, i, t = slot.canonical_shape
    if slot.kind == "conv_transpose":
        return value.reshape(g, i, o, t).transpose(0, 2, 1, 3)
    return value.reshape(g, o, i, t)


def from_canonical(slot: Slot, value: Array, grow: Grow) -> Array:
    """The way back, with a kernel that has grown."""
    if value.shape == slot.shape:
        return value
    if slot.kind == "conv_transpose":
        return value.transpose(0, 2, 1, 3).reshape(slot.shape)
    if slot.kind == "conv":
        return value.reshape(*slot.shape[:2], *slot.grown(grow))
    return value.reshape(slot.shape)


def derivatives(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """A function's value, the gradients of a smooth function of it, and their own gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    value = function(*leaves)
    first = torch.autograd.grad(value.tanh().sum(), leaves, create_graph=True)
    total = torch.stack([g.square().sum() for g in first]).sum()
    return [value.detach(), *(g.detach() for g in first), *torch.autograd.grad(total, leaves)]

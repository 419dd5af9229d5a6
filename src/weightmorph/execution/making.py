"""W(θ) as a tensor, made with as few passes over it as its terms allow.

[`WeightExpression.dense`][weightmorph.terms.WeightExpression.dense] says what the tensor is, term by term, and is the
oracle of what is done here: one product that mixes the taps with the identity included, one fused multiply for the
rows' scales, one product that adds the low-rank update in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..slots import Grow, Slot
from ..terms import BasisMix, Dense, LowRankUpdate, RowScale, TapMix, Term, WeightExpression, Whole, beyond, widen
from .inplace import unviewed
from .precision import full_precision

__all__ = ["embedding", "make", "make_vectors"]

WIDE = 16
"""From so many taps on a filter's product fills a vector unit; below it, two or four filters are mixed at once."""

THIN_IS_SLOW = not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
"""Does a product with nine columns run at a third of a wide one's rate? With AVX2 it does, with AVX-512 it does not."""

FEW_FILTERS = 128
"""With fewer of them, taking several at once costs more than it saves."""


MANY_FILTERS, PIECES = 2**14, 64
"""From so many filters on, the gradient of a mixing is made in pieces: as one product it runs on a single core."""


def make(expression: WeightExpression, terms: Sequence[Term] | None = None) -> Tensor:
    """The frozen weight plus some of the terms (all, unless said otherwise): `(*B, *S)`, `*B` if any has it.

    Always in the weights' own precision: under autocast it is the layer that casts, as it casts the frozen weight.
    """
    with full_precision(expression.base.device):
        return _make(expression, terms)


def _make(expression: WeightExpression, terms: Sequence[Term] | None) -> Tensor:
    terms = list(expression.terms if terms is None else terms)
    slot, grow = expression.slot, expression.grow
    direct = slot.kind in ("conv", "linear") and not any(isinstance(t, Whole) for t in terms)
    mixes = [t for t in terms if isinstance(t, TapMix) and t.grow == grow]
    if not direct or (grow and not mixes):
        return expression.total(expression.base, terms)
    g, o, i, t = slot.canonical_shape
    batch = next((term.batch for term in terms if term.batch), ())
    shape = (g * o, i * math.prod(slot.grown(grow)))
    base = expression.base
    fresh = False
    if mixes:
        mix = embedding(slot, grow, base)
        for one in mixes:
            mix = mix + one.mix
        total = unviewed(mixed(base.reshape(-1, t), mix), (*mixes[0].batch, *shape))
        fresh = True
    else:
        total = base.reshape(shape)
    for term in [t for t in terms if t not in mixes]:
        ready = fresh and total.dim() - 2 == len(batch)  # ours, and wide enough to be written into
        if isinstance(term, RowScale):
            rows = widen(term.weight, grow).reshape(shape)
            gain = term.gain.unsqueeze(-1)
            total = total.addcmul_(rows, gain) if ready else torch.addcmul(total, rows, gain)
        elif isinstance(term, LowRankUpdate) and (g == 1 or slot.depthwise):
            right = term.right[0]
            if grow:
                right = widen(right.reshape(-1, *slot.shape[1:]), grow).flatten(1)
            total = _low_rank(total, term.left[0] * term.gain.unsqueeze(-2), right, ready)
        elif isinstance(term, BasisMix) and not grow:
            total = _basis(total, term, ready)
        else:
            piece = widen(term.dense(), beyond(grow, term.grow))
            piece = piece.reshape(*term.batch, *shape)
            total = total.add_(piece) if ready else total + piece
        fresh = True
    return total.reshape(*batch, *slot.shape[:2], *slot.grown(grow)) if slot.kind == "conv" else total


def make_vectors(expressions: Mapping[str, WeightExpression]) -> dict[str, Tensor]:
    """Those among shared expressions that merely scale or shift a vector, all made in a few operations.

    Exactly the frozen vectors where gains and shifts are zero.
    """
    made: dict[str, Tensor] = {}
    for kind in (RowScale, Dense):
        rows = {
            name: (e.base, e.terms[0].carrier[0])
            for name, e in expressions.items()
            if len(e.terms) == 1 and type(e.terms[0]) is kind and e.base.dim() == 1
        }
        if len(rows) < 2:
            continue
        base = torch.cat([b for b, _ in rows.values()])
        change = torch.cat([c for _, c in rows.values()])
        whole = torch.addcmul(base, base, change) if kind is RowScale else base + change
        made |= zip(rows, whole.split([b.shape[0] for b, _ in rows.values()]), strict=True)
    return made


def _low_rank(total: Tensor, left: Tensor, right: Tensor, ready: bool) -> Tensor:
    """`total + left @ right`: left `(*B, O, r)`, right `(r, N)`."""
    if left.dim() == 2:
        return total.addmm_(left, right) if ready else torch.addmm(total, left, right)
    right = right.expand(left.shape[0], *right.shape)
    return total.baddbmm_(left, right) if ready else torch.baddbmm(total, left, right)


def _basis(total: Tensor, term: BasisMix, ready: bool) -> Tensor:
    """`total + mix @ bank` in one product: mix `(*B, D)`."""
    mix, bank = term.mix.reshape(-1, term.mix.shape[-1]), term.bank.flatten(1)
    if ready:
        return unviewed(unviewed(total, (mix.shape[0], bank.shape[1])).addmm_(mix, bank), total.shape)
    start = total.reshape(-1, bank.shape[1])  # one row for all samples, or one for each
    return unviewed(torch.addmm(start, mix, bank), (*term.batch, *total.shape[-2:]))


def embedding(slot: Slot, grow: Grow, like: Tensor) -> Tensor:
    """Where each tap of W sits among those of W(θ): `(T, T')`, the identity unless the support has grown."""
    t = slot.n_taps
    one = torch.eye(t, dtype=like.dtype, device=like.device)
    return widen(one.reshape(t, 1, *slot.kernel), grow).reshape(t, -1) if grow else one


def mixed(taps: Tensor, mix: Tensor) -> Tensor:
    """Filters `(F, T)` times mixings `(*B, T, T')` -> `(*B, F, T')`.

    Example:
        >>> taps, mix = torch.randn(6, 9), torch.randn(4, 9, 9)
        >>> torch.allclose(mixed(taps, mix), taps @ mix, atol=1e-5)
        True
    """
    f, t = taps.shape
    batch, wide = mix.shape[:-2], mix.shape[-1]
    if not batch and mix.requires_grad and f >= MANY_FILTERS and f % PIECES == 0 and torch.is_grad_enabled():
        return unviewed(torch.bmm(taps.view(PIECES, -1, t), mix.expand(PIECES, t, wide)), (f, wide))
    k = 1 if not THIN_IS_SLOW or wide >= WIDE or f < FEW_FILTERS else 4 if wide <= WIDE // 3 else 2
    if k == 1 or f % k:
        return taps @ mix
    one = torch.eye(k, dtype=mix.dtype, device=mix.device).reshape(k, 1, k, 1)
    block = (one * mix.unsqueeze(-2).unsqueeze(-4)).reshape(*batch, k * t, k * wide)
    return (taps.reshape(f // k, k * t) @ block).reshape(*batch, f, wide)

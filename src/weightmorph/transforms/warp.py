"""Kernels resampled under the parameter's map of the plane, and a learned mixing of their taps."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from .. import affine
from ..errors import TransformError
from ..parameters import ParameterSpace
from ..slots import Grow, Slot
from ..terms import TapMix
from .base import CoefficientTransform, zero_at_anchor
from .resample import Resampler

__all__ = ["Warp"]


Self = TypeVar("Self", bound="Warp")


class Warp(CoefficientTransform):
    r"""Resample each kernel under the parameter's affine map, plus a learned mixing of its taps.

    $$W(\theta) = W M(\theta), \qquad M(\theta) = 1 + R(\theta) - R(\theta_0) + \sum_k (c_k - c_{0,k}) L_k$$

    $R(\theta)$ is the analytic prior of [`resample`][weightmorph.transforms.resample]. It moves the taps under the map
    that the parameters name (rotation, zoom, shear, flips), about the point of the input that lies under the output
    grid's centre. $R(\theta_0)$ is the identity up to the `nugget`. $L$ starts at zero, so the untrained kernel is the
    resampled one; at the anchor $M$ is always the identity. With parameters that name no map, $R$ is the identity
    everywhere and $L$ alone acts.

    A `Linear` that reads a flattened `(C, h, w)` map is a kernel with h·w taps; a translation moves these as well.

    Shapes:
        weight `(*S)` with $T$ taps, code `(*B, K)` -> `(*B, *S)`; $M$ is `(*B, T, T')`, $T' > T$ with `grow`.

    Args:
        prior: start from $R$; False starts from the identity.
        learn: train $L$; False leaves the analytic prior alone, without a trainable number.
        grow: taps to add on every side of kernels whose layer allows it. `"auto"` adds one where the tap positions are
            not symmetric about their centre (a strided layer on an even map), because a turn would leave the support:
            on the side that makes them symmetric, or on both sides where the layer cannot pad one alone.
        max_learned: slots with more taps than this get the prior only.
        max_taps: slots with more taps than this are left alone.
        length: correlation length, in pixels, of the image model behind $R$.
        nugget: variance of the image model's noise, relative to that of its signal.

    Raises:
        TransformError: if `grow`, `length` or `nugget` cannot be used, or if a weight with a single tap is asked for
            by name.

    References:
        Cressie, "Statistics for Spatial Data", 1993, section 3.2 (ordinary kriging).

    Example:
        >>> from weightmorph import Angle, ParameterSpace
        >>> t = Warp().build((1, 1, 3, 3), space=ParameterSpace({"angle": Angle("deg")}))
        >>> quarter = t.space.encode({"angle": torch.tensor(90.0)})
        >>> t(torch.arange(9.0).reshape(1, 1, 3, 3), quarter).dense().round().abs().tolist()
        [[[[2.0, 5.0, 8.0], [1.0, 4.0, 7.0], [0.0, 3.0, 6.0]]]]
    """

    family = "warp"

    def __init__(
        self,
        prior: bool = True,
        learn: bool = True,
        grow: int | Literal["auto"] = "auto",
        max_learned: int = 27,
        max_taps: int = 256,
        length: float = 2.0,
        nugget: float = 1e-4,
    ) -> None:
        super().__init__()
        if grow != "auto" and (isinstance(grow, bool) or not isinstance(grow, int) or grow < 0):
            raise TransformError(f"Warp: grow must be 'auto' or a number of taps, got {grow!r}")
        if not length > 0 or not nugget >= 0:
            raise TransformError(f"Warp: expected length > 0 and nugget >= 0, got {length!r} and {nugget!r}")
        self.prior, self.learn, self.grow = prior, learn, grow
        self.max_learned, self.max_taps = max_learned, max_taps
        self.length, self.nugget = length, nugget

    def has_prior(self, slot: Slot, space: ParameterSpace | None) -> bool:
        """Do the parameters name a map of the plane that moves the slot's taps?"""
        if not self.prior or space is None or not space.affine_names:
            return False
        return slot.spatial > 1 or set(space.affine_names) <= affine.SEPARABLE

    def wants(self, slot: Slot, space: ParameterSpace) -> bool:
        learned = self.learn and slot.n_taps <= self.max_learned
        return 1 < slot.n_taps <= self.max_taps and (learned or self.has_prior(slot, space))

    def setup(self, slot: Slot, code_dim: int) -> None:
        if slot.n_taps < 2:
            raise TransformError(
                f"layer {slot.layer or slot.name!r}: Warp moves a kernel's taps and weight {slot.shape} has one; "
                "give it a convolution, or a Linear that reads a flattened map (condition's example= finds those)"
            )
        self.more: Grow = ()
        if slot.growable and self.has_prior(slot, self.space):
            extra = symmetric_growth(slot) if self.grow == "auto" else [2 * self.grow] * slot.spatial
            self.more = slot.sides(extra)
        # Its constants are no buffers: they follow from the slot, and a model in float32 needs them in float64.
        self.resampler = self._resampler(slot)
        # `fit` sets it to 0 where the identity fits better than the prior. A buffer, so that it is saved.
        self.register_buffer("trust", torch.tensor(1.0 if self.has_prior(slot, self.space) else 0.0))
        learned = self.learn and slot.n_taps <= self.max_learned
        shape = slot.n_taps, math.prod(slot.grown(self.more))
        self.taps = nn.Parameter(torch.zeros(code_dim, *shape)) if learned else None

    def _resampler(self, slot: Slot) -> Resampler | None:
        if self.space is None or not self.has_prior(slot, self.space):
            return None
        moves = slot.fixed and not affine.TRANSLATIONS.isdisjoint(self.space.affine_names)
        shift = 1 / slot.pixel if moves else None
        isometric = set(self.space.affine_names) <= affine.ISOMETRIES
        return Resampler(slot.positions(), slot.positions(self.more), self.length, self.nugget, shift, isometric)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        resampler: Resampler | None = getattr(self, "resampler", None)  # a recipe has none
        if resampler is not None:
            self.resampler = resampler.to(self.get_buffer("trust"))
        return self

    def coefficient(self, code: Tensor) -> Tensor:
        return self.coefficients([self], code)[0]

    def term(self, weight: Tensor, coefficient: Tensor) -> TapMix:
        return TapMix(self.slot, weight, coefficient, self.more)

    def batch_key(self) -> Hashable:
        r = self.resampler
        prior = (r.length, r.nugget, r.shift, self.slot.taps) if r is not None else None
        return prior, self.slot.kernel, self.more, self.taps is None

    @classmethod
    def coefficients(cls, members: Sequence[Warp], code: Tensor) -> Sequence[Tensor]:
        anchor = members[0].anchor_code(code)
        return zero_at_anchor(_mixings(members, code, anchor), code, anchor, lead=1).unbind()

    def config(self) -> dict[str, Any]:
        return {
            "type": "Warp", "prior": self.prior, "learn": self.learn, "grow": self.grow,
            "max_learned": self.max_learned, "max_taps": self.max_taps, "length": self.length, "nugget": self.nugget,
        }  # fmt: skip


def symmetric_growth(slot: Slot) -> list[int]:
    """How many taps to add along each axis, so that the tap positions are symmetric about their centre.

    Example:
        >>> symmetric_growth(Slot.of((1, 1, 3, 3)))
        [0, 0]
        >>> off = (-1.5, -0.5, 0.5)  # a strided layer on an even map
        >>> symmetric_growth(Slot("w", "", "w", "conv", (1, 1, 3, 3), kernel=(3, 3), taps=(off, off), one_sided=True))
        [1, 1]
    """
    offsets = [abs(places[0] + places[-1]) for places in slot.taps]  # twice the distance from symmetry
    if max(offsets) < 1e-6:
        return [0] * slot.spatial
    if not slot.one_sided:
        return [2] * slot.spatial
    spacing = [places[1] - places[0] if len(places) > 1 else 1.0 for places in slot.taps]
    one_is_enough = [abs(offset - step) < 1e-6 for offset, step in zip(offsets, spacing, strict=True)]
    # The depth axis of a volume does not turn.
    return [0 if axis < slot.spatial - 2 else 1 if one_is_enough[axis] else 2 for axis in range(slot.spatial)]


def _mixings(members: Sequence[Warp], code: Tensor, anchor_code: Tensor) -> Tensor:
    """$M(θ) - 1$ of slots with equal tap positions, for which $R$ is computed once: `(S, *B, T, T')`."""
    first = members[0]
    mix: Tensor | None = None
    if first.resampler is not None:
        assert first.space is not None
        trust = torch.stack([m.get_buffer("trust") for m in members]).to(code.dtype)
        moved = first.resampler.change(first.space.plane(code))
        mix = moved * trust.reshape(-1, *(1,) * moved.dim())
    if first.taps is not None:
        learned = torch.stack([m.taps for m in members if m.taps is not None], 1)
        by_code = torch.tensordot(code - anchor_code, learned, 1).movedim(-3, 0)
        mix = by_code if mix is None else mix + by_code
    if mix is None:
        return code.new_zeros(
            len(members), *code.shape[:-1], first.slot.n_taps, math.prod(first.slot.grown(first.more))
        )
    return mix

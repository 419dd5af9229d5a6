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
from ..slots import Slot
from ..terms import TapMix
from .base import Carried, anchored
from .resample import Resampler

__all__ = ["Warp"]


Self = TypeVar("Self", bound="Warp")


class Warp(Carried):
    r"""Resample each kernel under the parameter's affine map, plus a learned mixing of its taps.

    $$W(\theta) = W M(\theta), \qquad M(\theta) = 1 + R(\theta) - R(\theta_0) + \sum_k (c_k - c_{0,k}) L_k$$

    $R(\theta)$ is the analytic prior of [`resample`][weightmorph.transforms.resample]: the taps' positions go where
    the map that the parameters name takes them (rotation, zoom, shear, flips), about the point that the output grid's
    centre rests on. $R(\theta_0)$ is the identity but for the `nugget`. $L$ starts at zero, so untrained the kernel is
    the resampled one; at the anchor $M$ is always the identity. With parameters that name no map, $R$ is the identity
    throughout and only $L$ is left.

    A `Linear` that reads a flattened `(C, h, w)` map is a kernel with h·w taps; there a translation counts as well.

    Shapes:
        weight `(*S)` with $T$ taps, code `(*B, K)` -> `(*B, *S)`; $M$ is `(*B, T, T')`, $T' > T$ with `grow`.

    Args:
        prior: start from $R$; False starts from the identity.
        learn: have $L$ at all; False leaves the analytic prior alone, without a trainable number.
        grow: taps to add around kernels whose layer allows it; `"auto"` adds one where the tap positions are not
            symmetric about their centre (a strided layer on an even map), since a turn would leave the support: on
            the side that makes them symmetric, or on both where the layer can only be told of both.
        max_learned: slots with more taps than this get the prior only.
        max_taps: slots with more taps than this are left alone.
        length: correlation length, in pixels, of the image model behind $R$.
        nugget: variance, relative to the signal's, that the model gives to noise.

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

    def _has_prior(self, slot: Slot, space: ParameterSpace | None) -> bool:
        if not self.prior or space is None or not space.affine_names:
            return False
        return slot.spatial > 1 or set(space.affine_names) <= affine.SEPARABLE

    def wants(self, slot: Slot, space: ParameterSpace) -> bool:
        learned = self.learn and slot.n_taps <= self.max_learned
        return 1 < slot.n_taps <= self.max_taps and (learned or self._has_prior(slot, space))

    def setup(self, slot: Slot, code_dim: int) -> None:
        if slot.n_taps < 2:
            raise TransformError(
                f"layer {slot.layer or slot.name!r}: Warp moves a kernel's taps and weight {slot.shape} has one; "
                "give it a convolution, or a Linear that reads a flattened map (condition's example= finds those)"
            )
        wanted = slot.growable and self._has_prior(slot, self.space)
        self.more = slot.sides(self._extra(slot)) if wanted else ()
        # Where each tap of W(θ) lies is known from the slot; the equations' constants are no buffer, for a model in
        # float32 still needs them in float64.
        self.resampler = self._resampler(slot)
        # What `fit` decides when it compares the prior with the identity; kept with the transform.
        self.register_buffer("trust", torch.tensor(1.0 if self._has_prior(slot, self.space) else 0.0))
        learned = self.learn and slot.n_taps <= self.max_learned
        shape = slot.n_taps, math.prod(slot.grown(self.more))
        self.taps = nn.Parameter(torch.zeros(code_dim, *shape)) if learned else None
        self.geometry = self._shape()

    def _extra(self, slot: Slot) -> list[int]:
        """How many taps to add along each axis."""
        if self.grow != "auto":
            return [2 * self.grow] * slot.spatial
        lean = [abs(places[0] + places[-1]) for places in slot.taps]  # twice the way from their centre
        if max(lean) < 1e-6:
            return [0] * slot.spatial
        spacing = [places[1] - places[0] if len(places) > 1 else 1.0 for places in slot.taps]
        if not slot.one_sided:
            return [2] * slot.spatial
        half = [abs(off - step) < 1e-6 for off, step in zip(lean, spacing, strict=True)]
        # What is in front of a volume's planes does not turn.
        return [0 if axis < slot.spatial - 2 else 1 if half[axis] else 2 for axis in range(slot.spatial)]

    def _resampler(self, slot: Slot) -> Resampler | None:
        if self.space is None or not self._has_prior(slot, self.space):
            return None
        moves = slot.fixed and not affine.TRANSLATIONS.isdisjoint(self.space.affine_names)
        shift = 1 / slot.pixel if moves else None
        isometric = set(self.space.affine_names) <= affine.ISOMETRIES
        return Resampler(slot.positions(), slot.positions(self.more), self.length, self.nugget, shift, isometric)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        built: Warp = self
        if getattr(built, "resampler", None) is not None:
            assert built.resampler is not None
            built.resampler = built.resampler.to(built.get_buffer("trust"))
        return self

    def resampled(self, code: Tensor) -> Tensor:
        """The analytic prior R(θ): `(*B, K) -> (*B, T, T')`."""
        assert self.space is not None and self.resampler is not None
        return self.resampler(self.space.plane(code))

    def carrier(self, code: Tensor) -> Tensor:
        return self.carriers([self], code)[0]

    def term(self, weight: Tensor, carrier: Tensor) -> TapMix:
        return TapMix(self.slot, weight, carrier, self.more)

    def _shape(self) -> Hashable:
        """What R and the size of L depend on."""
        r = self.resampler
        places = (r.length, r.nugget, r.shift, self.slot.taps) if r is not None else None
        return places, self.slot.kernel, self.more, self.taps is None

    def alike(self) -> Hashable:
        return self.geometry

    @classmethod
    def carriers(cls, members: Sequence[Warp], code: Tensor) -> Sequence[Tensor]:
        home = members[0].home(code)
        return anchored(members[0]._mixes(members, code, home), code, home, lead=1).unbind()

    def _mixes(self, alike: Sequence[Warp], code: Tensor, home: Tensor) -> Tensor:
        """M(θ) - 1 of slots whose taps lie alike, R being made once: `(S, *B, T, T')`."""
        batch = code.shape[:-1]
        if self.resampler is None and self.taps is None:
            return code.new_zeros(len(alike), *batch, self.slot.n_taps, math.prod(self.slot.grown(self.more)))
        mix: Tensor | None = None
        if self.resampler is not None:
            assert self.space is not None
            trust = torch.stack([m.get_buffer("trust") for m in alike]).to(code.dtype)
            moved = self.resampler.change(self.space.plane(code))
            mix = moved * trust.reshape(-1, *(1,) * moved.dim())
        if self.taps is not None:
            learned = torch.stack([m.taps for m in alike if m.taps is not None], 1)
            by_code = torch.tensordot(code - home, learned, 1).movedim(-3, 0)
            mix = by_code if mix is None else mix + by_code
        assert mix is not None
        return mix

    def config(self) -> dict[str, Any]:
        return {
            "type": "Warp", "prior": self.prior, "learn": self.learn, "grow": self.grow,
            "max_learned": self.max_learned, "max_taps": self.max_taps, "length": self.length, "nugget": self.nugget,
        }  # fmt: skip

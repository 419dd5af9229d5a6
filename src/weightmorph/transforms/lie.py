"""Tap mixing by a one-parameter group."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TransformError
from ..parameters import ParameterSpace
from ..slots import Slot
from ..terms import TapMix
from .base import CoefficientTransform, zero_at_anchor

__all__ = ["Lie"]


class Lie(CoefficientTransform):
    r"""Mix each filter's taps by the exponential of a learned generator, so that settings compose.

    $$W(\theta) = W \exp\Big(\sum_p u_p(\theta) A_p\Big)$$

    $u_p$ is the coordinate in which parameter $p$ adds, zero at the anchor: radians for an angle (its principal
    value, from $-\pi$ to $\pi$), the difference to the anchor for an interval, the logarithm of the ratio for a
    LogInterval. With one parameter $W(a + b)$ is $W(a)$ transformed by $b$, as far as $a + b$ stays within the
    principal range. $A$ starts at zero.

    Shapes:
        weight `(*S)` with $T$ taps, code `(*B, K)` -> `(*B, *S)`; $A$ is `(P, T, T)`.

    Args:
        max_taps: slots with more taps than this are left alone (a `Linear` over a 16×16 map has 256).

    Raises:
        TransformError: if a weight with a single tap is asked for by name.

    References:
        Hall, "Lie Groups, Lie Algebras, and Representations", 2nd edition, 2015, chapter 2.

    Example:
        >>> from weightmorph import Angle, ParameterSpace
        >>> t = Lie().build((6, 3, 3, 3), space=ParameterSpace({"angle": Angle("deg", harmonics=2)}))
        >>> t(torch.zeros(6, 3, 3, 3), torch.ones(5, 4)).dense().shape
        torch.Size([5, 6, 3, 3, 3])
    """

    family = "lie"

    def __init__(self, max_taps: int = 64) -> None:
        super().__init__()
        self.max_taps = max_taps

    def wants(self, slot: Slot, space: ParameterSpace) -> bool:
        return 1 < slot.n_taps <= self.max_taps

    def setup(self, slot: Slot, code_dim: int) -> None:
        if slot.n_taps < 2:
            raise TransformError(
                f"layer {slot.layer or slot.name!r}: Lie mixes a kernel's taps and weight {slot.shape} has one; "
                "give it a convolution, or a Linear that reads a flattened map"
            )
        coordinates = len(self.space) if self.space is not None else code_dim
        self.generator = nn.Parameter(torch.zeros(coordinates, slot.n_taps, slot.n_taps))

    def coefficient(self, code: Tensor) -> Tensor:
        return self.coefficients([self], code)[0]

    def term(self, weight: Tensor, coefficient: Tensor) -> TapMix:
        return TapMix(self.slot, weight, coefficient)

    def batch_key(self) -> Hashable:
        return self.slot.n_taps

    @classmethod
    def coefficients(cls, members: Sequence[Lie], code: Tensor) -> Sequence[Tensor]:
        first = members[0]
        anchor = first.anchor_code(code)
        u = first.space.coordinates(code) if first.space is not None else code - anchor
        exponent = torch.tensordot(u, torch.stack([m.generator for m in members], 1), 1).movedim(-3, 0)
        one = torch.eye(first.slot.n_taps, dtype=code.dtype, device=code.device)
        return zero_at_anchor(exponential(exponent) - one, code, anchor, lead=1).unbind()

    def config(self) -> dict[str, Any]:
        return {"type": "Lie", "max_taps": self.max_taps}


def exponential(matrix: Tensor) -> Tensor:
    r"""The matrix exponential: `(*B, n, n) -> (*B, n, n)`.

    While exporting it is written out in products, because the exchange formats have no such operator: a Taylor
    polynomial of $X / 2^s$, squared s times. The polynomial's order and s are fixed, because a graph cannot look at its
    values; in float64 they give float32's digits up to $\lVert X \rVert = 100$, where $e^X$ has long ceased to be a
    weight.

    Example:
        >>> exponential(torch.zeros(2, 2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if not torch.compiler.is_exporting():
        known: Tensor = torch.linalg.matrix_exp(matrix.contiguous())
        return known
    squarings, order = 10, 8
    n = matrix.shape[-1]
    # One batch axis and bmm: `@` on a symbolic batch traces to four operations.
    small = matrix.to(torch.float64).reshape(-1, n, n) / 2**squarings
    one = torch.eye(n, dtype=small.dtype, device=small.device)
    value: Tensor = one + small / order
    for k in range(order - 1, 0, -1):
        value = one + torch.bmm(small / k, value)
    for _ in range(squarings):
        value = torch.bmm(value, value)
    return value.reshape(matrix.shape).to(matrix.dtype)

r"""How the taps of a kernel move under an affine map: the best linear guess under a model of images.

A filter reads the image $x$ at its taps $p_t$. The transformed image shows at $q$ what the original showed at
$A^{-1} q$, so the taps of the transformed filter read the original at the *sites* $s_{t'} = A^{-1} p_{t'}$. The new
filter should answer as the old one did: it needs the values at $p_t$ and has those at the sites. Ordinary kriging is
the best linear unbiased prediction of the ones from the others under a stationary model of images:

$$x(p_t) \approx \sum_{t'} R_{t,t'}\, x(s_{t'}), \qquad \sum_{t'} R_{t,t'} = 1, \qquad W' = W R$$

The row sums keep the response to a constant. Where sites coincide with taps (a quarter turn) it is exact. Sites that
are far apart (zooming out) are interpolated between and sites that are close together (zooming in) are averaged over,
each as the model says, so that nothing aliases; a larger support has more sites and comes closer.

References:
    Cressie, "Statistics for Spatial Data", 1993, section 3.2 (ordinary kriging).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..affine import inverse

__all__ = ["Resampler", "solve"]


def covariance(distance2: Tensor, length: float) -> Tensor:
    """How alike two pixels are whose squared distance is `distance2`: Matérn with smoothness 3/2."""
    if distance2.requires_grad:
        scaled = (distance2.clamp_min(1e-12) * (3.0 / length**2)).sqrt()
        return (1 + scaled) * torch.exp(-scaled)
    # The same in place: for the taps of a flattened map this is the dearest step of the whole code side.
    scaled = distance2.clamp_min(1e-12).mul_(3.0 / length**2).sqrt_()
    fall = scaled.neg().exp_()
    return scaled.add_(1).mul_(fall)


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Written out as |a|² + |b|² - 2ab: one product in place of a difference for every pair and axis."""
    lengths = a.square().sum(-1, keepdim=True) + b.square().sum(-1).unsqueeze(-2)
    return lengths - 2 * (a @ b.transpose(-1, -2))


@dataclass(frozen=True)
class Resampler:
    """The matrix R for taps at given positions: map `(*B, 2, 3)` -> `(*B, T, T')`.

    The map acts on the last two axes of a position; one-dimensional taps lie on the x axis, and the depth of a volume
    stays. Under an isometry the distances among the sites never change, so the equations are solved once, here.

    Args:
        sources: where the taps of W lie, `(T, n)`.
        targets: where those of W(θ) do, `(T', n)`.
        length: correlation length of the image model.
        nugget: variance of its noise.
        shift: how many taps one pixel of the map's translation moves a position by, None for none.
        isometric: every map keeps distances.
    """

    sources: Tensor
    targets: Tensor
    length: float
    nugget: float
    shift: float | None = None
    isometric: bool = False
    solved: tuple[Tensor, Tensor] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.isometric:
            among = self._among(self.targets)
            one = torch.ones_like(among[:, :1])
            unit = torch.linalg.solve(among, one)
            share = unit / unit.sum()
            # What R is, written out: K⁻¹ - u uᵀ/Σu on the covariances, and u/Σu.
            projected = torch.linalg.inv(among) - share * unit.T
            object.__setattr__(self, "solved", (projected, share))

    def to(self, like: Tensor) -> Resampler:
        """On another device; in float64 wherever there is one.

        Sites that lie close together (zooming in) make the equations sensitive: float32 keeps three digits, and
        another runtime's exp or solver would show.
        """
        dtype = torch.float32 if like.device.type == "mps" else torch.float64
        if self.sources.device == like.device and self.sources.dtype == dtype:
            return self
        sources, targets = self.sources.to(like.device, dtype), self.targets.to(like.device, dtype)
        return Resampler(sources, targets, self.length, self.nugget, self.shift, self.isometric)

    def _among(self, sites: Tensor) -> Tensor:
        among = covariance(_squared_distance(sites, sites), self.length)
        return among + self.nugget * torch.eye(among.shape[-1], dtype=among.dtype, device=among.device)

    def __call__(self, plane: Tensor) -> Tensor:
        """R under a map, in the map's own type."""
        sites, sources = self._sites(plane.to(self.sources.dtype))
        across = covariance(_squared_distance(sites, sources), self.length)
        if self.solved is not None:
            projected, share = self.solved
            return (projected @ across + share).transpose(-1, -2).to(plane.dtype)
        ones = torch.ones_like(across[..., :1])
        solved = solve(self._among(sites), torch.cat((across, ones), -1), self.nugget)
        weights, unit = solved[..., :-1], solved[..., -1:]
        # The Lagrange multiplier of the constraint: what is missing to one is spread as `unit` says.
        missing = 1 - weights.sum(-2, keepdim=True)
        return (weights + unit * (missing / unit.sum(-2, keepdim=True))).transpose(-1, -2).to(plane.dtype)

    def _sites(self, plane: Tensor) -> tuple[Tensor, Tensor]:
        """Where the map brings the targets from, and the sources, with as many coordinates."""
        back = inverse(plane)
        moved, sources = self.targets, self.sources
        if moved.shape[-1] == 1:
            moved = torch.cat((torch.zeros_like(moved), moved), -1)
            sources = torch.cat((torch.zeros_like(sources), sources), -1)
        depth, yx = moved[:, :-2], moved[:, -2:]
        sites = yx.flip(-1) @ back[..., :2].transpose(-1, -2)
        if self.shift is not None:
            sites = sites + back[..., 2].unsqueeze(-2) * self.shift
        return torch.cat((depth.expand(*sites.shape[:-1], depth.shape[-1]), sites.flip(-1)), -1), sources


def solve(matrix: Tensor, right: Tensor, smallest: float) -> Tensor:
    r"""`matrix⁻¹ right` for a symmetric positive definite `(*B, n, n)` with a unit diagonal, up to `smallest`.

    While exporting, the inverse is found by Newton's iteration $X \leftarrow X (2I - A X)$, for the exchange formats
    know no linear solver. No eigenvalue of A exceeds n and none is below `smallest`, which bounds the steps.
    """
    if not torch.compiler.is_exporting():
        solved: Tensor = torch.linalg.solve(matrix, right)
        return solved
    n = matrix.shape[-1]
    # One batch axis and bmm, for `@` on a symbolic batch traces to four operations in place of one.
    a, b = matrix.reshape(-1, n, n), right.reshape(-1, n, right.shape[-1])
    one = torch.eye(n, dtype=a.dtype, device=a.device)
    twice = 2 * one
    # The error starts at 1 - smallest / n, and every step squares it.
    steps = math.ceil(math.log2(n / max(smallest, 1e-9))) + 6
    inverse_ = one / a.abs().sum(-1, keepdim=True).amax(-2, keepdim=True)
    for _ in range(steps):
        inverse_ = torch.bmm(inverse_, twice - torch.bmm(a, inverse_))
    guess = torch.bmm(inverse_, b)
    return (guess + torch.bmm(inverse_, b - torch.bmm(a, guess))).reshape(right.shape)

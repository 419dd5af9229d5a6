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

import torch
from torch import Tensor

from ..affine import inverse

__all__ = ["resampling", "solve"]


def covariance(distance2: Tensor, length: float) -> Tensor:
    """How alike two pixels are whose squared distance is `distance2`: Matérn with smoothness 3/2."""
    scaled = (distance2.clamp_min(1e-12) * (3.0 / length**2)).sqrt()
    return (1 + scaled) * torch.exp(-scaled)


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)


def resampling(
    sources: Tensor, targets: Tensor, plane: Tensor, length: float, nugget: float, shift: float | None = None
) -> Tensor:
    """The matrix R: positions `(T, n)` and `(T', n)`, map `(*B, 2, 3)` -> `(*B, T, T')`.

    The map acts on the last two axes of a position; one-dimensional taps lie on the x axis, and the depth of a
    volume stays. `shift` is how many taps one pixel of the map's translation moves a position by, None for none.
    """
    dtype = plane.dtype
    if plane.device.type != "mps":
        # Sites that lie close together (zooming in) make the equations sensitive: float32 keeps three digits, and
        # another runtime's exp or solver would show.
        sources, targets, plane = sources.to(torch.float64), targets.to(torch.float64), plane.to(torch.float64)
    back = inverse(plane)
    n = targets.shape[-1]
    moved = targets
    if n == 1:
        moved = torch.cat((torch.zeros_like(targets), targets), -1)
        sources = torch.cat((torch.zeros_like(sources), sources), -1)
    depth, yx = moved[:, :-2], moved[:, -2:]
    xy = yx.flip(-1)
    sites = xy @ back[..., :2].transpose(-1, -2)
    if shift is not None:
        sites = sites + back[..., 2].unsqueeze(-2) * shift
    sites = torch.cat((depth.expand(*sites.shape[:-1], depth.shape[-1]), sites.flip(-1)), -1)
    among = covariance(_squared_distance(sites, sites), length)
    among = among + nugget * torch.eye(among.shape[-1], dtype=among.dtype, device=among.device)
    across = covariance(_squared_distance(sites, sources), length)
    ones = torch.ones_like(across[..., :1])
    solved = solve(among, torch.cat((across, ones), -1), nugget)
    weights, unit = solved[..., :-1], solved[..., -1:]
    # The Lagrange multiplier of the constraint: what is missing to one is spread as `unit` says.
    missing = 1 - weights.sum(-2, keepdim=True)
    return (weights + unit * (missing / unit.sum(-2, keepdim=True))).transpose(-1, -2).to(dtype)


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

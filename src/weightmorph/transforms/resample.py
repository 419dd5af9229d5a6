r"""How the taps of a kernel move under an affine map: the best linear guess under a model of images.

A filter reads the image $x$ at its taps $p_t$. The transformed image shows at $q$ what the original showed at
$A^{-1} q$, so the taps of the transformed filter read the original at the *sites* $s_{t'} = A^{-1} p_{t'}$. The new
filter should answer as the old one did: it needs the values at the taps and has those at the sites. Ordinary kriging is
the best linear unbiased prediction of the former from the latter under a stationary model of images:

$$x(p_t) \approx \sum_{t'} R_{t,t'}\, x(s_{t'}), \qquad \sum_{t'} R_{t,t'} = 1, \qquad W' = W R$$

The row sums keep the response to a constant. Where sites coincide with taps (a quarter turn) the prediction is exact.
The model interpolates between sites that are far apart (zooming out) and averages over sites that are close to each
other (zooming in), so that nothing aliases. A larger support has more sites and predicts better.

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


def covariance(squared: Tensor) -> Tensor:
    r"""Matérn-3/2 covariance of two pixels at distance $d$: $(1 + s)\,e^{-s}$ with $s^2 = 3 d^2 / \ell^2$.

    Args:
        squared: $s^2$. It is overwritten unless it requires a gradient.
    """
    if squared.requires_grad:
        scaled = squared.clamp_min(1e-12).sqrt()
        return (1 + scaled) * torch.exp(-scaled)
    # In place: for the taps of a flattened map this is the most expensive step of the coefficient.
    minus = squared.clamp_min_(1e-12).sqrt_().neg_()
    fall = minus.exp()
    return fall.addcmul_(minus, fall, value=-1)


@dataclass(frozen=True)
class Resampler:
    """The matrix R for taps at given positions: map `(*B, 2, 3)` -> `(*B, T, T')`.

    The map acts on the last two axes of a position; one-dimensional taps lie on the x axis, and the depth of a volume
    stays. Under an isometry the distances between the sites never change, so the equations are solved once, here.

    Args:
        sources: positions of the taps of W, `(T, n)`.
        targets: positions of the taps of W(θ), `(T', n)`.
        length: correlation length of the image model.
        nugget: variance of its noise.
        shift: how many taps one pixel of the map's translation moves a position by, None for none.
        isometric: every map keeps distances.

    Example:
        >>> from weightmorph.affine import rotation
        >>> from weightmorph.slots import Slot
        >>> taps = Slot.of((1, 1, 1, 2)).positions()
        >>> half_turn = rotation(torch.tensor(torch.pi, dtype=torch.float64))
        >>> Resampler(taps, taps, length=2.0, nugget=0.0)(half_turn).round().abs().tolist()  # the taps change places
        [[0.0, 1.0], [1.0, 0.0]]
    """

    sources: Tensor
    targets: Tensor
    length: float
    nugget: float
    shift: float | None = None
    isometric: bool = False
    flat: Tensor = field(init=False)
    depth: Tensor = field(init=False)
    known: tuple[Tensor, Tensor] = field(init=False)
    solved: tuple[Tensor, Tensor] | None = field(init=False, default=None)
    rest: Tensor = field(init=False)
    start: Tensor | None = field(init=False, default=None)
    turned: tuple[Tensor, Tensor] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        # In the unit of length in which the covariance has no constants.
        sources, targets = (_in_space(v) * (math.sqrt(3.0) / self.length) for v in (self.sources, self.targets))
        put("flat", targets[:, :2])
        put("depth", targets[:, 2:])
        put("known", (sources, sources.square().sum(-1, keepdim=True)))
        if self.isometric and self.shift is None:
            # |p|² + |t|² - 2 p·Aᵀt is linear in the four numbers of A, and the depths stay.
            lengths = sources.square().sum(-1, keepdim=True) + targets.square().sum(-1)
            still = lengths - 2 * sources[:, 2:] @ targets[:, 2:].T
            products = -2 * torch.einsum("ib,ja->abij", sources[:, :2], targets[:, :2])
            put("turned", (still, products.reshape(4, -1)))
        if self.isometric:
            among = self._among(targets)
            one = torch.ones_like(among[:, :1])
            unit = torch.linalg.solve(among, one)
            share = unit / unit.sum()
            # What R is, written out: K⁻¹ - u uᵀ/Σu on the covariances, and u/Σu.
            projected = torch.linalg.inv(among) - share * unit.T
            put("solved", (projected, share.T))
        put("rest", self(torch.eye(2, 3, dtype=targets.dtype, device=targets.device)))
        if self.solved is not None:
            put("start", self.solved[1] - self.rest)

    def to(self, like: Tensor) -> Resampler:
        """On another device; in float64 wherever there is one.

        Sites that are close to each other (zooming in) make the equations sensitive: float32 keeps three digits, and
        another runtime's exp or solver would show.
        """
        dtype = torch.float32 if like.device.type == "mps" else torch.float64
        if self.sources.device == like.device and self.sources.dtype == dtype:
            return self
        sources, targets = self.sources.to(like.device, dtype), self.targets.to(like.device, dtype)
        return Resampler(sources, targets, self.length, self.nugget, self.shift, self.isometric)

    def _among(self, sites: Tensor) -> Tensor:
        """Covariance of every site with every site, noise included: `(*B, T', T')`."""
        lengths = sites.square().sum(-1, keepdim=True)
        squared = lengths + lengths.transpose(-1, -2) - 2 * (sites @ sites.transpose(-1, -2))
        among = covariance(squared)
        return among + self.nugget * torch.eye(among.shape[-1], dtype=among.dtype, device=among.device)

    def __call__(self, plane: Tensor) -> Tensor:
        """R under a map, in the map's own type."""
        return self._solve(plane, None if self.solved is None else self.solved[1]).to(plane.dtype)

    def change(self, plane: Tensor) -> Tensor:
        """R under a map, less R where nothing moves: the same shape."""
        if self.start is None:
            return (self._solve(plane, None) - self.rest).to(plane.dtype)
        return self._solve(plane, self.start).to(plane.dtype)

    def _solve(self, plane: Tensor, start: Tensor | None) -> Tensor:
        """R under a map; `start` is its constant part where the equations were solved once."""
        rows = plane.to(self.flat.dtype).reshape(-1, 2, 3)
        across = covariance(self._squared(rows))
        if self.solved is not None:
            assert start is not None
            result = (across.flatten(0, 1) @ self.solved[0]).view_as(across).add_(start)
        else:
            ones = torch.ones_like(across[..., :1, :])
            right = torch.cat((across, ones), -2).transpose(-1, -2)
            solved = solve(self._among(self._sites(rows)), right, self.nugget)
            weights, unit = solved[..., :-1], solved[..., -1:]
            # The Lagrange multiplier of the constraint: the weights must add up to one.
            missing = 1 - weights.sum(-2, keepdim=True)
            result = (weights + unit * (missing / unit.sum(-2, keepdim=True))).transpose(-1, -2)
        return result.reshape(*plane.shape[:-2], *result.shape[1:])

    def _squared(self, plane: Tensor) -> Tensor:
        """Squared distance from every source to every site: `(B, T, T')`."""
        if self.turned is not None:
            still, products = self.turned
            return torch.addmm(still.reshape(1, -1), plane[..., :2].reshape(-1, 4), products).reshape(-1, *still.shape)
        sites, (sources, lengths) = self._sites(plane), self.known
        # |p|² + |s|² - 2ps: one product in place of a difference for every pair and axis.
        both = lengths + sites.square().sum(-1).unsqueeze(1)
        return both - 2 * (sources @ sites.transpose(1, 2))

    def _sites(self, plane: Tensor) -> Tensor:
        """The sites: where the original shows what the transformed image shows at the targets, `(B, T', n)`."""
        scale = math.sqrt(3.0) / self.length
        if self.isometric:
            turn = plane[..., :2]  # the transpose of an orthogonal matrix is its inverse
            sites = self.flat @ turn
            if self.shift is not None:
                sites = sites - (plane[..., 2].unsqueeze(-2) @ turn) * (self.shift * scale)
        else:
            back = inverse(plane)
            sites = self.flat @ back[..., :2].transpose(-1, -2)
            if self.shift is not None:
                sites = sites + back[..., 2].unsqueeze(-2) * (self.shift * scale)
        if self.depth.shape[-1]:
            sites = torch.cat((sites, self.depth.expand(*sites.shape[:-1], self.depth.shape[-1])), -1)
        return sites


def _in_space(positions: Tensor) -> Tensor:
    """Positions with x in the last column, as columns x, y and the rest; one-dimensional ones lie on the x axis."""
    if positions.shape[-1] == 1:
        return torch.cat((positions, torch.zeros_like(positions)), -1)
    return torch.cat((positions[:, -2:].flip(-1), positions[:, :-2]), -1)


def solve(matrix: Tensor, right: Tensor, smallest: float) -> Tensor:
    r"""`matrix⁻¹ right` for a symmetric positive definite `(*B, n, n)` with a unit diagonal, up to `smallest`.

    While exporting, the inverse is found by Newton's iteration $X \leftarrow X (2I - A X)$, because the exchange
    formats have no linear solver. No eigenvalue of A exceeds n and none is below `smallest`, which bounds the steps.

    Example:
        >>> solve(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([[1.5], [1.5]]), 0.1).round(decimals=3).tolist()
        [[1.0], [1.0]]
    """
    if not torch.compiler.is_exporting():
        solved: Tensor = torch.linalg.solve(matrix, right)
        return solved
    n = matrix.shape[-1]
    # One batch axis and bmm: `@` on a symbolic batch traces to four operations.
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

r"""Affine maps of the plane, batched and differentiable: what a parameter does to positions.

A map is a `(*B, 2, 3)` tensor $[A \mid t]$ that takes a position $p = (x, y)$ of the original image to the position
$A p + t$ at which the transformed image shows the same content. Positions are pixels, isotropic, measured from the
image's centre, x to the right and **y downwards**, as images are stored. A positive angle turns counter-clockwise as
seen on the screen, as in torchvision, Pillow and kornia; a zoom of 2 makes things twice as large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["ISOMETRIES", "MAPS", "NEUTRAL", "SEPARABLE", "TRANSLATIONS", "compose", "identity", "inverse"]


def _stack(a: Tensor, b: Tensor, tx: Tensor, c: Tensor, d: Tensor, ty: Tensor) -> Tensor:
    return torch.stack((torch.stack((a, b, tx), -1), torch.stack((c, d, ty), -1)), -2)


def identity(like: Tensor) -> Tensor:
    """The map that moves nothing, one per element of `like`: `(*B) -> (*B, 2, 3)`."""
    zero, one = torch.zeros_like(like), torch.ones_like(like)
    return _stack(one, zero, zero, zero, one, zero)


def rotation(radians: Tensor) -> Tensor:
    """Counter-clockwise on the screen (y points down): `(*B) -> (*B, 2, 3)`.

    Example:
        >>> rotation(torch.tensor(torch.pi / 2)).round().long().tolist()  # right (1, 0) goes up (0, -1)
        [[0, 1, 0], [-1, 0, 0]]
    """
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    return _stack(cos, sin, zero, -sin, cos, zero)


def zoom(factor: Tensor) -> Tensor:
    """Things become `factor` times as large: `(*B) -> (*B, 2, 3)`."""
    zero = torch.zeros_like(factor)
    return _stack(factor, zero, zero, zero, factor, zero)


def shear_x(amount: Tensor) -> Tensor:
    r"""Rows slide, $x' = x + \text{amount} \cdot y$: `(*B) -> (*B, 2, 3)`."""
    zero, one = torch.zeros_like(amount), torch.ones_like(amount)
    return _stack(one, amount, zero, zero, one, zero)


def shear_y(amount: Tensor) -> Tensor:
    r"""Columns slide, $y' = y + \text{amount} \cdot x$: `(*B) -> (*B, 2, 3)`."""
    zero, one = torch.zeros_like(amount), torch.ones_like(amount)
    return _stack(one, zero, zero, amount, one, zero)


def translate_x(pixels: Tensor) -> Tensor:
    """Content moves to the right: `(*B) -> (*B, 2, 3)`."""
    zero, one = torch.zeros_like(pixels), torch.ones_like(pixels)
    return _stack(one, zero, pixels, zero, one, zero)


def translate_y(pixels: Tensor) -> Tensor:
    """Content moves down: `(*B) -> (*B, 2, 3)`."""
    zero, one = torch.zeros_like(pixels), torch.ones_like(pixels)
    return _stack(one, zero, zero, zero, one, pixels)


def flip_x(index: Tensor) -> Tensor:
    """Mirror left to right where `index` is 1, move nothing where it is 0: `(*B) -> (*B, 2, 3)`."""
    zero, one = torch.zeros_like(index), torch.ones_like(index)
    return _stack(1 - 2 * index, zero, zero, zero, one, zero)


def flip_y(index: Tensor) -> Tensor:
    """Mirror top to bottom where `index` is 1, move nothing where it is 0: `(*B) -> (*B, 2, 3)`."""
    zero, one = torch.zeros_like(index), torch.ones_like(index)
    return _stack(one, zero, zero, zero, 1 - 2 * index, zero)


MAPS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "rotation": rotation,
    "zoom": zoom,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "flip_x": flip_x,
    "flip_y": flip_y,
}
"""The maps a parameter can name. Names, so that a saved space is plain data."""

NEUTRAL: Mapping[str, float] = {name: 1.0 if name == "zoom" else 0.0 for name in MAPS}
"""The value at which each of them moves nothing."""

SEPARABLE = frozenset({"zoom", "translate_x", "flip_x"})
"""Maps that also act on a one-dimensional signal, whose axis reads as x."""

TRANSLATIONS = frozenset({"translate_x", "translate_y"})
"""The maps that move the centre."""

ISOMETRIES = frozenset({"rotation", "translate_x", "translate_y", "flip_x", "flip_y"})
"""Maps that keep every distance."""


def compose(after: Tensor, before: Tensor) -> Tensor:
    """First `before`, then `after`: `(*B, 2, 3), (*B, 2, 3) -> (*B, 2, 3)`.

    Example:
        >>> quarter = rotation(torch.tensor(torch.pi / 2))
        >>> half = rotation(torch.tensor(torch.pi))
        >>> torch.allclose(compose(quarter, quarter), half, atol=1e-6)
        True
    """
    linear = after[..., :2] @ before[..., :2]
    shift = (after[..., :2] @ before[..., 2:]) + after[..., 2:]
    return torch.cat((linear, shift), -1)


def inverse(map_: Tensor) -> Tensor:
    """The map that undoes `map_`: `(*B, 2, 3) -> (*B, 2, 3)`.

    Written out rather than through `torch.linalg`, so that it exports.

    Example:
        >>> m = compose(zoom(torch.tensor(2.0)), translate_x(torch.tensor(3.0)))
        >>> torch.allclose(compose(inverse(m), m), identity(torch.tensor(0.0)))
        True
    """
    a, b, c, d = map_[..., 0, 0], map_[..., 0, 1], map_[..., 1, 0], map_[..., 1, 1]
    tx, ty = map_[..., 0, 2], map_[..., 1, 2]
    det = a * d - b * c
    ia, ib, ic, id_ = d / det, -b / det, -c / det, a / det
    return _stack(ia, ib, -(ia * tx + ib * ty), ic, id_, -(ic * tx + id_ * ty))

"""The arithmetic of the input transforms, as pure functions of tensors."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import affine as maps
from ..errors import InputError, near

__all__ = ["Mode", "PaddingMode", "gaussian_blur", "gaussian_kernel", "kernel_radius", "per_image", "pin", "resample"]

Mode = Literal["bilinear", "bicubic"]
"""Interpolation between pixels."""

PaddingMode = Literal["zeros", "border", "reflection"]
"""Values outside the image: zeros, its outermost pixels, or its mirror image about the outer edge of the pixels."""

MODES = ("bilinear", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection")

_SMALLEST_VARIANCE = 1e-4


def per_image(value: Tensor) -> Tensor:
    """θ with three axes added, so that it broadcasts to images: `()` or `(B,)` -> `(*B, 1, 1, 1)`."""
    return value[..., None, None, None]


def check_option(owner: str, option: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse an option that is not one of those known."""
    if value not in known:
        raise InputError(
            f"{owner}: {option} must be one of {', '.join(map(repr, known))}, got {value!r}{near(str(value), known)}"
        )


def pin(y: Tensor, x: Tensor, at: Tensor) -> Tensor:
    """The values of `x` where `at` holds and of `y` elsewhere, with the derivatives of `y` everywhere.

    A bare `torch.where(at, x, y)` would give θ no gradient at the anchor.

    Shapes:
        `y`, `x` `(B, C, H, W)`, `at` `()` or `(B,)` -> `(B, C, H, W)`.

    Example:
        >>> y = torch.full((1, 1, 1, 1), 1.01, requires_grad=True)
        >>> z = pin(y, torch.ones(1, 1, 1, 1), torch.tensor(True))
        >>> z.backward()
        >>> z.item(), y.grad.item()
        (1.0, 1.0)
    """
    # Exactly zero, with the derivative of -y; nan_to_num because inf - inf is not zero. It is subtracted and not added
    # because -0.0 - 0.0 keeps its sign and -0.0 + 0.0 does not.
    zero = (y.detach() - y).nan_to_num(0.0)
    return torch.where(per_image(at), x.detach() - zero, y)


def resample(
    x: Tensor,
    map_: Tensor,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    size: tuple[int, int] | None = None,
) -> Tensor:
    r"""Move an image by an affine map of the plane.

    $$y(q) = x(A^{-1}(q - t)), \qquad [A \mid t] = \text{map}$$

    $x$ is interpolated between its pixels. Positions are pixels from the image's centre, and a pixel is equally long in
    both directions: pixel $j$ of $W$ lies at $j - (W-1)/2$. (`grid_sample` with `align_corners=False` puts pixel $j$ at
    $(2j + 1)/W - 1$, so a position $p$ is the grid value $2p/W$.)

    Args:
        x: `(B, C, H, W)`.
        map_: `(2, 3)` for all images or `(B, 2, 3)`, in pixels; see [`weightmorph.affine`][].
        mode: `"bilinear"` or `"bicubic"`.
        padding_mode: values outside the image: `"zeros"`, `"border"` or `"reflection"`.
        size: height and width of the result, about the same centre; those of `x` unless given.

    Returns:
        `(B, C, *size)`, differentiable (once) in `x` and in `map_`.

    Example:
        >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> resample(x, maps.translate_x(torch.tensor(1.0))).round().long()[0, 0].tolist()
        [[0, 0, 1], [0, 3, 4], [0, 6, 7]]
    """
    check_option("resample", "mode", mode, MODES)
    check_option("resample", "padding_mode", padding_mode, PADDING_MODES)
    height, width = size if size is not None else (x.shape[-2], x.shape[-1])
    columns = torch.arange(width, device=x.device, dtype=map_.dtype) - (width - 1) / 2
    rows = torch.arange(height, device=x.device, dtype=map_.dtype) - (height - 1) / 2
    back = maps.inverse(map_)[..., None, None]
    # Sums and not a matrix product: exact for the identity, and in full precision on a GPU.
    px = back[..., 0, 0, :, :] * columns + back[..., 0, 1, :, :] * rows[:, None] + back[..., 0, 2, :, :]
    py = back[..., 1, 0, :, :] * columns + back[..., 1, 1, :, :] * rows[:, None] + back[..., 1, 2, :, :]
    grid = torch.stack((px * (2 / x.shape[-1]), py * (2 / x.shape[-2])), -1)
    grid = grid.expand(x.shape[0], height, width, 2)
    return F.grid_sample(x, grid.to(x.dtype), mode=mode, padding_mode=padding_mode, align_corners=False)


def kernel_radius(variance: float) -> int:
    """Radius in pixels of the kernel for a Gaussian of this variance: four standard deviations.

    Example:
        >>> kernel_radius(4.0)
        8
    """
    return math.ceil(4 * math.sqrt(variance))


def gaussian_kernel(variance: Tensor, radius: int) -> Tensor:
    r"""The taps of a sampled Gaussian, normalised to a sum of one.

    $$w_r = \frac{e^{-r^2 / 2v}}{\sum_s e^{-s^2 / 2v}}, \qquad r, s = -R \dots R$$

    At $v = 0$, and below, this is exactly the unit impulse.

    Args:
        variance: $v$ in px², `(*B)`. Not its root, whose derivative is infinite at zero.
        radius: $R$, in pixels.

    Returns:
        `(*B, 2R + 1)`.

    Example:
        >>> gaussian_kernel(torch.tensor([0.0, 1.0]), 1).round(decimals=3)
        tensor([[0.0000, 1.0000, 0.0000],
                [0.2740, 0.4520, 0.2740]])
    """
    offsets = torch.arange(-radius, radius + 1, device=variance.device, dtype=variance.dtype)
    # exp(-1 / 2e-4) is zero in every dtype, so the floor changes no value and prevents a division by zero.
    exponent = -(offsets**2) / (2 * variance.clamp(min=_SMALLEST_VARIANCE).unsqueeze(-1))
    weights = exponent.exp()
    return weights / weights.sum(-1, keepdim=True)


def _extend(x: Tensor, dim: int, radius: int, padding_mode: PaddingMode) -> Tensor:
    """Pad axis `dim` (2 or 3) by `radius` pixels at both ends; unlike in `F.pad`, the radius has no limit."""
    if padding_mode == "zeros":
        return F.pad(x, (0, 0, radius, radius) if dim == 2 else (radius, radius))
    n = x.shape[dim]
    index = torch.arange(-radius, n + radius, device=x.device)
    if padding_mode == "border":
        index = index.clamp(0, n - 1)
    else:
        index = index.remainder(2 * n)
        index = torch.where(index < n, index, 2 * n - 1 - index)
    return x.index_select(dim, index)


def gaussian_blur(x: Tensor, variance: Tensor, radius: int, padding_mode: PaddingMode = "reflection") -> Tensor:
    r"""Convolve images with a Gaussian, of one width for all or one per image.

    $$y_{ij} = \sum_{r,s=-R}^{R} w_r\, w_s\, x_{i-r,\,j-s}$$

    with $w$ from [`gaussian_kernel`][weightmorph.inputs.gaussian_kernel]. Rows and columns are convolved one after the
    other; images of different widths become the groups of one convolution. `"reflection"` keeps the mean of the image.

    Args:
        x: `(B, C, H, W)`.
        variance: square of the standard deviation, in px²: `()` or `(B,)`.
        radius: $R$, in pixels; it may be larger than the image.
        padding_mode: values outside the image: `"zeros"`, `"border"` or `"reflection"`.

    Returns:
        `(B, C, H, W)`.

    Example:
        >>> spike = torch.zeros(1, 1, 5, 5)
        >>> spike[..., 2, 2] = 1
        >>> gaussian_blur(spike, torch.tensor(1.0), 2)[0, 0, 2].round(decimals=3)
        tensor([0.0220, 0.0980, 0.1620, 0.0980, 0.0220])
    """
    check_option("gaussian_blur", "padding_mode", padding_mode, PADDING_MODES)
    if radius == 0 or x.numel() == 0:
        return x
    taps = gaussian_kernel(variance, radius).to(x.dtype)
    shape = x.shape
    if variance.dim():  # images become channels, with a kernel each
        x = x.transpose(0, 1)
        taps, groups = taps[:, None, :], shape[0]
    else:  # one kernel: channels become images
        x = x.reshape(-1, 1, *shape[2:])
        taps, groups = taps[None, None, :], 1
    x = F.conv2d(_extend(x, 2, radius, padding_mode), taps.unsqueeze(-1), groups=groups)
    x = F.conv2d(_extend(x, 3, radius, padding_mode), taps.unsqueeze(-2), groups=groups)
    return x.transpose(0, 1) if variance.dim() else x.reshape(shape)

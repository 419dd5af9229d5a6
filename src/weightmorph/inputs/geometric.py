"""Input transforms that move things: rotate, zoom, shear, translate, flip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import affine as maps
from ..errors import InputError, ParameterError
from ..parameters import Angle, Categorical, Interval, LogInterval, Parameter, ParameterSpace, Theta
from .base import InputTransform
from .functional import (
    MODES,
    PADDING_MODES,
    Mode,
    PaddingMode,
    check_option,
    gaussian_blur,
    kernel_radius,
    per_image,
    resample,
)

__all__ = ["Flip", "Rotate", "Shear", "Translate", "Zoom"]


class _Geometric(InputTransform):
    """A transform that resamples the image under the maps of its parameters, applied in order."""

    invertible = True
    _kinds: tuple[str, ...]  # the maps of weightmorph.affine that the parameters may name

    def __init__(
        self, parameters: Mapping[str, Parameter], mode: Mode = "bilinear", padding_mode: PaddingMode = "zeros"
    ) -> None:
        owner = type(self).__name__
        check_option(owner, "mode", mode, MODES)
        check_option(owner, "padding_mode", padding_mode, PADDING_MODES)
        space = ParameterSpace(parameters)
        for name, parameter in space.items():
            if parameter.affine not in self._kinds:
                raise ParameterError(
                    f"{owner}: parameter {name!r} must say which map of the plane it stands for: expected "
                    f"affine={' or '.join(map(repr, self._kinds))}, got affine={parameter.affine!r}; "
                    f"write {type(parameter).__name__}(..., affine={self._kinds[0]!r})"
                )
        if len(set(space.affine_names)) != len(space):
            raise ParameterError(
                f"{owner}: each map can be named by one parameter, got {', '.join(space.affine_names)}"
            )
        super().__init__(space)
        self.mode: Mode = mode
        self.padding_mode: PaddingMode = padding_mode

    def position_map(self, theta: Theta) -> Tensor:
        """The map of the plane that [`Warp`][weightmorph.Warp] reads from the same parameters: `(*B, 2, 3)`."""
        return self.parameters.plane(self.parameters.encode(theta))

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        """The image resampled under the map."""
        return self._resample(x, self.position_map(theta))

    def undo(self, x: Tensor, theta: Theta) -> Tensor:
        """The image resampled under the inverse map."""
        return self._resample(x, maps.inverse(self.position_map(theta)))

    def _resample(self, x: Tensor, map_: Tensor) -> Tensor:
        return resample(x, map_, self.mode, self.padding_mode)

    def _options(self) -> dict[str, object]:
        return {"mode": self.mode, "padding_mode": self.padding_mode}


def _pair(
    owner: str,
    names: Sequence[str],
    defaults: Sequence[Parameter],
    parameters: Mapping[str, Parameter] | None,
) -> Mapping[str, Parameter]:
    if parameters is not None:
        return parameters
    if isinstance(names, str) or len(names) != 2 or names[0] == names[1]:
        raise ParameterError(f"{owner}: expected names for two parameters, such as {('a', 'b')!r}, got {names!r}")
    return dict(zip(names, defaults, strict=True))


class Rotate(_Geometric):
    r"""Turn the image about its centre, counter-clockwise for positive angles, as torchvision, Pillow and kornia do.

    $$y(q) = x(R_\theta^{-1} q)$$

    Images that are not square are not stretched. On a square image a quarter turn is `torch.rot90(x, 1, (2, 3))`. The
    inverse turns by $-\theta$.

    Args:
        low: lowest angle, in degrees. With `low` and `high` the parameter is an [`Interval`][weightmorph.Interval],
            without them an [`Angle`][weightmorph.Angle]: the whole circle.
        high: highest angle, in degrees.
        name: the parameter's name.
        parameter: the parameter, in place of `low` and `high`; with `affine="rotation"`.
        mode: interpolation, `"bilinear"` or `"bicubic"`.
        padding_mode: values outside the image: `"zeros"`, `"border"` or `"reflection"`.

    Shapes:
        x `(B, C, H, W)`, θ `()` or `(B,)` -> `(B, C, H, W)`.

    Raises:
        ParameterError: if the parameter does not name the rotation, or only one of `low` and `high` is given.
        InputError: if `mode` or `padding_mode` is unknown.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> Rotate()(x, angle=90).round().long()[0, 0].tolist()
        [[2, 4], [1, 3]]
    """

    _kinds = ("rotation",)

    def __init__(
        self,
        low: float | None = None,
        high: float | None = None,
        *,
        name: str = "angle",
        parameter: Parameter | None = None,
        mode: Mode = "bilinear",
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        if parameter is None:
            if low is not None and high is not None:
                parameter = Interval(low, high, unit="deg", affine="rotation")
            elif low is None and high is None:
                parameter = Angle("deg")
            else:
                raise ParameterError(
                    f"Rotate: expected both low and high, or neither for the whole circle; got low={low!r}, "
                    f"high={high!r}"
                )
        super().__init__({name: parameter}, mode, padding_mode)


class Zoom(_Geometric):
    r"""Magnify the image θ times about its centre.

    $$y(q) = (G_v * x)(q / \theta), \qquad v = \tfrac14 \max(\theta^{-2} - 1,\ 0)\ \text{px}^2$$

    Shrinking would alias, so each image is first blurred with a Gaussian of variance $v$ that depends on its own θ: an
    image with a blur of half a pixel has one of half a pixel again after it has shrunk. Zooming out twice takes the
    same blur as zooming out once by the product. The end of the range fixes the kernel's radius. The inverse zooms by
    $1/\theta$ with the same blur.

    Args:
        low: smallest factor, above 0.
        high: largest factor.
        name: the parameter's name.
        parameter: the parameter, in place of `LogInterval(low, high, anchor=1, affine="zoom")`; `low` and `high` are
            then ignored.
        mode: interpolation, `"bilinear"` or `"bicubic"`.
        padding_mode: values outside the image: `"zeros"`, `"border"` or `"reflection"`.

    Shapes:
        x `(B, C, H, W)`, θ `()` or `(B,)` -> `(B, C, H, W)`.

    Raises:
        ParameterError: if the parameter's range holds factors of 0 or below, or it does not name the zoom.
        InputError: if `mode` or `padding_mode` is unknown.

    References:
        Lowe, "Distinctive Image Features from Scale-Invariant Keypoints", IJCV 2004, section 3.3, for the half pixel.

    Example:
        >>> x = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
        >>> Zoom(padding_mode="border")(x, zoom=2.0)[0, 0, 0].tolist()
        [0.75, 1.25, 1.75, 2.25]
    """

    _kinds = ("zoom",)

    def __init__(
        self,
        low: float = 0.5,
        high: float = 2.0,
        *,
        name: str = "zoom",
        parameter: Parameter | None = None,
        mode: Mode = "bilinear",
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        parameter = LogInterval(low, high, anchor=1.0, affine="zoom") if parameter is None else parameter
        super().__init__({name: parameter}, mode, padding_mode)
        bounds = parameter.bounds
        if bounds is None or not bounds[0] > 0:
            raise ParameterError(
                f"Zoom: expected a parameter whose range lies above 0, such as LogInterval(0.5, 2.0, affine='zoom'), "
                f"got {parameter!r}"
            )
        least = min(bounds[0] / parameter.anchor_value, parameter.anchor_value / bounds[1])
        self.radius = kernel_radius(max(least**-2 - 1, 0.0) / 4)

    def _resample(self, x: Tensor, map_: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        variance = (map_[..., 0, 0] ** -2 - 1).clamp(min=0) / 4
        if self.padding_mode == "zeros":
            # The blur spills over the edge; without the margin an image would lose it there and darken.
            x = F.pad(x, (self.radius,) * 4)
        return resample(
            gaussian_blur(x, variance, self.radius, self.padding_mode), map_, self.mode, self.padding_mode, size
        )


class Shear(_Geometric):
    r"""Slide rows, then columns, in proportion to their distance from the centre.

    $$x' = x + \theta_x\, y, \qquad y' = y + \theta_y\, x'$$

    in pixels from the centre, y downwards. The inverse undoes the columns first.

    Args:
        low: lowest amount of either, in pixels per pixel.
        high: highest amount of either.
        names: the parameters' names.
        parameters: name to parameter, in place of `low`, `high` and `names`: one or two, in the order in which they
            act, with `affine="shear_x"` and `affine="shear_y"`.
        mode: interpolation, `"bilinear"` or `"bicubic"`.
        padding_mode: values outside the image: `"zeros"`, `"border"` or `"reflection"`.

    Shapes:
        x `(B, C, H, W)`, each θ `()` or `(B,)` -> `(B, C, H, W)`.

    Raises:
        ParameterError: if a parameter does not name a shear, or both name the same one.
        InputError: if `mode` or `padding_mode` is unknown.

    Example:
        >>> Shear().affine(shear_x=0.5, shear_y=0.0).tolist()
        [[1.0, 0.5, 0.0], [0.0, 1.0, 0.0]]
    """

    _kinds = ("shear_x", "shear_y")

    def __init__(
        self,
        low: float = -0.5,
        high: float = 0.5,
        *,
        names: Sequence[str] = ("shear_x", "shear_y"),
        parameters: Mapping[str, Parameter] | None = None,
        mode: Mode = "bilinear",
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        defaults = [Interval(low, high, affine=kind) for kind in self._kinds] if parameters is None else []
        super().__init__(_pair("Shear", names, defaults, parameters), mode, padding_mode)


class Translate(_Geometric):
    r"""Move the image's content to the right and down.

    $$y(q) = x(q - (\theta_x, \theta_y))$$

    The inverse moves it back; content that left the frame is lost.

    Args:
        low: lowest shift in either direction, in px.
        high: highest shift in either direction, in px.
        names: the parameters' names, the shift to the right first.
        parameters: name to parameter, in place of `low`, `high` and `names`: one or two, with
            `affine="translate_x"` and `affine="translate_y"`.
        mode: interpolation, `"bilinear"` or `"bicubic"`.
        padding_mode: values outside the image: `"zeros"`, `"border"` or `"reflection"`.

    Shapes:
        x `(B, C, H, W)`, each θ `()` or `(B,)` -> `(B, C, H, W)`.

    Raises:
        ParameterError: if a parameter does not name a translation, or both name the same one.
        InputError: if `mode` or `padding_mode` is unknown.

    Example:
        >>> Translate()(torch.tensor([[[[1.0, 2.0, 3.0]]]]), dx=1, dy=0).round().long()[0, 0].tolist()
        [[0, 1, 2]]
    """

    _kinds = ("translate_x", "translate_y")

    def __init__(
        self,
        low: float = -4.0,
        high: float = 4.0,
        *,
        names: Sequence[str] = ("dx", "dy"),
        parameters: Mapping[str, Parameter] | None = None,
        mode: Mode = "bilinear",
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        defaults = [Interval(low, high, unit="px", affine=kind) for kind in self._kinds] if parameters is None else []
        super().__init__(_pair("Translate", names, defaults, parameters), mode, padding_mode)


class Flip(_Geometric):
    r"""Mirror the image where θ is not the anchor.

    $$y(q) = x(-q_x, q_y)\ \text{or}\ x(q_x, -q_y)$$

    It is exact, because pixels are exchanged and not interpolated, and its own inverse. θ is discrete, so the output
    has no derivative in it.

    Args:
        axis: `"x"`, left to right, or `"y"`, top to bottom.
        name: the parameter's name.
        parameter: the parameter, in place of `Categorical(("no", "yes"))`: a [`Categorical`][weightmorph.Categorical]
            of two settings with `affine="flip_x"` or `"flip_y"`, as `axis` says.

    Shapes:
        x `(B, C, H, W)`, θ `()` or `(B,)`, or names -> `(B, C, H, W)`.

    Raises:
        ParameterError: if the parameter is not a Categorical of two settings that names the flip.
        InputError: if `axis` is neither `"x"` nor `"y"`.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0]]]]).repeat(2, 1, 1, 1)
        >>> Flip()(x, flip=["no", "yes"]).flatten(1).tolist()
        [[1.0, 2.0], [2.0, 1.0]]
    """

    def __init__(
        self, axis: Literal["x", "y"] = "x", *, name: str = "flip", parameter: Parameter | None = None
    ) -> None:
        if axis not in ("x", "y"):
            raise InputError(f"Flip: axis must be 'x' (left to right) or 'y' (top to bottom), got {axis!r}")
        self._kinds = (f"flip_{axis}",)
        parameter = Categorical(("no", "yes"), affine=self._kinds[0]) if parameter is None else parameter
        if len(parameter.choices) != 2:
            raise ParameterError(
                f"Flip: expected a Categorical of two settings, such as Categorical(('no', 'yes'), "
                f"affine={self._kinds[0]!r}), got {parameter!r}"
            )
        super().__init__({name: parameter})
        self.axis = axis

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        """Pixels exchanged where θ is not the anchor."""
        ((name, parameter),) = self.parameters.items()
        turned = per_image(theta[name] != parameter.anchor_value)
        return torch.where(turned, x.flip(-1 if self.axis == "x" else -2), x)

    def undo(self, x: Tensor, theta: Theta) -> Tensor:
        """The same again."""
        return self.apply(x, theta)

    def _options(self) -> dict[str, object]:
        return {"axis": self.axis}

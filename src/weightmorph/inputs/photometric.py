"""Input transforms that change values and move nothing: blur, noise, brightness, contrast."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError, ParameterError
from ..parameters import Interval, LogInterval, Parameter, ParameterSpace, Theta
from .base import InputTransform
from .functional import PADDING_MODES, PaddingMode, check_option, gaussian_blur, kernel_radius, per_image

__all__ = ["Blur", "Brightness", "Contrast", "Noise"]


class _Photometric(InputTransform):
    """A transform with one parameter between two ends."""

    def __init__(self, name: str, parameter: Parameter) -> None:
        super().__init__(ParameterSpace({name: parameter}))
        owner = type(self).__name__
        if parameter.affine is not None:
            raise ParameterError(
                f"{owner} moves nothing: expected parameter {name!r} with affine=None, got {parameter.affine!r}"
            )
        if parameter.bounds is None or parameter.discrete:
            raise ParameterError(
                f"{owner}: expected parameter {name!r} to be a quantity between two ends, Interval or LogInterval, "
                f"got {parameter!r}"
            )
        self.low, self.high = parameter.bounds
        self.anchor = parameter.anchor_value
        self._name = name


class _Added(_Photometric):
    """A transform that adds what cannot be taken out: the range must start at the anchor, and not below zero."""

    def __init__(self, name: str, parameter: Parameter) -> None:
        super().__init__(name, parameter)
        if not 0 <= self.anchor == self.low:
            raise ParameterError(
                f"{type(self).__name__}: expected a range that starts at its anchor, at 0 or above, because "
                f"the image cannot be made sharper or cleaner; got low={self.low:g}, anchor={self.anchor:g}"
            )

    def _added(self, theta: Theta) -> Tensor:
        """The variance to add to that of the anchor; zero for θ below the anchor."""
        value = theta[self._name].clamp(min=self.anchor)
        return (value - self.anchor) * (value + self.anchor)


class Blur(_Added):
    r"""Blur with a Gaussian whose standard deviation is θ pixels.

    $$y = G_v * x, \qquad v = \theta^2 - \theta_0^2$$

    The anchor is $\theta_0 = 0$ unless the parameter says otherwise. Variances of Gaussian blurs add, so $v$ is the
    blur that an image already blurred by $\theta_0$ still needs. The kernel is separable, sampled at the pixels, and
    cut at four standard deviations of the range's upper end; a θ beyond the range gives a warning and too little blur.
    The output is differentiable in θ, with derivative 0 at 0. There is no inverse.

    Args:
        high: largest standard deviation, in px.
        name: the parameter's name.
        parameter: the parameter, in place of `Interval(0, high, unit="px")`; `high` is then ignored.
        padding_mode: values outside the image: `"zeros"`, `"border"` or `"reflection"` (about the outer edge of the
            pixels, which keeps the mean).

    Shapes:
        x `(B, C, H, W)`, θ `()` or `(B,)` -> `(B, C, H, W)`.

    Raises:
        ParameterError: if the parameter's range does not start at its anchor, or starts below 0.
        InputError: if `padding_mode` is unknown.

    Example:
        >>> x = torch.tensor([[[[0.0, 0.0, 1.0, 0.0, 0.0]]]])
        >>> Blur()(x, blur=1.0)[0, 0, 0].round(decimals=3)
        tensor([0.0580, 0.2420, 0.3990, 0.2420, 0.0580])
    """

    def __init__(
        self,
        high: float = 4.0,
        *,
        name: str = "blur",
        parameter: Parameter | None = None,
        padding_mode: PaddingMode = "reflection",
    ) -> None:
        check_option("Blur", "padding_mode", padding_mode, PADDING_MODES)
        super().__init__(name, Interval(0.0, high, unit="px") if parameter is None else parameter)
        self.padding_mode: PaddingMode = padding_mode
        self.radius = kernel_radius(self.high**2 - self.anchor**2)

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        """The image blurred."""
        return gaussian_blur(x, self._added(theta), self.radius, self.padding_mode)

    def _options(self) -> dict[str, object]:
        return {"padding_mode": self.padding_mode}


class Noise(_Added):
    r"""Add Gaussian noise with a standard deviation of θ, in the units of the image's values.

    $$y = x + \sqrt{\theta^2 - \theta_0^2}\;\varepsilon, \qquad \varepsilon \sim \mathcal N(0, 1)$$

    The anchor is $\theta_0 = 0$ unless the parameter says otherwise; variances of independent noises add. Values are
    not clamped. $\varepsilon$ does not depend on θ, so the output is differentiable in θ. There is no inverse.

    $\varepsilon$ comes from the first of these that is given:

    1. the call's `generator`, on its device, which advances;
    2. `seed`: every call starts from it again, on the CPU, and draws image after image. The noise of image $i$ then
       depends on `seed`, $i$ and the image's shape alone, and not on θ, the batch size, the dtype, the device or
       earlier calls, so that evaluations are repeatable and settings comparable;
    3. torch's global generator, on the device of the images: new noise in each call.

    Args:
        high: largest standard deviation.
        name: the parameter's name.
        parameter: the parameter, in place of `Interval(0, high)`; `high` is then ignored.
        seed: see above.

    Shapes:
        x `(B, C, H, W)`, θ `()` or `(B,)` -> `(B, C, H, W)`.

    Raises:
        ParameterError: if the parameter's range does not start at its anchor, or starts below 0.
        InputError: if `seed` is not an integer.

    Example:
        >>> x, noise = torch.zeros(8, 1, 28, 28), Noise(seed=0)
        >>> torch.equal(noise(x, noise=0.2), noise(x, noise=0.2))
        True
        >>> round(noise(x, noise=0.2).std().item(), 2)
        0.2
    """

    def __init__(
        self,
        high: float = 0.5,
        *,
        name: str = "noise",
        parameter: Parameter | None = None,
        seed: int | None = None,
    ) -> None:
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise InputError(f"Noise: seed must be an integer or None, got {seed!r}")
        super().__init__(name, Interval(0.0, high) if parameter is None else parameter)
        self.seed = seed

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        """The image with noise on it."""
        if self.anchor == 0:
            std = theta[self._name].clamp(min=0)
        else:
            # The floor avoids the root's infinite derivative; at the anchor the caller replaces the value.
            std = self._added(theta).clamp(min=torch.finfo(x.dtype).eps ** 2).sqrt()
        return x + per_image(std) * self._draw(x, generator)

    def _draw(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        # Always float32, so that the noise does not depend on the dtype of the images.
        if generator is None and self.seed is not None:
            seeded = torch.Generator().manual_seed(self.seed)
            # One image at a time: drawn at once, an image's noise could depend on the batch size.
            drawn = [torch.randn(x.shape[1:], generator=seeded, dtype=torch.float32) for _ in range(x.shape[0])]
            epsilon = torch.stack(drawn) if drawn else torch.zeros(x.shape)
        else:
            device = x.device if generator is None else generator.device
            epsilon = torch.randn(x.shape, generator=generator, device=device, dtype=torch.float32)
        return epsilon.to(device=x.device, dtype=x.dtype)

    def _options(self) -> dict[str, object]:
        return {"seed": self.seed}


class Brightness(_Photometric):
    r"""Add θ to every value.

    $$y = x + \theta - \theta_0$$

    The anchor is $\theta_0 = 0$ unless the parameter says otherwise. Values are not clamped, because clamping cannot be
    undone and has no derivative. The inverse subtracts.

    Args:
        low: lowest offset, in the units of the image's values.
        high: highest offset.
        name: the parameter's name.
        parameter: the parameter, in place of `Interval(low, high)`; `low` and `high` are then ignored.

    Shapes:
        x `(B, C, H, W)`, θ `()` or `(B,)` -> `(B, C, H, W)`.

    Raises:
        ParameterError: if the parameter is not a quantity between two ends.

    Example:
        >>> Brightness()(torch.ones(2, 1, 1, 1), brightness=[0.0, 0.25]).flatten().tolist()
        [1.0, 1.25]
    """

    invertible = True

    def __init__(
        self,
        low: float = -0.5,
        high: float = 0.5,
        *,
        name: str = "brightness",
        parameter: Parameter | None = None,
    ) -> None:
        super().__init__(name, Interval(low, high) if parameter is None else parameter)

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        """The image made brighter."""
        return x + per_image(theta[self._name] - self.anchor)

    def undo(self, x: Tensor, theta: Theta) -> Tensor:
        """The image made darker again."""
        return x - per_image(theta[self._name] - self.anchor)


class Contrast(_Photometric):
    r"""Multiply the distance of every value from the image's mean by θ.

    $$y = m + \frac{\theta}{\theta_0}\,(x - m), \qquad m = \frac{1}{CHW} \sum_{c,i,j} x_{cij}$$

    The anchor is $\theta_0 = 1$ unless the parameter says otherwise. The mean over all channels and pixels of an image
    stays the same, so the inverse, which divides by θ about the mean, is exact up to rounding. For the same reason
    values are not clamped. If the range contains 0, which leaves only the mean, there is no inverse.

    Args:
        low: lowest factor.
        high: highest factor.
        name: the parameter's name.
        parameter: the parameter; `low` and `high` are then ignored. Otherwise `LogInterval(low, high, anchor=1)`, or
            `Interval(low, high, anchor=1)` where `low` is 0 or below, which has no logarithm.

    Shapes:
        x `(B, C, H, W)`, θ `()` or `(B,)` -> `(B, C, H, W)`.

    Raises:
        ParameterError: if the parameter is not a quantity between two ends, or its anchor is 0.

    Example:
        >>> Contrast()(torch.tensor([[[[1.0, 3.0]]]]), contrast=2.0).flatten().tolist()
        [0.0, 4.0]
        >>> Contrast(low=0.0).inverse() is None
        True
    """

    def __init__(
        self,
        low: float = 0.5,
        high: float = 2.0,
        *,
        name: str = "contrast",
        parameter: Parameter | None = None,
    ) -> None:
        if parameter is None:
            parameter = LogInterval(low, high, anchor=1.0) if low > 0 else Interval(low, high, anchor=1.0)
        super().__init__(name, parameter)
        if self.anchor == 0:
            raise ParameterError("Contrast: expected an anchor other than 0, at which an image is its mean and no more")
        self.invertible = not self.low <= 0 <= self.high

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        """The contrast changed."""
        mean = x.mean((-3, -2, -1), keepdim=True)
        return mean + per_image(theta[self._name] / self.anchor) * (x - mean)

    def undo(self, x: Tensor, theta: Theta) -> Tensor:
        """The contrast changed back."""
        mean = x.mean((-3, -2, -1), keepdim=True)
        return mean + (x - mean) / per_image(theta[self._name] / self.anchor)

"""The contract of an input transform, its inverse, and several in sequence. This is the core of the package."""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import affine as maps
from ..errors import InputError, ParameterError, ParameterLengthError
from ..parameters import Parameter, ParameterSpace, Theta, Value
from .functional import pin

__all__ = ["Compose", "InputTransform", "Inverse"]


class InputTransform(ABC):
    r"""What a parameter does to an image: $T_\theta(x)$.

    A call checks and prepares θ, applies the formula, and replaces the output at the anchor by the input itself:

    $$T_{\theta_0}(x) = x \quad\text{bit for bit, for each sample on its own, derivatives included}$$

    Parameters whose anchor is not the neutral value act relative to it: a `Rotate` anchored at 30° turns by
    $\theta - 30°$, because the given images count as seen at the anchor.
    [`ParameterSpace.plane`][weightmorph.ParameterSpace.plane] reads them in the same way.

    A transform of your own hands its parameters to `super().__init__` and implements `apply`. If it can be undone, it
    also implements `undo` and sets `invertible`; if it moves things, it also implements `position_map`.

    Args:
        parameters: what the transform depends on.

    Raises:
        ParameterError: if a parameter is called `generator`, which is an argument of the call.

    Example:
        >>> class Gamma(InputTransform):
        ...     def apply(self, x, theta, generator=None):
        ...         return x ** per_image(theta["gamma"])
        >>> from weightmorph.parameters import LogInterval
        >>> from weightmorph.inputs.functional import per_image
        >>> Gamma(ParameterSpace({"gamma": LogInterval(0.5, 2.0)}))(torch.full((1, 1, 1, 1), 0.5), gamma=2.0).item()
        0.25
    """

    parameters: ParameterSpace

    def __init__(self, parameters: ParameterSpace) -> None:
        if "generator" in parameters:
            raise ParameterError(
                f"{type(self).__name__}: a parameter cannot be named 'generator', which is an argument of the call "
                "that draws random numbers; choose another name"
            )
        self.parameters = parameters

    # `generator` is Any and checked below: with a narrower type, type checkers refuse `transform(x, **theta)`.
    def __call__(self, x: Tensor, /, *, generator: Any = None, **theta: Value) -> Tensor:
        """The transformed images.

        Args:
            x: floating-point images, `(B, C, H, W)`.
            generator: a `torch.Generator` for the transforms that draw random numbers, or None.
            **theta: one entry per parameter, in any form that
                [`ParameterSpace.prepare`][weightmorph.ParameterSpace.prepare] takes: one value for the batch or one
                per image.

        Returns:
            `(B, C, H, W)`, in the dtype of `x`; half-precision images are computed in float32.

        Raises:
            InputError: if `x` is not a floating-point tensor of four axes, or `generator` not a generator.
            ParameterLengthError: if θ is neither one value nor one per image.
            MissingParameterError, UnknownParameterError, ParameterValueError: as `ParameterSpace.prepare` does.
        """
        check_images(type(self).__name__, x)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise InputError(
                f"{type(self).__name__}: expected generator to be a torch.Generator or None, got {generator!r}; for a "
                "seed write torch.Generator().manual_seed(seed)"
            )
        prepared = self.parameters.prepare(
            theta, device=x.device, dtype=x.dtype, check=not torch.compiler.is_compiling()
        )
        size = next(iter(prepared.values())).shape
        if len(size) and size[0] != x.shape[0]:
            raise ParameterLengthError(
                f"{type(self).__name__}: expected one value of {', '.join(self.parameters)} for the batch or one per "
                f"image ({x.shape[0]}), got {size[0]}"
            )
        return self._pinned(x, prepared, generator)

    @abstractmethod
    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        """The formula: `(B, C, H, W)` in float32 or float64, θ prepared, `()` or `(B,)` each -> `(B, C, H, W)`."""

    invertible: bool = False
    """True if the transform can be undone."""

    def undo(self, x: Tensor, theta: Theta) -> Tensor:
        """The formula of the inverse: shapes as in `apply`."""
        raise InputError(f"{type(self).__name__} has no undo of its own; ask its inverse() method")

    def inverse(self) -> InputTransform | None:
        """The transform that undoes this one at the same θ, with the same parameter names; None if there is none.

        Content that left the frame or was smoothed by interpolation does not come back.

        Example:
            >>> from weightmorph.inputs import Blur, Brightness
            >>> undo = Brightness().inverse()
            >>> undo(torch.ones(1, 1, 1, 1), brightness=0.25).item()
            0.75
            >>> Blur().inverse() is None
            True
        """
        return Inverse(self) if self.invertible else None

    def affine(self, **theta: Value) -> Tensor | None:
        """The transform's map of positions: `(*B, 2, 3)`, see [`weightmorph.affine`][]; None if it moves nothing.

        Args:
            **theta: as in the call. Tensors decide the dtype (float32 at least) and the device of the result.

        Example:
            >>> from weightmorph.inputs import Blur, Zoom
            >>> Zoom().affine(zoom=2.0).tolist()
            [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
            >>> Blur().affine(blur=2.0) is None
            True
        """
        tensors = [value for value in theta.values() if isinstance(value, Tensor)]
        dtypes = (value.dtype for value in tensors if value.is_floating_point())
        prepared = self.parameters.prepare(
            theta,
            device=tensors[0].device if tensors else None,
            dtype=functools.reduce(torch.promote_types, dtypes, torch.float32),
            check=not torch.compiler.is_compiling(),
        )
        return self.position_map(prepared)

    def position_map(self, theta: Theta) -> Tensor | None:
        """The map of positions under prepared θ: `(*B, 2, 3)`, or None if nothing moves."""
        return None

    def _pinned(self, x: Tensor, theta: Theta, generator: torch.Generator | None) -> Tensor:
        """`apply`, exact at the anchor and in the dtype of `x`."""
        y = self.apply(x.to(torch.promote_types(x.dtype, torch.float32)), theta, generator).to(x.dtype)
        # Codes are compared and not values, so that 360° is the anchor 0°, as it is for the weights.
        code = self.parameters.encode(theta)
        anchor = torch.tensor(self.parameters.anchor_code, device=code.device, dtype=code.dtype)
        return pin(y, x, (code == anchor).all(-1))

    def _options(self) -> dict[str, object]:
        """What `repr` shows beside the parameters."""
        return {}

    def __repr__(self) -> str:
        shown = dict(self.parameters) | self._options()
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def check_images(owner: str, x: object) -> None:
    """Refuse anything but a floating-point `(B, C, H, W)` tensor."""
    if not isinstance(x, Tensor):
        raise InputError(f"{owner}: expected images as a tensor of shape (B, C, H, W), got {type(x).__name__}")
    if x.dim() != 4:
        hint = "; one image needs a batch axis: x.unsqueeze(0)" if x.dim() == 3 else ""
        raise InputError(f"{owner}: expected images of shape (B, C, H, W), got shape {tuple(x.shape)}{hint}")
    if not x.is_floating_point():
        raise InputError(
            f"{owner}: expected floating-point images, got dtype {x.dtype}; convert them first, e.g. x.float() / 255"
        )


class Inverse(InputTransform):
    r"""Undo another transform at the same θ.

    $$T^{-1}_\theta(T_\theta(x)) \approx x$$

    [`InputTransform.inverse`][weightmorph.inputs.InputTransform.inverse] makes it. Its parameters are those of the
    transform that it undoes, but without `affine=`, because that names the map of the other; `affine()` gives the
    inverse map.

    Shapes:
        x `(B, C, H, W)`, θ `()` or `(B,)` each -> `(B, C, H, W)`.

    Args:
        of: the transform to undo.

    Raises:
        InputError: if it cannot be undone.

    Example:
        >>> from weightmorph.inputs import Rotate
        >>> undo = Rotate().inverse()
        >>> undo.affine(angle=90.0).round().long().tolist()  # clockwise
        [[0, -1, 0], [1, 0, 0]]
        >>> undo.inverse()  # doctest: +ELLIPSIS
        Rotate(angle=Angle(unit='deg', ...), mode='bilinear', padding_mode='zeros')
    """

    invertible = True

    def __init__(self, of: InputTransform) -> None:
        if not of.invertible:
            raise InputError(f"Inverse: {type(of).__name__} has no undo of its own; ask its inverse() method")
        super().__init__(ParameterSpace({name: _without_affine(p) for name, p in of.parameters.items()}))
        self.of = of

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        """The other's `undo`."""
        return self.of.undo(x, theta)

    def undo(self, x: Tensor, theta: Theta) -> Tensor:
        """The other's `apply`."""
        return self.of.apply(x, theta)

    def inverse(self) -> InputTransform:
        """The transform that this one undoes."""
        return self.of

    def position_map(self, theta: Theta) -> Tensor | None:
        """The inverse of the other's map."""
        there = self.of.position_map(theta)
        return None if there is None else maps.inverse(there)

    def __repr__(self) -> str:
        return f"{self.of!r}.inverse()"


def _without_affine(parameter: Parameter) -> Parameter:
    if parameter.affine is None:
        return parameter
    # Not dataclasses.replace, which not every parameter's constructor allows.
    clone = copy.copy(parameter)
    object.__setattr__(clone, "affine", None)
    return clone


class Compose(InputTransform):
    r"""Apply several transforms, one after the other.

    $$T_\theta = T^{(n)}_{\theta_n} \circ \dots \circ T^{(1)}_{\theta_1}$$

    Its space unites theirs, in order. Each part is exact at its own anchor, at any setting of the others. Geometric
    parts resample one by one; `affine()` gives the composed map.

    Shapes:
        x `(B, C, H, W)`, θ `()` or `(B,)` each -> `(B, C, H, W)`.

    Args:
        transforms: the parts, the first to act first.

    Raises:
        InputError: if the list is empty or holds anything but input transforms.
        ParameterError: if two share a parameter name.

    Example:
        >>> from weightmorph.inputs import Blur, Rotate, Zoom
        >>> both = Compose([Rotate(), Zoom()])
        >>> both(torch.zeros(1, 1, 8, 8), angle=30.0, zoom=1.5).shape
        torch.Size([1, 1, 8, 8])
        >>> list(both.inverse().parameters)  # last in, first out
        ['zoom', 'angle']
        >>> Compose([Rotate(), Blur()]).inverse() is None
        True
    """

    def __init__(self, transforms: Sequence[InputTransform]) -> None:
        parts = tuple(transforms) if isinstance(transforms, Sequence) else (transforms,)
        if not isinstance(transforms, Sequence) or not parts or not all(isinstance(t, InputTransform) for t in parts):
            raise InputError(
                f"Compose: expected a list of one or more input transforms, e.g. Compose([Rotate(), Blur()]), "
                f"got {transforms!r}"
            )
        united: dict[str, Parameter] = {}
        for part in parts:
            for name, parameter in part.parameters.items():
                if name in united:
                    raise ParameterError(
                        f"Compose: expected parameters with names of their own, got {name!r} twice, the second time "
                        f"from {type(part).__name__}; give that one another name when it is made"
                    )
                united[name] = parameter
        super().__init__(ParameterSpace(united))
        self.transforms = parts

    def _shares(self, theta: Theta) -> list[Theta]:
        return [{name: theta[name] for name in part.parameters} for part in self.transforms]

    def apply(self, x: Tensor, theta: Theta, generator: torch.Generator | None = None) -> Tensor:
        """Each part in turn."""
        for part, share in zip(self.transforms, self._shares(theta), strict=True):
            x = part._pinned(x, share, generator)
        return x

    def _pinned(self, x: Tensor, theta: Theta, generator: torch.Generator | None) -> Tensor:
        return self.apply(x, theta, generator)  # each part is exact at its own anchor

    def inverse(self) -> InputTransform | None:
        """The parts undone in reverse order; None if one of them cannot be."""
        undone = [part.inverse() for part in reversed(self.transforms)]
        complete = [part for part in undone if part is not None]
        return Compose(complete) if len(complete) == len(undone) else None

    def position_map(self, theta: Theta) -> Tensor | None:
        """The maps of the parts that move things, composed in order."""
        total: Tensor | None = None
        for part, share in zip(self.transforms, self._shares(theta), strict=True):
            here = part.position_map(share)
            if here is not None:
                total = here if total is None else maps.compose(here, total)
        return total

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"

"""The base class of parameters: checks, samples and encodes values, and describes itself."""

from __future__ import annotations

import dataclasses
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from .. import affine as maps
from ..errors import OutOfRangeWarning, ParameterError, ParameterLengthError, ParameterValueError, near

__all__ = ["Parameter", "Theta", "Value", "brief", "require_numbers"]


Value = float | int | str | Tensor | Sequence[float] | Sequence[str]
"""Values of one parameter as a user gives them: a number, a 0-d or `(B,)` tensor, a list; names for a Categorical."""

Theta = dict[str, Tensor]
"""Checked values by name, each `(*B)` with the same `*B`."""


class Parameter(ABC):
    """One quantity θ that the weights depend on.

    A subclass defines how values are encoded, and overrides `format`, `distance` and the other methods below where it
    differs; nothing outside `parameters/` asks for its class. A new kind is one file, and one entry in
    [`kinds`][weightmorph.parameters.kinds].

    Attributes:
        affine: the map of [`weightmorph.affine`][] that the parameter applies to the image plane, or None;
            [`Warp`][weightmorph.Warp] reads it. Angles in degrees are converted for the map.
        unit: of the values, or None.
        anchor: the value at which the base is right.
        log_scale: whether equal ratios, not equal differences, are equal steps.

    Example:
        >>> from weightmorph import Angle
        >>> angle = Angle("deg", harmonics=1)
        >>> angle.encode(torch.tensor(90.0)).round().abs().tolist(), angle.format(90.0), angle.describe()
        ([0.0, 1.0], '90°', 'Angle: all round in deg, anchor at 0°')
    """

    affine: str | None
    unit: Any
    anchor: Any

    log_scale: ClassVar[bool] = False
    """Whether equal ratios, not equal differences, are equal steps; the axis of a plot is then logarithmic."""

    def __post_init__(self) -> None:
        if self.affine is not None and self.affine not in maps.MAPS:
            raise ParameterError(
                f"{type(self).__name__}: unknown affine map {self.affine!r}; known: {', '.join(sorted(maps.MAPS))}"
                f"{near(self.affine, maps.MAPS)}"
            )

    @property
    @abstractmethod
    def code_dim(self) -> int:
        """Columns of the code."""

    @property
    @abstractmethod
    def anchor_code(self) -> tuple[float, ...]:
        """The code at the anchor, as constants that every dtype holds exactly."""

    @property
    def anchor_value(self) -> float:
        """The anchor as a number (for a Categorical, its index)."""
        return float(self.anchor)

    @abstractmethod
    def encode(self, value: Tensor) -> Tensor:
        """Values `(*B)` to code `(*B, K)`."""

    @abstractmethod
    def decode(self, code: Tensor) -> Tensor:
        """Code `(*B, K)` back to values `(*B)`; for an angle, its principal value."""

    @abstractmethod
    def coordinate(self, code: Tensor) -> Tensor:
        """Code `(*B, K)` to a coordinate `(*B)` that is 0 at the anchor and in which the parameter adds."""

    @abstractmethod
    def from_coordinate(self, coordinate: Tensor) -> Tensor:
        """A coordinate `(*B)` back to values `(*B)`."""

    @property
    def period(self) -> float | None:
        """The distance in the coordinate after which values repeat; None for a parameter that is not circular."""
        return None

    @property
    def turn(self) -> float | None:
        """A full turn in `unit`, after which values repeat; None for a parameter that is not circular."""
        return None

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that a value can have, in the order of their indices; empty for a number."""
        return ()

    @property
    def discrete(self) -> bool:
        """Whether values are names, between which there is nothing."""
        return bool(self.choices)

    def distance(self, a: Tensor, b: Tensor | float) -> Tensor:
        """How far values are apart, in `unit`: the short way round a circle; 0 or 1 for names.

        Args:
            a: values `(*B)`.
            b: one value, or values whose shape broadcasts with that of `a`.

        Returns:
            distances `(*B)`, none below 0.

        Example:
            >>> from weightmorph import Angle
            >>> Angle("deg").distance(torch.tensor([350.0, 40.0]), 10.0)
            tensor([20., 30.])
        """
        return (a - b).abs()

    def mirrored(self, value: Tensor) -> Tensor:
        """The values as far from the anchor on its other side.

        Example:
            >>> from weightmorph import Interval, LogInterval
            >>> Interval(-2.0, 2.0).mirrored(torch.tensor(0.5)), LogInterval(0.5, 2.0).mirrored(torch.tensor(2.0))
            (tensor(-0.5000), tensor(0.5000))
        """
        return 2 * self.anchor_value - value

    def format(self, value: float, digits: int = 4, *, unit: bool = True) -> str:
        """One value as a reader wants it, with its unit: `30°`, `2.5 px`, `night`.

        Args:
            value: in `unit`; of a `Categorical`, its index.
            digits: significant digits of a number.
            unit: write the unit.

        Example:
            >>> from weightmorph import Angle, Interval
            >>> Angle("deg").format(30.0), Interval(0.0, 4.0, unit="px").format(2.5)
            ('30°', '2.5 px')
        """
        mark = "°" if self.unit == "deg" else f" {self.unit}" if self.unit else ""
        return f"{value:.{digits}g}{mark if unit else ''}"

    @property
    def extent(self) -> str:
        """The range in words, without the unit.

        Example:
            >>> from weightmorph import Angle, Categorical, Interval
            >>> Angle("deg").extent, Interval(0.0, 4.0).extent, Categorical(("day", "night")).extent
            ('all round', '0 to 4', 'day, night')
        """
        if self.bounds is None:
            return "all round"
        low, high = self.bounds
        return f"{self.format(low, 6, unit=False)} to {self.format(high, 6, unit=False)}"

    def describe(self) -> str:
        """Kind, range, unit and anchor in one phrase, for model cards and summaries.

        Example:
            >>> from weightmorph import LogInterval
            >>> LogInterval(50.0, 6400.0, 100.0, unit="ISO").describe()
            'LogInterval: 50 to 6400 ISO, anchor at 100 ISO'
        """
        unit = f" {self.unit}" if self.unit and self.bounds else f" in {self.unit}" if self.unit else ""
        return f"{type(self).__name__}: {self.extent}{unit}, anchor at {self.format(self.anchor_value, 6)}"

    @property
    def example(self) -> str:
        """A value other than the anchor as Python code, for documentation.

        Example:
            >>> from weightmorph import Angle, Categorical
            >>> Angle("deg").example, Categorical(("day", "night")).example
            ('30', "'night'")
        """
        low, high = self.bounds or (self.anchor_value, self.anchor_value + 1)
        return f"{(high if self.anchor_value == low else low):.4g}"

    @abstractmethod
    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        """`size` values drawn over the range: `(size,)`, on the CPU."""

    @abstractmethod
    def grid(self, size: int) -> Tensor:
        """`size` values evenly over the range: `(size,)` in float32."""

    def spaced(self, size: int) -> Tensor:
        """Up to `size` values to show the range by, in float64.

        A range gets an odd number of values, so that one is its middle; the value nearest to the anchor becomes exactly
        the anchor. A circle gets `size` values from the anchor on, a `Categorical` its first ones.

        Example:
            >>> from weightmorph import Angle, Interval
            >>> Angle("deg").spaced(4).tolist(), Interval(0.0, 1.0, anchor=0.4).spaced(4).tolist()
            ([0.0, 90.0, 180.0, 270.0], [0.0, 0.4, 1.0])
        """
        values = self.grid(max(size - (size + 1) % 2, 1)).double()
        values[(values - self.anchor_value).abs().argmin()] = self.anchor_value
        return values

    def plane(self, code: Tensor) -> Tensor:
        """The parameter's map of the image plane, relative to the anchor: `(*B, K) -> (*B, 2, 3)`."""
        if self.affine is None:
            return maps.identity(code[..., 0])
        scale = math.pi / 180 if self.unit == "deg" else 1.0
        here = maps.MAPS[self.affine](self.decode(code) * scale)
        if self.anchor_value == maps.NEUTRAL[self.affine]:
            return here
        anchor = maps.MAPS[self.affine](torch.full_like(code[..., 0], self.anchor_value * scale))
        return maps.compose(here, maps.inverse(anchor))

    def tensor(self, name: str, value: Value) -> Tensor:
        """A user's value as a float tensor `()` or `(B,)`, checked for shape and kind."""
        if isinstance(value, bool):
            raise ParameterValueError(f"parameter {name!r}: expected a number, got {value!r}")
        if isinstance(value, int | float):
            # torch.full, not as_tensor: the latter makes dynamo retrace for every value.
            return torch.full((), float(value), dtype=torch.float64)
        if not isinstance(value, Tensor):
            try:
                value = torch.as_tensor(value, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ParameterValueError(
                    f"parameter {name!r}: expected a number, a list of numbers or a tensor, "
                    f"got {type(value).__name__} {value!r}"
                ) from error
        if value.dim() > 1:
            raise ParameterLengthError(
                f"parameter {name!r}: expected one value, or one per sample of shape (B,), got shape "
                f"{tuple(value.shape)}; for a column use value.flatten()"
            )
        if value.is_complex() or value.dtype == torch.bool:
            raise ParameterValueError(f"parameter {name!r}: expected real numbers, got dtype {value.dtype}")
        return value if value.is_floating_point() else value.to(torch.float64)

    def check(self, name: str, value: Tensor) -> None:
        """Refuse values that are not finite, and warn of values outside the range."""
        if not bool(torch.isfinite(value).all()):
            raise ParameterValueError(f"parameter {name!r}: expected finite values, got {brief(value)}")
        bounds = self.bounds
        if bounds is None:
            return
        low, high = bounds
        slack = 1e-6 * (high - low)
        if bool(((value < low - slack) | (value > high + slack)).any()):
            warnings.warn(
                f"parameter {name!r}: expected values in [{low:g}, {high:g}]{_unit(self.unit)}, got {brief(value)}; "
                "the transform has not been trained there",
                OutOfRangeWarning,
                stacklevel=2,
            )

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest value, or None where there is no end (an angle)."""
        return None

    def config(self) -> dict[str, Any]:
        """The parameter as plain data, for [`from_config`][weightmorph.ParameterSpace.from_config]."""
        fields = [f.name for f in dataclasses.fields(cast(Any, self)) if f.init]
        return {"type": type(self).__name__} | {name: getattr(self, name) for name in fields}


def brief(value: Tensor) -> str:
    """The first numbers of a tensor, for an error."""
    flat = value.detach().flatten().tolist()
    return str(flat[0]) if len(flat) == 1 else f"{flat[:4]}{' …' if len(flat) > 4 else ''}"


def _unit(unit: str | None) -> str:
    return f" {unit}" if unit else ""


def require_numbers(kind: str, **values: object) -> None:
    """Refuse arguments of a parameter that are no numbers, by name.

    Example:
        >>> require_numbers("Interval", low=0, high="1")
        Traceback (most recent call last):
            ...
        weightmorph.errors.ParameterError: Interval: expected a number for high, got the str '1'
    """
    for name, value in values.items():
        if not hasattr(value, "__float__"):
            raise ParameterError(f"{kind}: expected a number for {name}, got the {type(value).__name__} {value!r:.80}")

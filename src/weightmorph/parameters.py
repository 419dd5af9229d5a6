"""What the weights depend on: named parameters with a unit, a range, and an anchor at which the base is right.

A [`ParameterSpace`][weightmorph.ParameterSpace] is a dict of parameters. It checks values, samples them, lays out
grids, and encodes them into the *code* that every weight transform reads.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from . import affine as maps
from .errors import (
    MissingParameterError,
    OutOfRangeWarning,
    ParameterError,
    ParameterLengthError,
    ParameterValueError,
    UnknownParameterError,
    near,
)

__all__ = ["Angle", "Categorical", "Interval", "LogInterval", "Parameter", "ParameterSpace", "Theta", "Value"]

Value = float | int | str | Tensor | Sequence[float] | Sequence[str]
"""What a user may pass for one parameter: a Python number, a 0-d or `(B,)` tensor, a list; names for a Categorical."""

Theta = dict[str, Tensor]
"""Checked values by name, each `(*B)` with the same `*B`."""


class Parameter(ABC):
    """One named quantity θ that the weights depend on. Subclasses say how it is encoded.

    `affine` names the map of [`weightmorph.affine`][] that the parameter applies to the image plane, if it is a
    geometric one; [`Warp`][weightmorph.Warp] reads it. Angles in degrees are converted for the map.
    """

    affine: str | None
    unit: Any
    anchor: Any

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
        """The way back: a coordinate `(*B)` to values `(*B)`."""

    @property
    def period(self) -> float | None:
        """After how much of the coordinate everything comes again; None where nothing does."""
        return None

    @abstractmethod
    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        """`size` values drawn over the range: `(size,)`, on the CPU."""

    @abstractmethod
    def grid(self, size: int) -> Tensor:
        """`size` values laid evenly over the range: `(size,)`."""

    def plane(self, code: Tensor) -> Tensor:
        """The parameter's map of the image plane, relative to the anchor: `(*B, K) -> (*B, 2, 3)`."""
        if self.affine is None:
            return maps.identity(code[..., 0])
        scale = math.pi / 180 if self.unit == "deg" else 1.0
        here = maps.MAPS[self.affine](self.decode(code) * scale)
        if self.anchor_value == maps.NEUTRAL[self.affine]:
            return here
        home = maps.MAPS[self.affine](torch.full_like(code[..., 0], self.anchor_value * scale))
        return maps.compose(here, maps.inverse(home))

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
        """Refuse what is not finite, warn of what is out of range."""
        if not bool(torch.isfinite(value).all()):
            raise ParameterValueError(f"parameter {name!r}: expected finite values, got {_brief(value)}")
        bounds = self.bounds
        if bounds is None:
            return
        low, high = bounds
        slack = 1e-6 * (high - low)
        if bool(((value < low - slack) | (value > high + slack)).any()):
            warnings.warn(
                f"parameter {name!r}: expected values in [{low:g}, {high:g}]{_unit(self.unit)}, got {_brief(value)}; "
                "the transform has not been trained there",
                OutOfRangeWarning,
                stacklevel=2,
            )

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest value, or None where there is no end (an angle)."""
        return None

    def config(self) -> dict[str, Any]:
        """Plain data from which [`ParameterSpace.from_config`][] makes the parameter again."""
        fields = [f.name for f in dataclasses.fields(cast(Any, self)) if f.init]
        return {"type": type(self).__name__} | {name: getattr(self, name) for name in fields}


def _brief(value: Tensor) -> str:
    flat = value.detach().flatten().tolist()
    return str(flat[0]) if len(flat) == 1 else f"{flat[:4]}{' …' if len(flat) > 4 else ''}"


def _unit(unit: str | None) -> str:
    return f" {unit}" if unit else ""


@dataclass(frozen=True)
class Angle(Parameter):
    r"""A direction on the circle, positive counter-clockwise.

    $$c(\theta) = (\cos k(\theta-\theta_0),\ \sin k(\theta-\theta_0))_{k=1 \dots h}$$

    Values of any size are taken modulo a full turn, so 360° is 0° exactly.

    Args:
        unit: `"deg"` or `"rad"`.
        harmonics: $h$, how many multiples of the angle the code holds; a k×k kernel that turns has content up to about
            $k$ of them on its border ring.
        anchor: $\theta_0$, in `unit`.
        affine: the plane's map; `"rotation"`, or None for an angle that is not one of the image plane.

    Shapes:
        values `(*B)` -> code `(*B, 2h)`.

    Example:
        >>> Angle("deg", harmonics=2).encode(torch.tensor([0.0, 360.0])).tolist()
        [[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]]
    """

    unit: Literal["deg", "rad"] = "deg"
    harmonics: int = 4
    anchor: float = 0.0
    affine: str | None = dataclasses.field(default="rotation", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in ("deg", "rad"):
            raise ParameterError(f"Angle: unit must be 'deg' or 'rad', got {self.unit!r}")
        if not isinstance(self.harmonics, int) or self.harmonics < 1:
            raise ParameterError(f"Angle: harmonics must be a positive integer, got {self.harmonics!r}")
        if not math.isfinite(self.anchor):
            raise ParameterError(f"Angle: anchor must be finite, got {self.anchor!r}")

    @property
    def turn(self) -> float:
        """A full turn in `unit`."""
        return 360.0 if self.unit == "deg" else math.tau

    @property
    def code_dim(self) -> int:
        return 2 * self.harmonics

    @property
    def anchor_code(self) -> tuple[float, ...]:
        return (1.0, 0.0) * self.harmonics

    def encode(self, value: Tensor) -> Tensor:
        radians = torch.remainder(value - self.anchor, self.turn) * (math.tau / self.turn)
        multiples = radians.unsqueeze(-1) * torch.arange(1, self.harmonics + 1, device=value.device, dtype=value.dtype)
        return torch.stack((multiples.cos(), multiples.sin()), -1).flatten(-2)

    def decode(self, code: Tensor) -> Tensor:
        return self.from_coordinate(self.coordinate(code))

    def coordinate(self, code: Tensor) -> Tensor:
        return torch.atan2(code[..., 1], code[..., 0])

    def from_coordinate(self, coordinate: Tensor) -> Tensor:
        return coordinate * (self.turn / math.tau) + self.anchor

    @property
    def period(self) -> float:
        return math.tau

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(size, generator=generator) * self.turn + self.anchor

    def grid(self, size: int) -> Tensor:
        return torch.arange(size, dtype=torch.float32) * (self.turn / size) + self.anchor


@dataclass(frozen=True)
class _Range(Parameter):
    """What Interval and LogInterval share: two ends, an anchor between them, a polynomial code."""

    low: float
    high: float
    anchor: float | None = None
    unit: str | None = None
    encode_as: str = "polynomial"
    order: int = 3
    affine: str | None = dataclasses.field(default=None, kw_only=True)

    _neutral: ClassVar[float] = 0.0

    def __init__(
        self,
        low: float,
        high: float,
        anchor: float | None = None,
        unit: str | None = None,
        encode: Literal["polynomial", "raw"] = "polynomial",
        order: int = 3,
        *,
        affine: str | None = None,
    ) -> None:
        # Written out because the method that encodes and the argument that says how share the name users expect.
        name = type(self).__name__
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ParameterError(f"{name}: expected finite low < high, got low={low!r}, high={high!r}")
        if anchor is None:
            anchor = self._neutral if low <= self._neutral <= high else low
        if not low <= anchor <= high:
            raise ParameterError(f"{name}: expected an anchor in [{low:g}, {high:g}], got {anchor!r}")
        if encode not in ("polynomial", "raw"):
            raise ParameterError(f"{name}: encode must be 'polynomial' or 'raw', got {encode!r}")
        if not isinstance(order, int) or order < 1:
            raise ParameterError(f"{name}: order must be a positive integer, got {order!r}")
        values = dict(
            low=float(low), high=float(high), anchor=float(anchor), unit=unit, encode_as=encode, order=order,
            affine=affine,
        )  # fmt: skip
        for key, value in values.items():
            object.__setattr__(self, key, value)
        self.__post_init__()

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def code_dim(self) -> int:
        return 1 if self.encode_as == "raw" else self.order

    @property
    def anchor_code(self) -> tuple[float, ...]:
        return (self.anchor_value,) if self.encode_as == "raw" else (0.0,) * self.order

    @abstractmethod
    def _forward(self, value: Tensor) -> Tensor:
        """Value to the coordinate in which the parameter adds."""

    @abstractmethod
    def _backward(self, coordinate: Tensor) -> Tensor:
        """The way back."""

    @property
    @abstractmethod
    def _reach(self) -> float:
        """The largest coordinate there is, by Python's arithmetic: a traced graph cannot read a tensor's value."""

    def encode(self, value: Tensor) -> Tensor:
        if self.encode_as == "raw":
            return value.unsqueeze(-1)
        u = self._forward(value) / self._reach
        return torch.stack([u**k for k in range(1, self.order + 1)], -1)

    def decode(self, code: Tensor) -> Tensor:
        return code[..., 0] if self.encode_as == "raw" else self._backward(code[..., 0] * self._reach)

    def coordinate(self, code: Tensor) -> Tensor:
        return self._forward(code[..., 0]) if self.encode_as == "raw" else code[..., 0] * self._reach

    def from_coordinate(self, coordinate: Tensor) -> Tensor:
        return self._backward(coordinate)

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        low, high = self._forward(torch.tensor([self.low, self.high])).tolist()
        return self._backward(torch.rand(size, generator=generator) * (high - low) + low).clamp(self.low, self.high)

    def grid(self, size: int) -> Tensor:
        low, high = self._forward(torch.tensor([self.low, self.high], dtype=torch.float64)).tolist()
        steps = self._backward(torch.linspace(low, high, size, dtype=torch.float64))
        return steps.clamp(self.low, self.high).to(torch.float32)

    def config(self) -> dict[str, Any]:
        config = super().config()
        config["encode"] = config.pop("encode_as")
        return config


@dataclass(frozen=True, init=False)
class Interval(_Range):
    r"""A quantity between two ends, spread evenly.

    $$c(\theta) = (u, u^2, \dots, u^n), \qquad u = (\theta - \theta_0) / \max(h - \theta_0,\ \theta_0 - l)$$

    Args:
        low: $l$. high: $h$.
        anchor: $\theta_0$; unless given, 0 where the range contains it, otherwise `low`.
        unit: for messages and reports; `"deg"` is converted for the affine map.
        encode: `"polynomial"` as above, or `"raw"`: the code is the value itself.
        order: $n$, the highest power.
        affine: the plane's map, e.g. `"zoom"`.

    Shapes:
        values `(*B)` -> code `(*B, n)`, or `(*B, 1)` when raw.

    Example:
        >>> Interval(0.0, 4.0, unit="px").encode(torch.tensor(2.0)).tolist()
        [0.5, 0.25, 0.125]
    """

    def _forward(self, value: Tensor) -> Tensor:
        return value - self.anchor_value

    def _backward(self, coordinate: Tensor) -> Tensor:
        return coordinate + self.anchor_value

    @property
    def _reach(self) -> float:
        return max(self.high - self.anchor_value, self.anchor_value - self.low)


@dataclass(frozen=True, init=False)
class LogInterval(_Range):
    r"""A positive quantity between two ends, spread evenly in its logarithm: zoom, exposure, ISO.

    The code is that of [`Interval`][weightmorph.Interval] with $\log(\theta / \theta_0)$ in place of
    $\theta - \theta_0$. The anchor is, unless given, 1 where the range contains it, otherwise `low`.

    Example:
        >>> LogInterval(0.5, 2.0).grid(3).tolist()
        [0.5, 1.0, 2.0]
    """

    _neutral: ClassVar[float] = 1.0

    def __init__(self, low: float, *args: Any, **kwargs: Any) -> None:
        if not low > 0:
            raise ParameterError(f"LogInterval: expected low > 0, got low={low!r}")
        super().__init__(low, *args, **kwargs)

    def _forward(self, value: Tensor) -> Tensor:
        # Not by a Python number: some kernels multiply by its reciprocal, and a * (1 / a) need not be 1.
        return torch.log(value / torch.full_like(value, self.anchor_value))

    def _backward(self, coordinate: Tensor) -> Tensor:
        return torch.exp(coordinate) * self.anchor_value

    @property
    def _reach(self) -> float:
        return max(math.log(self.high / self.anchor_value), math.log(self.anchor_value / self.low))

    def check(self, name: str, value: Tensor) -> None:
        if bool((value <= 0).any()):
            raise ParameterValueError(f"parameter {name!r}: expected positive values, got {_brief(value)}")
        super().check(name, value)


@dataclass(frozen=True)
class Categorical(Parameter):
    """One of several named settings: scanner vendors, lenses, seasons.

    Values are names, or indices into `names`. The code is one-hot.

    Args:
        names: the settings, distinct.
        anchor: the one at which the base is right; the first unless given.
        affine: the plane's map as a function of the index; `"flip_x"` and `"flip_y"` fit two settings.

    Shapes:
        values `(*B)` -> code `(*B, len(names))`.

    Example:
        >>> Categorical(("day", "night"), anchor="day").encode(torch.tensor([0, 1])).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    names: tuple[str, ...]
    anchor: str | None = None
    affine: str | None = dataclasses.field(default=None, kw_only=True)

    unit: str | None = dataclasses.field(default=None, kw_only=True, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "names", tuple(self.names))
        if len(set(self.names)) != len(self.names) or len(self.names) < 2:
            raise ParameterError(f"Categorical: expected two or more distinct names, got {self.names!r}")
        if self.anchor is None:
            object.__setattr__(self, "anchor", self.names[0])
        self._index("anchor", str(self.anchor))

    def _index(self, name: str, value: str) -> int:
        if value not in self.names:
            raise ParameterValueError(
                f"parameter {name!r}: expected one of {', '.join(map(repr, self.names))}, got {value!r}"
                f"{near(value, self.names)}"
            )
        return self.names.index(value)

    @property
    def anchor_value(self) -> float:
        return float(self.names.index(str(self.anchor)))

    @property
    def code_dim(self) -> int:
        return len(self.names)

    @property
    def anchor_code(self) -> tuple[float, ...]:
        return tuple(float(name == self.anchor) for name in self.names)

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, float(len(self.names) - 1)

    def tensor(self, name: str, value: Value) -> Tensor:
        if isinstance(value, str):
            return torch.full((), float(self._index(name, value)), dtype=torch.float64)
        if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
            return torch.tensor([self._index(name, str(v)) for v in value], dtype=torch.float64)
        return super().tensor(name, value)

    def check(self, name: str, value: Tensor) -> None:
        known = torch.arange(len(self.names), device=value.device, dtype=value.dtype)
        if not bool((value.unsqueeze(-1) == known).any(-1).all()):
            raise ParameterValueError(
                f"parameter {name!r}: expected indices 0 to {len(self.names) - 1} (of {', '.join(self.names)}), "
                f"got {_brief(value)}"
            )

    def encode(self, value: Tensor) -> Tensor:
        dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
        known = torch.arange(len(self.names), device=value.device, dtype=value.dtype)
        return (value.unsqueeze(-1) == known).to(dtype)

    def decode(self, code: Tensor) -> Tensor:
        return (code * torch.arange(len(self.names), device=code.device, dtype=code.dtype)).sum(-1)

    def coordinate(self, code: Tensor) -> Tensor:
        return self.decode(code) - self.anchor_value

    def from_coordinate(self, coordinate: Tensor) -> Tensor:
        return coordinate + self.anchor_value

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(len(self.names), (size,), generator=generator).to(torch.float32)

    def grid(self, size: int) -> Tensor:
        """All settings, whatever `size` says."""
        return torch.arange(len(self.names), dtype=torch.float32)


_KINDS: Mapping[str, type[Parameter]] = {
    "Angle": Angle, "Interval": Interval, "LogInterval": LogInterval, "Categorical": Categorical,
}  # fmt: skip


class ParameterSpace(Mapping[str, Parameter]):
    """Several named parameters: a dict that checks, samples and encodes.

    Args:
        parameters: name to parameter; the code's columns follow this order.

    Example:
        >>> space = ParameterSpace({"angle": Angle("deg", harmonics=1), "blur": Interval(0.0, 4.0, order=1)})
        >>> theta = space.prepare({"angle": 90, "blur": [0.0, 4.0]})
        >>> space.encode(theta).round().abs().tolist()
        [[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        if not isinstance(parameters, Mapping) or not parameters:
            raise ParameterError(f"expected a dict of parameters such as {{'angle': Angle('deg')}}, got {parameters!r}")
        for name, parameter in parameters.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise ParameterError(f"a parameter's name must be a Python identifier, got {name!r}")
            if not isinstance(parameter, Parameter):
                raise ParameterError(
                    f"parameter {name!r}: expected Angle, Interval, LogInterval or Categorical, "
                    f"got {type(parameter).__name__} {parameter!r}"
                )
        self._parameters = dict(parameters)

    def __getitem__(self, name: str) -> Parameter:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __repr__(self) -> str:
        return f"ParameterSpace({self._parameters!r})"

    @property
    def code_dim(self) -> int:
        """Columns of the code of all parameters together."""
        return sum(p.code_dim for p in self.values())

    @property
    def anchor(self) -> dict[str, float]:
        """The anchor of each parameter, by name."""
        return {name: p.anchor_value for name, p in self.items()}

    @property
    def anchor_code(self) -> tuple[float, ...]:
        """The code at the anchor, exactly."""
        return tuple(v for p in self.values() for v in p.anchor_code)

    def prepare(
        self,
        values: Mapping[str, Value],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        check: bool = True,
    ) -> Theta:
        """Check a user's values and bring them to one batch shape, device and dtype.

        Args:
            values: one entry per parameter: a number, a 0-d tensor, a `(B,)` tensor or a list.
            device: where the values are needed.
            dtype: their type; at least float32, so that an angle in degrees keeps its digits.
            check: look at the values (eager only). Values that already live on an accelerator are not looked at, for
                that would force a synchronisation on every call.

        Returns:
            name to `(*B)` tensor, `*B` being empty or `(B,)`, the same for all.

        Raises:
            MissingParameterError, UnknownParameterError, ParameterLengthError, ParameterValueError.
        """
        for name in values:
            if name not in self._parameters:
                raise UnknownParameterError(
                    f"unknown parameter {name!r}; this model is conditioned on {', '.join(self)}{near(name, self)}"
                )
        missing = [name for name in self if name not in values]
        if missing:
            example = ", ".join(f"{name}=…" for name in self)
            raise MissingParameterError(
                f"no value for {', '.join(map(repr, missing))}: call model(x, {example}); "
                f"at the anchor ({', '.join(f'{k}={v:g}' for k, v in self.anchor.items())}) the base is unchanged"
            )
        theta: Theta = {}
        for name, parameter in self.items():
            value = parameter.tensor(name, values[name])
            if check and value.device.type == "cpu":
                parameter.check(name, value)
            theta[name] = value.to(device=device, dtype=torch.promote_types(dtype, torch.float32))
        lengths = {name: value.shape[0] for name, value in theta.items() if value.dim()}
        # Not a set of lengths: a symbolic one, under export, cannot be hashed.
        if any(n != m for n, m in itertools.pairwise(lengths.values())):
            raise ParameterLengthError(
                f"parameters given per sample must have one length, got "
                f"{', '.join(f'{name}: {n}' for name, n in lengths.items())}"
            )
        if lengths:
            size = next(iter(lengths.values()))
            theta = {name: value.expand(size) for name, value in theta.items()}
        return theta

    def encode(self, theta: Theta) -> Tensor:
        """Values `(*B)` by name to the code `(*B, K)`."""
        return torch.cat([p.encode(theta[name]) for name, p in self.items()], -1)

    def _split(self, code: Tensor) -> dict[str, Tensor]:
        parts = torch.split(code, [p.code_dim for p in self.values()], -1)
        return dict(zip(self, parts, strict=True))

    def decode(self, code: Tensor) -> Theta:
        """The code `(*B, K)` back to values by name."""
        return {name: self[name].decode(part) for name, part in self._split(code).items()}

    def coordinates(self, code: Tensor) -> Tensor:
        """The code `(*B, K)` to coordinates `(*B, len(self))` that are 0 at the anchor and in which θ adds."""
        return torch.stack([self[name].coordinate(part) for name, part in self._split(code).items()], -1)

    def plane(self, code: Tensor) -> Tensor:
        """What θ does to the image plane, relative to the anchor, parameters applied in order: `(*B, 2, 3)`."""
        total: Tensor | None = None
        for name, part in self._split(code).items():
            if self[name].affine is not None:
                here = self[name].plane(part)
                total = here if total is None else maps.compose(here, total)
        return maps.identity(code[..., 0]) if total is None else total

    @property
    def affine_names(self) -> tuple[str, ...]:
        """The maps of the plane that the parameters name, in order."""
        return tuple(p.affine for p in self.values() if p.affine is not None)

    def sample(self, size: int, generator: torch.Generator | None = None) -> Theta:
        """`size` settings drawn independently: name to `(size,)`."""
        return {name: p.sample(size, generator) for name, p in self.items()}

    def grid(self, size: int) -> Theta:
        """`size` values of each parameter, all combinations: name to `(N,)`."""
        axes = torch.meshgrid(*[p.grid(size) for p in self.values()], indexing="ij")
        return {name: axis.flatten() for name, axis in zip(self, axes, strict=True)}

    def config(self) -> dict[str, dict[str, Any]]:
        """Plain data, for JSON."""
        return {name: p.config() for name, p in self.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Mapping[str, Any]]) -> ParameterSpace:
        """The way back from [`config`][weightmorph.ParameterSpace.config]."""
        parameters: dict[str, Parameter] = {}
        for name, entry in config.items():
            fields = dict(entry)
            kind = fields.pop("type", None)
            if kind not in _KINDS:
                raise ParameterError(f"parameter {name!r}: unknown type {kind!r}; known: {', '.join(_KINDS)}")
            parameters[name] = _KINDS[kind](**fields)
        return cls(parameters)

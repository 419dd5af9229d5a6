"""A number within bounds, on a linear scale or a logarithmic one."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import ParameterError, ParameterValueError
from .base import Parameter, brief, require_numbers

__all__ = ["Interval", "LogInterval"]


@dataclass(frozen=True)
class _Range(Parameter):
    """The base of Interval and LogInterval: two ends, an anchor between them, a polynomial code."""

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
        # Written out because the method `encode` and the argument of that name need different fields.
        name = type(self).__name__
        require_numbers(name, low=low, high=high, **({} if anchor is None else {"anchor": anchor}))
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
        """The coordinate back to the value."""

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
    r"""A quantity between two ends, on a linear scale.

    $$c(\theta) = (u, u^2, \dots, u^n), \qquad u = (\theta - \theta_0) / \max(h - \theta_0,\ \theta_0 - l)$$

    Args:
        low: $l$.
        high: $h$.
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
    r"""A positive quantity between two ends, on a logarithmic scale: zoom, exposure, ISO.

    $$c(\theta) = (u, u^2, \dots, u^n), \qquad u = \log(\theta / \theta_0) / \max(\log(h / \theta_0),\
    \log(\theta_0 / l))$$

    Args:
        low: $l$, above 0.
        high: $h$.
        anchor: $\theta_0$; unless given, 1 where the range contains it, otherwise `low`.
        unit: for messages and reports.
        encode: `"polynomial"` as above, or `"raw"`: the code is the value itself.
        order: $n$, the highest power.
        affine: the plane's map, e.g. `"zoom"`.

    Shapes:
        values `(*B)` -> code `(*B, n)`, or `(*B, 1)` when raw.

    Example:
        >>> LogInterval(0.5, 2.0).grid(3).tolist()
        [0.5, 1.0, 2.0]
    """

    _neutral: ClassVar[float] = 1.0
    log_scale: ClassVar[bool] = True

    def __init__(self, low: float, *args: Any, **kwargs: Any) -> None:
        require_numbers("LogInterval", low=low)
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

    def mirrored(self, value: Tensor) -> Tensor:
        return self.anchor_value * self.anchor_value / value

    def check(self, name: str, value: Tensor) -> None:
        if bool((value <= 0).any()):
            raise ParameterValueError(f"parameter {name!r}: expected positive values, got {brief(value)}")
        super().check(name, value)

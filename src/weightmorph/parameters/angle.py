"""A direction on the circle."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ParameterError
from .base import Parameter, require_numbers

__all__ = ["Angle"]


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
        require_numbers("Angle", anchor=self.anchor)
        if not math.isfinite(self.anchor):
            raise ParameterError(f"Angle: anchor must be finite, got {self.anchor!r}")

    @property
    def turn(self) -> float:
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

    def distance(self, a: Tensor, b: Tensor | float) -> Tensor:
        away = torch.remainder(a - b, self.turn)
        return torch.minimum(away, self.turn - away)

    @property
    def example(self) -> str:
        return f"{self.anchor_value + self.turn / 12:.4g}"

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(size, generator=generator) * self.turn + self.anchor

    def grid(self, size: int) -> Tensor:
        return torch.arange(size, dtype=torch.float32) * (self.turn / size) + self.anchor

    def spaced(self, size: int) -> Tensor:
        return torch.arange(size, dtype=torch.float64) * (self.turn / size) + self.anchor

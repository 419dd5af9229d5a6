"""One of a few names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ParameterError, ParameterValueError, near
from .base import Parameter, Value, brief

__all__ = ["Categorical"]


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
    def choices(self) -> tuple[str, ...]:
        return self.names

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
                f"got {brief(value)}"
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

    def distance(self, a: Tensor, b: Tensor | float) -> Tensor:
        there = b.round() if isinstance(b, Tensor) else round(b)
        return (a.round() != there).to(a.dtype)

    def format(self, value: float, digits: int = 4, *, unit: bool = True) -> str:
        return self.names[round(value)]

    @property
    def extent(self) -> str:
        return ", ".join(self.names)

    @property
    def example(self) -> str:
        return repr(self.names[-1])

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(len(self.names), (size,), generator=generator).to(torch.float32)

    def grid(self, size: int) -> Tensor:
        """All settings, whatever `size` says."""
        return torch.arange(len(self.names), dtype=torch.float32)

    def spaced(self, size: int) -> Tensor:
        return self.grid(size)[:size].double()

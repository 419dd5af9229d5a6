"""The figures of an evaluation: rows, the grid, and how the metric is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import near
from ..parameters import ParameterSpace

__all__ = ["IMAGE", "Figures", "Role", "Row", "listing"]

Role = Literal["conditioned", "frozen", "inverse", "other", "offset", "inferred"]

IMAGE = "θ inferred per image"
"""The name of the row in which θ is inferred for each image by itself."""


@dataclass(frozen=True)
class Row:
    """The scores and costs of one alternative.

    Attributes:
        name: as the table shows it.
        role: `"conditioned"`, `"frozen"`, `"inverse"`, `"other"`, `"offset"` (the conditioned network, given a wrong
            θ) or `"inferred"` (the same, with θ estimated from the images).
        values: the metric's mean over the images, one per setting of the grid.
        clean: the same on the untransformed images, at the anchor.
        standard_error: of `mean`, from the spread over images of each image's mean over the grid.
        trainable: numbers that were trained; None if unknown.
        seconds: of training; None if unknown.
        stored: bytes to be kept beside the base; None if unknown.
        needs_theta: whether θ must be supplied: always to `"conditioned"` and `"inverse"`, never to `"inferred"`.
        off: of inferred values, the median distance from the truth by parameter, in its unit; of a Categorical the
            share that was wrong.
        abstained: the share of inferred values that were abstained from.
        cost: time of a call with one θ for the batch, relative to the frozen network's, weights that depend on θ being
            prepared before; None if not measured.
        cost_each: the same with another θ for each image; None if not measured or not possible.

    Example:
        >>> row = Row("frozen", "frozen", values=(1.0, 0.5), clean=1.0, standard_error=0.01)
        >>> row.mean, row.worst, row.worst_at
        (0.75, 0.5, 1)
    """

    name: str
    role: Role
    values: tuple[float, ...]
    clean: float
    standard_error: float
    trainable: int | None = None
    seconds: float | None = None
    stored: int | None = None
    needs_theta: bool = False
    off: Mapping[str, float] | None = None
    abstained: float | None = None
    cost: float | None = dataclasses.field(default=None, compare=False)
    cost_each: float | None = dataclasses.field(default=None, compare=False)

    @property
    def mean(self) -> float:
        """The mean over the grid."""
        return math.fsum(self.values) / len(self.values)

    @property
    def worst(self) -> float:
        """The lowest value on the grid."""
        return min(self.values)

    @property
    def worst_at(self) -> int:
        """The first setting with the lowest value, as an index into the grid."""
        return self.values.index(self.worst)


@dataclass(frozen=True)
class Figures:
    """The fields of an [`Evaluation`][weightmorph.Evaluation], which documents them, and what they imply."""

    parameters: Mapping[str, Mapping[str, Any]]
    grid: Mapping[str, tuple[float, ...]]
    rows: tuple[Row, ...]
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metric: str = "accuracy"
    images: int = 0
    seed: int = 0
    errors: tuple[tuple[float, ...], ...] = ()
    about: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        names = [row.name for row in self.rows]
        reason = f"; it is absent: {self.absent[name]}" if name in self.absent else near(name, names)
        raise KeyError(f"no row {name!r} among {', '.join(names)}{reason}")

    @property
    def ours(self) -> Row:
        """The conditioned network's row."""
        return next(row for row in self.rows if row.role == "conditioned")

    @property
    def space(self) -> ParameterSpace:
        """The parameters, rebuilt from their configuration."""
        return ParameterSpace.from_config(self.parameters)

    @property
    def settings(self) -> tuple[dict[str, float], ...]:
        """The settings of the grid, one by one."""
        return tuple(dict(zip(self.grid, values, strict=True)) for values in zip(*self.grid.values(), strict=True))

    def noise(self, one: Row, other: Row) -> float:
        """Two standard errors of the difference of two rows' means."""
        if self.errors:
            return 2 * self.errors[self.rows.index(one)][self.rows.index(other)]
        return 2 * math.hypot(one.standard_error, other.standard_error)

    def text(self, value: float, *, spread: bool = False, unit: bool = True) -> str:
        """A value of the metric as text: an accuracy in per cent, a `spread` of it in points, anything else as it is.

        Example:
            >>> Figures({}, {}, (), images=1000).text(0.9844)
            '98.4 %'
        """
        if self.metric != "accuracy":
            return f"{value:.{2 if spread else 4}g}"
        digits = f"{100 * value:.{1 if self.images < 5000 else 2}f}"
        if spread and not float(digits):
            digits = f"{100 * value:.1g}"
        return f"{digits} {'points' if spread else '%'}" if unit else digits

    def at(self, index: int) -> str:
        """A setting of the grid as text.

        Example:
            >>> from weightmorph import Angle
            >>> space = ParameterSpace({"angle": Angle("deg")})
            >>> Figures(space.config(), {"angle": (0.0, 90.0)}, ()).at(1)
            '90°'
        """
        return self.space.format(self.settings[index])


def listing(names: Iterable[str]) -> str:
    """Names as a sentence has them.

    Example:
        >>> listing(["angle", "blur", "zoom"])
        'angle, blur and zoom'
    """
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last

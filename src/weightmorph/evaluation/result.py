"""What an evaluation found, as plain data: figures, tables, JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError, near
from ..io import write_atomically
from ..parameters import Parameter, ParameterSpace
from .advice import listing, preferred, sentence, untold

__all__ = ["Evaluation", "Role", "Row", "setting_text"]

Role = Literal["conditioned", "frozen", "inverse", "other", "offset", "inferred"]

FORMAT = "weightmorph evaluation 1"
"""What a saved evaluation begins with."""


@dataclass(frozen=True)
class Row:
    """What one alternative reached.

    Attributes:
        name: as the table shows it.
        role: `"conditioned"`, `"frozen"`, `"inverse"`, `"other"`, `"offset"` (the conditioned network, told a wrong θ)
            or `"inferred"` (the same, told none).
        values: the metric's mean over the images, one per setting of the grid.
        clean: the same on the untransformed images, at the anchor.
        standard_error: of `mean`, from the spread over images of each image's mean over the grid.
        trainable: numbers that were trained; None if unknown.
        seconds: of training; None if unknown.
        stored: bytes to be kept beside the base; None if unknown.
        told: must the row be told θ? Never is an `"inferred"` one, always a `"conditioned"` or `"inverse"` one.
        off: of inferred values, the median distance from the truth by parameter, in its unit; of a Categorical the
            share that was wrong.
        abstained: the share of inferred values that were abstained from.
        cost: time of a call with one θ for the batch, relative to the frozen network's; weights that depend on θ were
            made before. None if not measured.
        cost_each: the same with another θ for each image; None if not measured or not possible.
    """

    name: str
    role: Role
    values: tuple[float, ...]
    clean: float
    standard_error: float
    trainable: int | None = None
    seconds: float | None = None
    stored: int | None = None
    told: bool = False
    off: Mapping[str, float] | None = None
    abstained: float | None = None
    cost: float | None = dataclasses.field(default=None, compare=False)
    cost_each: float | None = dataclasses.field(default=None, compare=False)

    @property
    def mean(self) -> float:
        """Over the grid."""
        return math.fsum(self.values) / len(self.values)

    @property
    def worst(self) -> float:
        """The lowest value on the grid."""
        return min(self.values)

    @property
    def worst_at(self) -> int:
        """The first setting at which it is reached, as an index into the grid."""
        return self.values.index(self.worst)


@dataclass(frozen=True)
class Evaluation:
    r"""What [`evaluate`][weightmorph.evaluate] found, as plain data.

    Two evaluations are equal if they agree in all that is repeatable; times and `about` are not compared.

    Attributes:
        parameters: the space's `config()`.
        grid: name to values; setting number i is the i-th value of each.
        rows: the alternatives; `evaluation["frozen"]` finds one by name.
        absent: baselines that could not be run, and why.
        metric: its name. Higher is better.
        images: how many were judged.
        seed: of the random numbers that the input transform drew.
        errors: the standard error of the difference of two rows' means, paired image by image; by row and column.
            Empty if unknown: the rows are then taken to be independent.
        about: how it was made: versions, device, threads, date …

    Example:
        >>> ours = Row("conditioned", "conditioned", (0.98, 0.96), 0.99, 0.002, trainable=2916)
        >>> frozen = Row("frozen", "frozen", (0.99, 0.21), 0.99, 0.004, trainable=0)
        >>> from weightmorph import Angle
        >>> space = ParameterSpace({"angle": Angle("deg")})
        >>> found = Evaluation(space.config(), {"angle": (0.0, 90.0)}, (ours, frozen), images=1000)
        >>> print(found.table())  # doctest: +NORMALIZE_WHITESPACE
                     mean          worst          clean   trainable  training  time  time, θ per image
        ----------------------------------------------------------------------------------------------
        conditioned  97.0 ± 0.2 %  96.0 % at 90°  99.0 %      2,916         –     –                  –
        frozen       60.0 ± 0.4 %  21.0 % at 90°  99.0 %          0         –     –                  –
        accuracy on 1,000 images at 2 settings of angle; ± one standard error
        >>> print(found.advice)  # doctest: +NORMALIZE_WHITESPACE
        Prefer the conditioned network: it reaches 97.0 % on average over angle (96.0 % at worst) against 60.0 % for the
        frozen network, a difference beyond the noise of ±0.9 points; its clean accuracy is 99.0 %, and it has 2,916
        trainable numbers.
    """

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
        """The parameters, made again."""
        return ParameterSpace.from_config(self.parameters)

    @property
    def settings(self) -> tuple[dict[str, float], ...]:
        """The grid's settings one by one."""
        return tuple(dict(zip(self.grid, values, strict=True)) for values in zip(*self.grid.values(), strict=True))

    def noise(self, one: Row, other: Row) -> float:
        """Two standard errors of the difference of two rows' means."""
        if self.errors:
            return 2 * self.errors[self.rows.index(one)][self.rows.index(other)]
        return 2 * math.hypot(one.standard_error, other.standard_error)

    @property
    def preferred(self) -> Row:
        """The alternative to prefer, by the rule of [`preferred`][weightmorph.evaluation.preferred]."""
        return preferred(self)

    @property
    def advice(self) -> str:
        """Which alternative to prefer here, by that rule, and why: one plain sentence.

        One more, if θ was inferred as well: what to prefer where nobody knows it.
        """
        return " ".join(filter(None, (sentence(self), untold(self))))

    def text(self, value: float, *, spread: bool = False, unit: bool = True) -> str:
        """A value of the metric as text: an accuracy in per cent, a `spread` of it in points, anything else as it is.

        Example:
            >>> Evaluation({}, {}, (), images=1000).text(0.9844)
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
            >>> Evaluation(space.config(), {"angle": (0.0, 90.0)}, ()).at(1)
            '90°'
        """
        return setting_text(self.space, self.settings[index])

    def cells(self) -> tuple[tuple[str, ...], ...]:
        """The table's heading and rows, as text."""
        head = ["", "mean", "worst", "clean", "trainable", "training", "time", "time, θ per image"]
        stored = any(row.stored is not None for row in self.rows)
        if stored:
            head.insert(5, "stored")
        body = []
        for row in self.rows:
            mean = f"{self.text(row.mean, unit=False)} ± {self.text(row.standard_error, spread=True, unit=False)}"
            line = [
                row.name,
                f"{mean} %" if self.metric == "accuracy" else mean,
                f"{self.text(row.worst)} at {self.at(row.worst_at)}",
                self.text(row.clean),
                "–" if row.trainable is None else f"{row.trainable:,}",
                "–" if row.seconds is None else f"{row.seconds:,.{1 if 0 < row.seconds < 10 else 0}f} s",
                "–" if row.cost is None else f"{row.cost:.2f}×",
                "–" if row.cost_each is None else f"{row.cost_each:.2f}×",
            ]
            if stored:
                line.insert(5, "–" if row.stored is None else _bytes(row.stored))
            body.append(tuple(line))
        return (tuple(head), *body)

    def remarks(self) -> tuple[str, ...]:
        """What the table has to be read with."""
        timed = "; time relative to the frozen network" if any(row.cost is not None for row in self.rows) else ""
        first = (
            f"{self.metric} on {self.images:,} images at {len(self.settings):,} settings of {listing(self.grid)}; "
            f"± one standard error{timed}"
        )
        gone = [f"{name} is absent: {reason}" for name, reason in self.absent.items()]
        return first, *gone, *(self._told(row) for row in self.rows if row.off is not None)

    def _told(self, row: Row) -> str:
        """How good the estimates of a row were."""
        away = []
        for name, value in (row.off or {}).items():
            parameter = self.space[name]
            if parameter.discrete:
                away.append(f"{name} wrong for {100 * value:.1f} %")
            else:
                away.append(f"{name} off by {parameter.format(float(f'{value:.2g}'))} in the median")
        left = f", {100 * row.abstained:.1f} % abstained from" if row.abstained is not None else ""
        return f"{row.name}: {listing(away)}{left}"

    def table(self) -> str:
        """The rows as aligned text."""
        cells = self.cells()
        widths = [max(len(line[c]) for line in cells) for c in range(len(cells[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 4 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([*lines, *self.remarks()])

    def markdown(self) -> str:
        """The rows as a table in Markdown."""
        head, *body = [[cell.replace("|", "\\|") for cell in line] for line in self.cells()]
        rule = ["---"] * 4 + ["--:"] * (len(head) - 4)
        lines = ["| " + " | ".join(line) + " |" for line in (head, rule, *body)]
        return "\n".join([*lines, "", *(f"{remark}." for remark in self.remarks())])

    def to_json(self) -> str:
        """Everything as JSON text, from which [`from_json`][weightmorph.Evaluation.from_json] makes it again.

        Example:
            >>> found = Evaluation({}, {"angle": (0.0,)}, (Row("frozen", "frozen", (1.0,), 1.0, 0.0),))
            >>> Evaluation.from_json(found.to_json()) == found
            True
        """
        entries = {"format": FORMAT} | dataclasses.asdict(self)
        return json.dumps(entries, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """The way back.

        Raises:
            CheckpointError: if the text is not that of an evaluation.
        """
        try:
            entries = json.loads(text)
            if entries.pop("format") != FORMAT:
                raise KeyError("format")
            entries["rows"] = tuple(Row(**row | {"values": tuple(row["values"])}) for row in entries["rows"])
            entries["grid"] = {name: tuple(values) for name, values in entries["grid"].items()}
            entries["errors"] = tuple(map(tuple, entries["errors"]))
            return cls(**entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"expected the text that Evaluation.to_json gives, got {text[:40]!r} ({type(error).__name__}: {error})"
            ) from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_json()` to a file, whole or not at all."""
        return write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file does not hold an evaluation.
        """
        return cls.from_json(Path(path).read_text("utf-8"))


def _bytes(number: int) -> str:
    """A size as a reader wants it.

    Example:
        >>> _bytes(0), _bytes(1561640)
        ('0', '1.56 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B" if number else "0"


def setting_text(space: Mapping[str, Parameter], theta: Mapping[str, float]) -> str:
    """Values of θ as a reader wants them: `30°`, `2.5 px`, `night`; with several parameters, after their names.

    Example:
        >>> from weightmorph import Angle
        >>> setting_text({"angle": Angle("deg")}, {"angle": 30.0})
        '30°'
    """
    return ParameterSpace(space).format(theta)

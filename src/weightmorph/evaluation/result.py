"""The result of an evaluation: its advice, its tables, and its JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..io import write_atomically
from ..parameters import Parameter, ParameterSpace
from .advice import preferred, sentence, unknown_theta
from .figures import Figures, Row, listing

__all__ = ["Evaluation", "setting_text"]

FORMAT = "weightmorph evaluation 1"
"""The first entry of a saved evaluation."""


@dataclass(frozen=True)
class Evaluation(Figures):
    r"""Scores of a conditioned network and its alternatives over a grid of θ, as plain data.

    [`evaluate`][weightmorph.evaluate] gives one. Two evaluations are equal if they agree in all that is repeatable;
    times and `about` are not compared.

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
        about: versions, device, threads, date, and how the network was conditioned.

    Example:
        >>> from weightmorph import Angle
        >>> ours = Row("conditioned", "conditioned", (0.98, 0.96), 0.99, 0.002, trainable=2916)
        >>> frozen = Row("frozen", "frozen", (0.99, 0.21), 0.99, 0.004, trainable=0)
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

    @property
    def preferred(self) -> Row:
        """The alternative to prefer, by the rule of [`preferred`][weightmorph.evaluation.preferred]."""
        return preferred(self)

    @property
    def advice(self) -> str:
        """Which alternative to prefer here, by that rule, and why: one plain sentence.

        If θ was inferred as well, a second sentence says what to prefer where nobody knows it.
        """
        return " ".join(filter(None, (sentence(self), unknown_theta(self))))

    def cells(self) -> tuple[tuple[str, ...], ...]:
        """The table's heading and rows, as text."""
        head = ["", "mean", "worst", "clean", "trainable", "training", "time", "time, θ per image"]
        stored = any(row.stored is not None for row in self.rows)
        if stored:
            head.insert(5, "stored")
        return (tuple(head), *(self._cells(row, stored) for row in self.rows))

    def _cells(self, row: Row, stored: bool) -> tuple[str, ...]:
        mean = f"{self.text(row.mean, unit=False)} ± {self.text(row.standard_error, spread=True, unit=False)}"
        cells = [
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
            cells.insert(5, "–" if row.stored is None else _bytes(row.stored))
        return tuple(cells)

    def remarks(self) -> tuple[str, ...]:
        """Lines below the table: the data, absent rows, and how far inferred values were from the truth."""
        timed = "; time relative to the frozen network" if any(row.cost is not None for row in self.rows) else ""
        first = (
            f"{self.metric} on {self.images:,} images at {len(self.settings):,} settings of {listing(self.grid)}; "
            f"± one standard error{timed}"
        )
        absent = [f"{name} is absent: {reason}" for name, reason in self.absent.items()]
        return first, *absent, *(self._estimates(row) for row in self.rows if row.off is not None)

    def _estimates(self, row: Row) -> str:
        """How far a row's estimates of θ were from the truth."""
        parts = []
        for name, value in (row.off or {}).items():
            parameter = self.space[name]
            if parameter.discrete:
                parts.append(f"{name} wrong for {100 * value:.1f} %")
            else:
                rounded = float(f"{value:.2g}")
                parts.append(f"{name} off by {parameter.format(rounded)} in the median")
        abstained = f", {100 * row.abstained:.1f} % abstained from" if row.abstained is not None else ""
        return f"{row.name}: {listing(parts)}{abstained}"

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
        """Everything as JSON text, which [`from_json`][weightmorph.Evaluation.from_json] reads.

        Example:
            >>> found = Evaluation({}, {"angle": (0.0,)}, (Row("frozen", "frozen", (1.0,), 1.0, 0.0),))
            >>> Evaluation.from_json(found.to_json()) == found
            True
        """
        entries = {"format": FORMAT} | dataclasses.asdict(self)
        entries["rows"] = [{NAMES.get(key, key): value for key, value in row.items()} for row in entries["rows"]]
        return json.dumps(entries, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Read the text that `to_json` gives.

        Raises:
            CheckpointError: if the text is not that of an evaluation.
        """
        fields = {saved: name for name, saved in NAMES.items()}
        try:
            entries = json.loads(text)
            if entries.pop("format") != FORMAT:
                raise KeyError("format")
            rows = [{fields.get(key, key): value for key, value in row.items()} for row in entries["rows"]]
            entries["rows"] = tuple(Row(**row | {"values": tuple(row["values"])}) for row in rows)
            entries["grid"] = {name: tuple(values) for name, values in entries["grid"].items()}
            entries["errors"] = tuple(map(tuple, entries["errors"]))
            return cls(**entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"expected the text that Evaluation.to_json gives, got {text[:40]!r} ({type(error).__name__}: {error})"
            ) from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_json()` to a file, atomically."""
        return write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read a file that `save` wrote.

        Raises:
            CheckpointError: if the file does not hold an evaluation.
        """
        return cls.from_json(Path(path).read_text("utf-8"))


NAMES = {"needs_theta": "told"}  # a name in saved files
"""Fields of a row that have another name in a saved evaluation."""


def _bytes(number: int) -> str:
    """A size in bytes as text.

    Example:
        >>> _bytes(0), _bytes(1561640)
        ('0', '1.56 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B" if number else "0"


def setting_text(space: Mapping[str, Parameter], theta: Mapping[str, float]) -> str:
    """A setting as text, like [`ParameterSpace.format`][weightmorph.ParameterSpace.format].

    Example:
        >>> from weightmorph import Angle
        >>> setting_text({"angle": Angle("deg")}, {"angle": 30.0})
        '30°'
    """
    return ParameterSpace(space).format(theta)

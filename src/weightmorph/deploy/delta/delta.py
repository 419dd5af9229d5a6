"""One setting of a model as the difference to its base, in memory and in files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...model import Conditioned
from ...parameters import Value
from ...storage import pack, save, unpack
from .book import DeltaBook
from .change import Change
from .files import Origin, changes_from, expressions, readable, same

__all__ = ["Delta", "delta_of"]


@dataclass(frozen=True, eq=False, repr=False)
class Delta:
    r"""One setting θ of a model, as what it changes in the base: $W(\theta) - W$ in the form in which it was made.

    Only tensors that differ from the base's are in it. Of a low-rank update the factors $U$, $g(\theta)$ and $V$ are
    kept, of row scales the vector, of mixed taps the small matrix $M$ (for $W M$ is made from the base's own $W$); what
    has no structure is kept as a tensor. [`apply_delta`][weightmorph.apply_delta] puts it into a plain copy of the
    base, which then has the weights of `model.bake(θ)`, bit for bit where torch computes as it did there and to
    rounding elsewhere.

    A file of its own ([`save`][weightmorph.Delta.save]) needs nothing else, and is as large as the factors are: 6.3 %
    of EfficientNet-Lite0 for rank 8. What does not follow θ can be put into a
    [`DeltaBook`][weightmorph.DeltaBook] once, and a setting is then a few kilobytes.

    Attributes:
        theta: the setting, in the parameters' own units; of a `Categorical` the index.
        changes: by the tensor's name.
        origin: which base, and what θ is.

    Example:
        >>> import weightmorph as wm
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2, hidden=4))
        >>> for p in model.parameters():
        ...     _ = nn.init.normal_(p)
        >>> delta = Delta.of(model, angle=30.0)
        >>> delta
        Delta(angle=30.0: 2 tensors of Sequential, 1,936 bytes)
        >>> undo = wm.apply_delta(net, delta)
        >>> bool((net[0].weight == model.bake(angle=30.0)[0].weight).all())
        True
        >>> undo()
    """

    theta: Mapping[str, float]
    changes: Mapping[str, Change]
    origin: Origin

    @classmethod
    def of(cls, model: Conditioned, /, **theta: Value) -> Delta:
        """Of one setting: one value per parameter, as `bake` takes it.

        Raises:
            ParameterError: if θ is missing, unknown, or not one value per parameter.
        """
        return delta_of(model, theta, Origin.of(model))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in a file of its own."""
        return sum(t.nbytes for change in self.changes.values() for t in change.smallest().tensors().values())

    def save(self, path: str | os.PathLike[str], *, book: DeltaBook | None = None) -> Path:
        """Write it to one safetensors file, whole or not at all.

        Args:
            path: where to, customarily `*.safetensors`; a file of that name is replaced.
            book: the model's [`DeltaBook`][weightmorph.DeltaBook]: what is in it is left out, and whoever reads the
                file needs the book as well.

        Returns:
            the path.

        Raises:
            CheckpointError: if the book is of another base, or was made before the model was trained on.
            MissingDependencyError: if safetensors is not installed.
            OSError: if the file cannot be written.
        """
        if book is not None:
            return save(path, book._page(self))
        changes = {name: change.smallest() for name, change in self.changes.items()}
        data = self.origin.data() | {
            "theta": dict(self.theta),
            "changes": {name: change.data() for name, change in changes.items()},
        }
        tensors = {f"{name}/{k}": t for name, change in changes.items() for k, t in change.tensors().items()}
        return save(path, pack("delta", data, tensors, "saving a delta"))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, book: DeltaBook | None = None) -> Delta:
        """Read what `save` wrote. Nothing in a file is executed.

        Args:
            path: the file.
            book: for a file that was saved with one; unless given, it is looked for beside the file, under the name
                that it had.

        Raises:
            CheckpointError: if the file is damaged, incomplete, of a newer format, or no delta; or if its book is
                missing or another one.
            MissingDependencyError: if safetensors is not installed.
            OSError: if the file cannot be read.
        """
        data, tensors = unpack(path, ("delta", "page"), "loading a delta")
        with readable(path):
            theta = {str(name): float(value) for name, value in data["theta"].items()}
            if data["kind"] == "page":
                book = DeltaBook._for(path, data["book"]) if book is None else book
                return cls(theta, book._changes(data, tensors), book.origin)
            return cls(theta, changes_from(data["changes"], tensors), Origin.from_data(data))

    def __repr__(self) -> str:
        setting = ", ".join(f"{name}={value}" for name, value in self.theta.items())
        return f"Delta({setting}: {len(self.changes)} tensors of {self.origin.network}, {self.nbytes:,} bytes)"


def delta_of(model: Conditioned, theta: Mapping[str, Value], origin: Origin) -> Delta:
    """`Delta.of` with the fingerprint taken before: for many settings of one model."""
    made = model.at(**theta)  # W(θ) as `bake` makes it; says what is wrong with θ
    changes = {
        name: Change.of(expression)
        for name, expression in expressions(model, theta).items()
        if not same(made.get_parameter(name), expression.base)
    }
    told = {name: float(parameter.tensor(name, theta[name])) for name, parameter in model.space.items()}
    return Delta(told, changes, origin)

"""One setting of a model as the difference to its base, in memory and in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...model import Conditioned
from ...parameters import Value
from ...storage import Fingerprint, pack, save, unpack, versions
from ...storage.container import lacking
from .change import Change

__all__ = ["Delta", "Origin", "delta_of"]


@dataclass(frozen=True, eq=False)
class Origin:
    """The model that a delta comes from.

    Attributes:
        base: the fingerprint of the network that the delta changes.
        network: the name of its class, for people.
        parameters: the space's `config()`, which says what θ is.
    """

    base: Fingerprint
    network: str
    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, model: Conditioned) -> Origin:
        """The origin of a model's deltas."""
        return cls(model.fingerprint(), model.spec.network, model.space.config())

    def data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        base = {"network": self.network, "fingerprint": str(self.base), "tensors": dict(self.base.tensors)}
        return {"written_by": versions(), "parameters": dict(self.parameters), "base": base}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Origin:
        """The inverse of `data`."""
        base = Fingerprint.from_data(data["base"]["tensors"])
        return cls(base, str(data["base"]["network"]), dict(data["parameters"]))


@dataclass(frozen=True, eq=False, repr=False)
class Delta:
    r"""One setting θ of a model as the change that it makes to the base: $W(\theta) - W$, with its structure kept.

    A delta holds only tensors that differ from the base's. A low-rank update is kept as its factors $U$, $g(\theta)$
    and $V$, row scales as a vector, mixed taps as the small matrix $M$ (because $W M$ is made from the base's own $W$),
    and a change without structure as a tensor. [`apply_delta`][weightmorph.apply_delta] puts a delta into a plain copy
    of the base. The copy then has the weights of `model.bake(θ)`: bit for bit on the same machine and release of torch,
    and up to rounding elsewhere.

    The file ([`save`][weightmorph.Delta.save]) needs nothing else, and is as large as the factors: 6.3 % of
    EfficientNet-Lite0 for rank 8.

    Attributes:
        theta: the setting, in the parameters' own units; for a `Categorical`, the index.
        changes: by the tensor's name.
        origin: the base, and what θ is.

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
        """The delta of one setting, given as `bake` takes it: one value per parameter.

        Raises:
            ParameterError: if θ is missing, unknown, or not one value per parameter.

        Example:
            >>> import weightmorph as wm
            >>> model = wm.condition(torch.nn.Linear(4, 2), {"angle": wm.Angle("deg")}, wm.LowRank(1))
            >>> Delta.of(model, angle=0.0)  # the anchor changes nothing
            Delta(angle=0.0: 0 tensors of Linear, 0 bytes)
        """
        return delta_of(model, theta, Origin.of(model))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in the file."""
        return sum(t.nbytes for change in self.changes.values() for t in change.smallest().tensors().values())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the delta to one safetensors file, atomically.

        Args:
            path: where to, customarily `*.safetensors`; a file of that name is replaced.

        Returns:
            the path.

        Raises:
            MissingDependencyError: if safetensors is not installed.
            OSError: if the file cannot be written.

        Example:
            >>> import tempfile, weightmorph as wm
            >>> model = wm.condition(torch.nn.Linear(4, 2), {"angle": wm.Angle("deg")}, wm.LowRank(1))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Delta.load(Delta.of(model, angle=0.0).save(f"{folder}/zero.safetensors")).theta
            {'angle': 0.0}
        """
        changes = {name: change.smallest() for name, change in self.changes.items()}
        data = self.origin.data() | {
            "theta": dict(self.theta),
            "changes": {name: change.data() for name, change in changes.items()},
        }
        tensors = {f"{name}/{k}": t for name, change in changes.items() for k, t in change.tensors().items()}
        return save(path, pack("delta", data, tensors, "saving a delta"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Delta:
        """Read a file that `save` wrote. Nothing in a file is executed.

        Raises:
            CheckpointError: if the file is damaged, incomplete, of a newer format, or no delta.
            MissingDependencyError: if safetensors is not installed.
            OSError: if the file cannot be read.
        """
        data, tensors = unpack(path, "delta", "loading a delta")
        with _header_errors(path):
            theta = {str(name): float(value) for name, value in data["theta"].items()}
            by_slot: dict[str, dict[str, Tensor]] = {name: {} for name in data["changes"]}
            for key, value in tensors.items():
                name, _, place = key.rpartition("/")
                by_slot[name][place] = value
            changes = {name: Change.from_data(entry, by_slot[name]) for name, entry in data["changes"].items()}
            return cls(theta, changes, Origin.from_data(data))

    def __repr__(self) -> str:
        setting = ", ".join(f"{name}={value}" for name, value in self.theta.items())
        return f"Delta({setting}: {len(self.changes)} tensors of {self.origin.network}, {self.nbytes:,} bytes)"


def delta_of(model: Conditioned, theta: Mapping[str, Value], origin: Origin) -> Delta:
    """`Delta.of` for a known origin, so that many settings of one model need one fingerprint."""
    net = model.at(**theta)  # checks θ; at the anchor its weights are the base's own
    with torch.no_grad():
        changes = {
            name: Change.of(expression)
            for name, expression in model.expressions(**theta).items()
            if not _same_bits(net.get_parameter(name), expression.base)
        }
    setting = {name: float(parameter.tensor(name, theta[name])) for name, parameter in model.space.items()}
    return Delta(setting, changes, origin)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Equality in which a zero's sign counts."""
    if one is other:
        return True
    if one.shape != other.shape:
        return False
    return torch.equal(*(t.detach().contiguous().flatten().view(torch.uint8) for t in (one, other)))


@contextmanager
def _header_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn every error that an edited header can cause into one kind, with the path."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header cannot be read: {lacking(error)}") from error

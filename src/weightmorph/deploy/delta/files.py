"""What the files of deltas and of their books have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...model import Conditioned
from ...parameters import Value
from ...storage import Fingerprint, versions
from ...storage.container import lacking
from ...terms import WeightExpression
from .change import Change

__all__ = ["Origin", "changes_from", "expressions", "readable", "same"]


@dataclass(frozen=True, eq=False)
class Origin:
    """Where deltas come from.

    Attributes:
        base: the fingerprint of the network that they change.
        network: its class's name, for people.
        parameters: what θ is, as the space's `config()`.
    """

    base: Fingerprint
    network: str
    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, model: Conditioned) -> Origin:
        """That of a model's settings."""
        return cls(model.fingerprint(), model.spec.network, model.space.config())

    def data(self) -> dict[str, Any]:
        """For JSON."""
        base = {"network": self.network, "fingerprint": str(self.base), "tensors": dict(self.base.tensors)}
        return {"written_by": versions(), "parameters": dict(self.parameters), "base": base}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Origin:
        """The way back."""
        return cls(
            Fingerprint.from_data(data["base"]["tensors"]), str(data["base"]["network"]), dict(data["parameters"])
        )


def expressions(model: Conditioned, theta: Mapping[str, Value]) -> dict[str, WeightExpression]:
    """W(θ) of every slot, as `bake` has it made."""
    with torch.no_grad():
        return model.expressions(**theta)


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit: a zero's sign counts."""
    if one is other:
        return True
    if one.shape != other.shape:
        return False
    return torch.equal(*(t.detach().contiguous().flatten().view(torch.uint8) for t in (one, other)))


def changes_from(entries: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Change]:
    """The changes of a header, with their tensors, which are named `slot/piece.field`."""
    by_slot: dict[str, dict[str, Tensor]] = {name: {} for name in entries}
    for key, value in tensors.items():
        name, _, place = key.rpartition("/")
        by_slot[name][place] = value
    return {name: Change.from_data(entry, by_slot[name]) for name, entry in entries.items()}


@contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever an edited header makes of its own reader is said as one thing."""
    try:
        yield
    except CheckpointError as error:
        told = str(error)
        raise error if told.startswith(str(path)) else CheckpointError(f"{path}: {told}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header cannot be read: {lacking(error)}") from error

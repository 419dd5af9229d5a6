"""Everything of a model but its tensors and its base, and the file that holds it with the tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ParameterError
from ..io import plain
from ..parameters import ParameterSpace
from ..slots import Slot
from ..transforms.registry import Config
from .container import dtype_name, lacking, pack, save, unpack, versions
from .fingerprint import Fingerprint
from .layout import bounded, slot_data, slot_from

__all__ = ["Record", "read", "write"]

KINDS: Mapping[str, Any] = {
    "base": dict, "dtype": str, "folded": list | None, "memory_limit": int, "metrics": dict, "parameters": dict,
    "positions": dict | None, "selected": str, "slots": list, "transform": dict, "written_by": dict,
}  # fmt: skip
"""What a header says, and as what."""


@dataclass(frozen=True)
class Record:
    """Everything of a model but its tensors and its base.

    Attributes:
        space: the parameters.
        recipe: as [`describe`][weightmorph.transforms.registry.describe] gives it.
        slots: the conditioned tensors, with the taps and maps that an example showed.
        base: which network.
        network: its class's name, for people.
        selected: how the tensors were selected, for people.
        dtype: in which the transform computes.
        memory_limit: of the model.
        positions: output positions by slot, if an example was traced.
        folded: layers that move the batch axis, if an example was traced.
        estimator: the head that estimates θ, as its `config` says, if there is one.
        metrics: whatever the user wants to keep with the model.
        written_by: the versions of the libraries that wrote the file.
        plan: what the model measured about its own execution, if it did; plain data that another machine, or another
            release, may overlook.
    """

    space: ParameterSpace
    recipe: Config
    slots: tuple[Slot, ...]
    base: Fingerprint
    network: str
    selected: str
    dtype: torch.dtype
    memory_limit: int
    positions: Mapping[str, int] | None = None
    folded: tuple[str, ...] | None = None
    estimator: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    written_by: Mapping[str, str] = field(default_factory=lambda: versions())
    plan: Mapping[str, Any] | None = None

    def as_data(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "written_by": dict(self.written_by),
            "parameters": self.space.config(),
            "transform": self.recipe,
            "selected": self.selected,
            "slots": [slot_data(slot, whole=True) for slot in self.slots],
            "positions": self.positions,
            "folded": self.folded,
            "dtype": dtype_name(self.dtype),
            "memory_limit": self.memory_limit,
            **({} if self.estimator is None else {"estimator": dict(self.estimator)}),
            "metrics": dict(self.metrics),
            "base": {"network": self.network, "fingerprint": str(self.base), "tensors": dict(self.base.tensors)},
            "plan": None if self.plan is None else dict(self.plan),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Record:
        """The way back.

        Raises:
            KeyError, TypeError, ValueError: for data that are not a record.
        """
        for name, kind in KINDS.items():
            if not isinstance(data[name], kind):
                raise TypeError(f"{name!r} cannot be {data[name]!r:.80}")
        base = Fingerprint.from_data(data["base"]["tensors"])
        if not isinstance(data["base"]["network"], str):
            raise TypeError(f"the base's network cannot be {data['base']['network']!r:.80}")
        dtype = getattr(torch, data["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{data['dtype']!r} is no dtype")
        for entry in data["parameters"].values():
            bounded(entry, ("harmonics", "order"))
        for entry in data["transform"].get("parts", [data["transform"]]):
            bounded(entry, ("grow", "hidden", "rank", "dim"))
        plan, estimator = data.get("plan"), data.get("estimator")  # older files have neither
        if not isinstance(estimator, dict | None):
            raise TypeError(f"the estimator cannot be {estimator!r:.80}")
        return cls(
            space=ParameterSpace.from_config(data["parameters"]),
            recipe=data["transform"],
            slots=tuple(slot_from(entry) for entry in data["slots"]),
            base=base,
            network=data["base"]["network"],
            selected=data["selected"],
            dtype=dtype,
            memory_limit=data["memory_limit"],
            positions=data["positions"],
            folded=None if data["folded"] is None else tuple(data["folded"]),
            estimator=estimator,
            metrics=data["metrics"],
            written_by=data["written_by"],
            plan=plan if isinstance(plan, dict) else None,
        )


def write(path: str | os.PathLike[str], record: Record, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, or leave what was there.

    Args:
        path: where to.
        record: what the tensors belong to.
        state: the transform's `state_dict(keep_vars=True)`, in which a shared tensor is one object under many names.

    Raises:
        CheckpointError: if something cannot be stored as plain data.
        MissingDependencyError: if safetensors is not installed.
        OSError: if the file cannot be written.
    """
    data = plain(record.as_data())
    _check(record, data)
    save(path, pack("model", data, state))


def _check(record: Record, data: Mapping[str, Any]) -> None:
    """Refuse now what could not be read later."""
    try:
        again = ParameterSpace.from_config(data["parameters"])
    except (ParameterError, TypeError) as error:
        raise CheckpointError(f"the parameters cannot be stored as plain data: {error}") from error
    for name, parameter in record.space.items():
        if again[name] != parameter:
            raise CheckpointError(
                f"parameter {name!r}: a {type(parameter).__name__} of your own cannot be stored as plain data; "
                "condition on Angle, Interval, LogInterval or Categorical"
            )


def read(path: str | os.PathLike[str]) -> tuple[Record, dict[str, Tensor]]:
    """Read a checkpoint, complete or not at all.

    Returns:
        the record, and the transform's `state_dict` on the CPU.

    Raises:
        CheckpointError: if the file is cut short, damaged, incomplete, of a newer format, or not one of ours.
        MissingDependencyError: if safetensors is not installed.
        OSError: if it is not there or cannot be read.
    """
    data, tensors = unpack(path)
    try:
        return Record.from_data(data), tensors
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header cannot be read: {lacking(error)}") from error

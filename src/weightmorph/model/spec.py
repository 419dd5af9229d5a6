"""The facts of a model, listed once, and the file that holds them with the model's tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import storage
from ..base import Inspection
from ..errors import CheckpointError, ExecutionError, ParameterError
from ..execution import DEFAULT_MEMORY_LIMIT, MeasuredPlans
from ..io import plain
from ..parameters import KINDS, ParameterSpace
from ..slots import Slot
from ..storage import Fingerprint, slot_data, slot_from
from ..storage.container import dtype_name, lacking
from ..storage.layout import bounded
from ..transforms.registry import Config

__all__ = ["ModelSpec", "SpecifiedModule", "read", "write"]


@dataclass(frozen=True)
class ModelSpec:
    """What a model is, beside its base and its tensors.

    `condition` makes one, a [`Conditioned`][weightmorph.Conditioned] is built from one, `save` writes it into a file's
    header, and `load` and [`peek`][weightmorph.model.load.peek] read it back.

    Attributes:
        space: the parameters.
        recipe: the weight transform, as [`describe`][weightmorph.transforms.registry.describe] gives it.
        slots: the conditioned tensors by name, with the taps and maps that an example showed.
        network: the class of the base, by name.
        dtype: in which the transform computes.
        selected: how the tensors were selected, in words.
        inspection: what the example showed; None without one. A file holds the output positions of it.
        merged: slots whose layers read an input that does not have the batch first; None without an example.
        memory_limit: bytes that one layer's dense weights, one per sample, may take.
        plans: the routes that `autotune` measured.
        estimator: configuration of the head that estimates θ, if there is one.
        metrics: anything JSON can say that stays with a saved model.
        fingerprint: which base. It is empty until the model is saved, because taking it reads every tensor.
        written_by: versions of the libraries that made the model, or wrote the file.
    """

    space: ParameterSpace
    recipe: Config
    slots: Mapping[str, Slot]
    network: str
    dtype: torch.dtype
    selected: str = "default"
    inspection: Inspection | None = None
    merged: tuple[str, ...] | None = None
    memory_limit: int = DEFAULT_MEMORY_LIMIT
    plans: MeasuredPlans = field(default_factory=MeasuredPlans)
    estimator: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Fingerprint = field(default_factory=lambda: Fingerprint({}))
    written_by: Mapping[str, str] = field(default_factory=storage.versions)

    @property
    def plan(self) -> dict[str, Any] | None:
        """What `autotune` measured, as plain data; None if it never ran."""
        return self.plans.data()

    def to_data(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        base = {
            "network": self.network, "fingerprint": str(self.fingerprint), "tensors": dict(self.fingerprint.tensors),
        }  # fmt: skip
        return {
            "written_by": dict(self.written_by),
            "parameters": self.space.config(),
            "transform": self.recipe,
            "selected": self.selected,
            "slots": [slot_data(slot, complete=True) for slot in self.slots.values()],
            "positions": None if self.inspection is None else self.inspection.positions,
            "folded": self.merged,
            "dtype": dtype_name(self.dtype),
            "memory_limit": self.memory_limit,
            **({} if self.estimator is None else {"estimator": dict(self.estimator)}),
            "metrics": dict(self.metrics),
            "base": base,
            "plan": self.plan,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ModelSpec:
        """The spec of a file's header.

        Raises:
            KeyError, TypeError, ValueError: for data that are not a spec.
        """
        base = _typed(data, "base", dict)
        fingerprint = Fingerprint.from_data(base["tensors"])
        positions, merged = _typed(data, "positions", dict | None), _typed(data, "folded", list | None)
        slots = [slot_from(entry) for entry in _typed(data, "slots", list)]
        return cls(
            space=_space(_typed(data, "parameters", dict)),
            recipe=_recipe(_typed(data, "transform", dict)),
            slots={slot.name: slot for slot in slots},
            network=_typed(base, "network", str),
            dtype=_dtype(_typed(data, "dtype", str)),
            selected=_typed(data, "selected", str),
            inspection=None if positions is None else Inspection.of_positions(positions),
            merged=None if merged is None else tuple(merged),
            memory_limit=_typed(data, "memory_limit", int),
            # Older files have no plan and no estimator. A plan was measured elsewhere, perhaps by another release: what
            # does not read is no reason to refuse the model.
            plans=MeasuredPlans.from_data(data.get("plan")),
            estimator=_typed({"estimator": None, **data}, "estimator", dict | None),
            metrics=_typed(data, "metrics", dict),
            fingerprint=fingerprint,
            written_by=_typed(data, "written_by", dict),
        )


class SpecifiedModule(nn.Module):
    """A module with a spec, the facts of which are its attributes."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def space(self) -> ParameterSpace:
        """The parameters."""
        return self.spec.space

    @property
    def slots(self) -> Mapping[str, Slot]:
        """The conditioned tensors by name."""
        return self.spec.slots

    @property
    def recipe(self) -> Config:
        """The weight transform, as plain data."""
        return self.spec.recipe

    @property
    def selected(self) -> str:
        """How the tensors were selected, in words."""
        return self.spec.selected

    @property
    def merged(self) -> tuple[str, ...] | None:
        """Slots that cannot have one θ per sample, because their layers do not have the batch first."""
        return self.spec.merged

    @property
    def memory_limit(self) -> int:
        """Bytes that one layer's dense weights, one per sample, may take."""
        return self.spec.memory_limit

    @memory_limit.setter
    def memory_limit(self, limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise ExecutionError(f"memory_limit: expected a number of bytes, got {limit!r}")
        self.spec = replace(self.spec, memory_limit=limit)

    @property
    def plan(self) -> dict[str, Any] | None:
        """What `autotune` measured, as plain data; None if it never ran. It is saved with the transform.

        Set it to use what was measured elsewhere: entries that fit no layer here are ignored.
        """
        return self.spec.plan

    @plan.setter
    def plan(self, data: Mapping[str, Any] | None) -> None:
        self.spec = replace(self.spec, plans=MeasuredPlans.from_data(data))


def _typed(data: Mapping[str, Any], name: str, kind: Any) -> Any:
    """An entry of a header, which must be of that kind."""
    if not isinstance(data[name], kind):
        raise TypeError(f"{name!r} cannot be {data[name]!r:.80}")
    return data[name]


def _space(config: dict[str, Any]) -> ParameterSpace:
    for entry in config.values():
        bounded(entry, ("harmonics", "order"))
    return ParameterSpace.from_config(config)


def _recipe(config: Config) -> Config:
    for entry in config.get("parts", [config]):
        bounded(entry, ("grow", "hidden", "rank", "dim"))
    return config


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name!r} is no dtype")
    return dtype


def write(path: str | os.PathLike[str], spec: ModelSpec, state: Mapping[str, Any]) -> None:
    """Write a model's file completely, or leave the old one.

    Args:
        path: the file.
        spec: what the tensors belong to.
        state: the model's `state_dict(keep_vars=True)`, in which a shared tensor is one object under many names.

    Raises:
        CheckpointError: if something cannot be stored as plain data.
        MissingDependencyError: if safetensors is not installed.
        OSError: if the file cannot be written.
    """
    data = plain(spec.to_data())
    _refuse_unreadable(spec.space, data["parameters"])
    for name, value in data["metrics"].items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            raise CheckpointError(
                f"metrics: expected what JSON can say, got {value!r:.80} for {name!r}; leave it out, or give None"
            ) from error
    storage.save(path, storage.pack("model", data, state))


def _refuse_unreadable(space: ParameterSpace, config: Mapping[str, Any]) -> None:
    """Refuse to write parameters that could not be read back."""
    try:
        again = ParameterSpace.from_config(config)
    except (ParameterError, TypeError) as error:
        raise CheckpointError(f"the parameters cannot be stored as plain data: {error}") from error
    for name, parameter in space.items():
        if again[name] != parameter:
            raise CheckpointError(
                f"parameter {name!r}: a {type(parameter).__name__} of your own cannot be stored as plain data; "
                f"condition on one of {', '.join(KINDS)}"
            )


def read(path: str | os.PathLike[str]) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Read a model's file, and return nothing of a damaged one.

    Returns:
        the spec, and the model's `state_dict` on the CPU.

    Raises:
        CheckpointError: if the file is cut short, damaged, incomplete, of a newer format, or not one of ours.
        MissingDependencyError: if safetensors is not installed.
        OSError: if the file is not there or cannot be read.
    """
    data, tensors = storage.unpack(path)
    try:
        return ModelSpec.from_data(data), tensors
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header cannot be read: {lacking(error)}") from error

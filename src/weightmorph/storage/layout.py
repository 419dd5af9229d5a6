"""Slots as JSON, and back: all fields for a model, or only those that say how the tensor's axes read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, get_args

from ..slots import Kind, Slot

__all__ = ["LARGEST", "bounded", "slot_data", "slot_from"]

LARGEST = 2**16
"""No extent of a kernel, no harmonic and no number of taps to grow by comes near it. An edited file may say 2⁶³, and
whatever counts up to that takes all memory before anything can be compared with the tensors."""

LAYOUT = ("name", "layer", "attribute", "kind", "shape", "groups", "kernel", "growable")
"""The fields that say how a tensor's axes read; the others say where its taps lie on the image."""

FIELDS: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(Slot)}


def slot_data(slot: Slot, complete: bool = False) -> dict[str, Any]:
    """A slot for JSON.

    Example:
        >>> slot_from(slot_data(Slot.of((6, 3, 5, 5), "conv.weight"))).canonical_shape
        (1, 6, 3, 25)
    """
    values = {name: getattr(slot, name) for name in (FIELDS if complete else LAYOUT)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def slot_from(data: Mapping[str, Any]) -> Slot:
    """A slot from JSON. A field that an older release did not write has its default.

    Raises:
        KeyError, TypeError: for data that are no slot.
    """
    unknown = set(data) - set(FIELDS)
    if unknown:
        raise TypeError(f"a slot has no {', '.join(sorted(unknown))}")
    for name, default in FIELDS.items():
        if name in data or default is dataclasses.MISSING:
            _check(name, data[name], default)
    name, layer = data["name"], data["layer"]
    if data["kind"] not in get_args(Kind) or name != ".".join(filter(None, (layer, data["attribute"]))):
        raise TypeError(f"{name!r:.80} cannot be a tensor of kind {data['kind']!r:.80} in {layer!r:.80}")
    entries: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    if "taps" in entries:
        entries["taps"] = tuple(tuple(float(place) for place in places) for places in data["taps"])
    return Slot(**entries)


def bounded(entry: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse numbers that only an edited file can hold.

    Raises:
        ValueError: for a whole number beyond LARGEST under one of the names.
    """
    for name in names:
        value = entry.get(name)
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise ValueError(f"{name} cannot be {value!r:.80}")


def _check(name: str, value: Any, default: Any) -> None:
    """A value of the kind that its field has."""
    if name == "taps":
        good = isinstance(value, list) and all(isinstance(places, list | tuple) for places in value)
    elif name in ("shape", "kernel"):
        good = isinstance(value, list) and all(type(n) is int and n > 0 for n in value)
        good = good and (name == "shape" or all(n <= LARGEST for n in value))
    elif default is dataclasses.MISSING:
        good = isinstance(value, str)
    elif isinstance(default, float):
        good = type(value) in (int, float) and math.isfinite(value)
    else:
        good = type(value) is type(default)
    if not good:
        raise TypeError(f"a slot's {name} cannot be {value!r:.80}")

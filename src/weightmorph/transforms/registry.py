"""Recipes as plain data, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import transforms
from ..errors import TransformError, near
from ..io import plain
from .base import Sum, WeightTransform
from .custom import Custom

__all__ = ["SHIPPED", "Config", "describe", "foreign", "remake", "same"]

SHIPPED: Mapping[str, type[WeightTransform]] = {
    name: getattr(transforms, name)
    for name in transforms.__all__
    if getattr(transforms, name) not in (WeightTransform, Custom)  # a Custom needs its module
}
"""The families that can be made from their `config()` alone: those of `weightmorph.transforms`, by class name."""

Config = dict[str, Any]
"""A class's name under `"type"`, and its options; of a sum, its `"parts"`."""


def describe(recipe: WeightTransform) -> Config:
    """A recipe as data for JSON. A class or a module of the user's own becomes its name in angle brackets.

    Example:
        >>> from weightmorph import LowRank, Scale
        >>> describe(LowRank(8) + Scale())
        {'type': 'Sum', 'parts': [{'type': 'LowRank', 'rank': 8, 'hidden': 16}, {'type': 'Scale'}]}
    """
    entries = [_entry(part) for part in recipe.parts]
    return entries[0] if len(entries) == 1 else {"type": "Sum", "parts": entries}


def _entry(part: WeightTransform) -> Config:
    entry: Config = {"type": type(part).__name__, **part.config()}
    if type(part) is not SHIPPED.get(entry["type"]):
        # A user's class, or one that only inherits the config() of a shipped family.
        entry["type"] = f"<{type(part).__name__}>"
    return dict(plain(entry))


def _parts(config: Config) -> list[Config]:
    return list(config["parts"]) if config["type"] == "Sum" else [config]


def _is_foreign(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("<")


def foreign(config: Config) -> list[str]:
    """The names of the user's own classes and modules, which cannot be made from data.

    Example:
        >>> from torch import nn
        >>> from weightmorph import PerFilter, Warp
        >>> foreign(describe(Warp() + PerFilter(nn.Bilinear(9, 4, 9))))
        ['PerFilter(<Bilinear>)']
    """
    names = []
    for entry in _parts(config):
        options = [value for key, value in entry.items() if key != "type" and _is_foreign(value)]
        if _is_foreign(entry["type"]) or options:
            names.append(f"{entry['type']}({', '.join(options)})")
    return names


def same(config: Config, other: Config) -> bool:
    """Do two descriptions agree? The names of a user's own classes may differ."""

    def bare(entry: Config) -> Config:
        return {key: "<>" if _is_foreign(value) else value for key, value in entry.items()}

    return list(map(bare, _parts(config))) == list(map(bare, _parts(other)))


def remake(config: Config) -> WeightTransform:
    """The recipe that `describe` described.

    Raises:
        TransformError: for a family that is not shipped, or an option that it does not have.

    Example:
        >>> from weightmorph import LowRank, Warp
        >>> describe(remake(describe(Warp(grow=0) + LowRank(8))))["parts"][1]
        {'type': 'LowRank', 'rank': 8, 'hidden': 16}
    """
    parts = []
    for entry in _parts(config):
        options = dict(entry)
        kind = options.pop("type")
        if kind not in SHIPPED:
            raise TransformError(
                f"no family is named {kind!r}{near(str(kind), SHIPPED)}; there are {', '.join(SHIPPED)}"
            )
        try:
            parts.append(SHIPPED[kind](**options))
        except TypeError as error:
            raise TransformError(f"{kind}: {error}") from error
    return parts[0] if len(parts) == 1 else Sum(*parts)

"""The kinds of parameter: the one list of them."""

from __future__ import annotations

from collections.abc import Mapping

from .angle import Angle
from .base import Parameter
from .categorical import Categorical
from .ranges import Interval, LogInterval

__all__ = ["Angle", "Interval", "LogInterval", "Categorical"]  # noqa: RUF022 # messages list them in this order

KINDS: Mapping[str, type[Parameter]] = {name: globals()[name] for name in __all__}
"""The kinds of parameter by name.

A new kind is one file, and its import and name here. It is then a public name of the library, can be saved and loaded,
and can be named on the command line.
"""

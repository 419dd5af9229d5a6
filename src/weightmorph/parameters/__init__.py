"""What the weights depend on: named parameters with a unit, a range, and an anchor at which the base is right.

A [`ParameterSpace`][weightmorph.ParameterSpace] is a dict of parameters. It checks values, samples them, lays out
grids, and encodes them into the *code* that every weight transform reads.
"""

from .angle import Angle
from .base import Parameter, Theta, Value
from .categorical import Categorical
from .ranges import Interval, LogInterval
from .space import KINDS, ParameterSpace

__all__ = ["KINDS", "Angle", "Categorical", "Interval", "LogInterval", "Parameter", "ParameterSpace", "Theta", "Value"]

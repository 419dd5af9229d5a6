"""What the weights depend on: named parameters with a unit, a range, and an anchor at which the base is right.

A [`ParameterSpace`][weightmorph.ParameterSpace] is a dict of parameters. It checks values, samples them, lays out
grids, and encodes them into the *code* that every weight transform reads.
"""

from . import kinds
from .base import Parameter, Theta, Value
from .kinds import *  # noqa: F403 # every kind in the list is public here too
from .kinds import KINDS
from .space import ParameterSpace

__all__ = ["KINDS", "Parameter", "ParameterSpace", "Theta", "Value"]
__all__ += kinds.__all__

"""Condition any frozen PyTorch network on a parameter by learning to transform its weights."""

from . import errors
from .conditioned import Conditioned, condition
from .parameters import Angle, Categorical, Interval, LogInterval, ParameterSpace
from .transforms import Custom, Lie, LowRank, PerFilter, Scale, Subspace, Warp, WeightTransform

__all__ = [
    "Angle",
    "Categorical",
    "Conditioned",
    "Custom",
    "Interval",
    "Lie",
    "LogInterval",
    "LowRank",
    "ParameterSpace",
    "PerFilter",
    "Scale",
    "Subspace",
    "Warp",
    "WeightTransform",
    "condition",
    "errors",
]

"""Condition any frozen PyTorch network on a parameter by learning to transform its weights."""

from . import errors, inputs
from .checkpoint import load
from .conditioned import Conditioned, condition
from .evaluate import Contender, Evaluation, evaluate
from .export import export_onnx, export_program
from .fit import fine_tune, fit
from .objectives import Distillation, Supervised
from .parameters import Angle, Categorical, Interval, LogInterval, ParameterSpace
from .report import report
from .transforms import Custom, Lie, LowRank, PerFilter, Scale, Subspace, Warp, WeightTransform

__version__ = "0.1.0"

__all__ = [
    "Angle",
    "Categorical",
    "Conditioned",
    "Contender",
    "Custom",
    "Distillation",
    "Evaluation",
    "Interval",
    "Lie",
    "LogInterval",
    "LowRank",
    "ParameterSpace",
    "PerFilter",
    "Scale",
    "Subspace",
    "Supervised",
    "Warp",
    "WeightTransform",
    "condition",
    "errors",
    "evaluate",
    "export_onnx",
    "export_program",
    "fine_tune",
    "fit",
    "inputs",
    "load",
    "report",
]

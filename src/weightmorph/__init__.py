"""Condition any frozen PyTorch network on a parameter by learning to transform its weights."""

from . import errors, inputs
from .baking import bake_many
from .checkpoint import load
from .compare import Comparison, compare
from .conditioned import Conditioned, condition
from .delta import Delta, DeltaBook, apply_delta
from .evaluate import Contender, Evaluation, evaluate
from .export import export_onnx, export_program
from .fit import fine_tune, fit
from .hub import from_pretrained, push_to_hub, save_pretrained
from .infer import Inferred, infer
from .objectives import Distillation, Supervised
from .parameters import Angle, Categorical, Interval, LogInterval, ParameterSpace
from .quantize import quantize_onnx
from .report import report
from .transforms import Custom, Lie, LowRank, PerFilter, Scale, Subspace, Warp, WeightTransform

__version__ = "0.1.0"

__all__ = [
    "Angle",
    "Categorical",
    "Comparison",
    "Conditioned",
    "Contender",
    "Custom",
    "Delta",
    "DeltaBook",
    "Distillation",
    "Evaluation",
    "Inferred",
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
    "apply_delta",
    "bake_many",
    "compare",
    "condition",
    "errors",
    "evaluate",
    "export_onnx",
    "export_program",
    "fine_tune",
    "fit",
    "from_pretrained",
    "infer",
    "inputs",
    "load",
    "push_to_hub",
    "quantize_onnx",
    "report",
    "save_pretrained",
]

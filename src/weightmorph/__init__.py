"""Condition any frozen PyTorch network on a parameter by learning to transform its weights."""

from . import errors, inputs
from .comparison import Comparison, compare
from .deploy.baking import bake_many
from .deploy.delta import Delta, apply_delta
from .deploy.export import export_onnx, export_program
from .deploy.quantize import quantize_onnx
from .estimation import Inferred, infer
from .evaluation import Contender, Evaluation, evaluate
from .hub import from_pretrained, push_to_hub, save_pretrained
from .model import Conditioned, condition
from .model.load import load
from .objectives import Distillation, Supervised
from .parameters import Angle, Categorical, Interval, LogInterval, ParameterSpace
from .reporting import report
from .training import fine_tune, fit
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

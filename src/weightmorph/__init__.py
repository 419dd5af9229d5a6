"""Condition any frozen PyTorch network on a parameter by learning to transform its weights."""

from . import errors, inputs, transforms
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
from .parameters import ParameterSpace, kinds
from .parameters.kinds import *  # noqa: F403 # every kind of parameter is public here too
from .reporting import report
from .training import fine_tune, fit
from .transforms import *  # noqa: F403 # every family in the list is public here too

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Conditioned",
    "Contender",
    "Delta",
    "Distillation",
    "Evaluation",
    "Inferred",
    "ParameterSpace",
    "Supervised",
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
__all__ += kinds.__all__
__all__ += transforms.__all__
__all__.sort()

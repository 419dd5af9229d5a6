"""Metrics over a grid of θ: the conditioned network beside what a user might rather pick."""

from ..io import write_atomically
from .advice import listing, preferred
from .contenders import Contender
from .data import batches
from .metric import accuracy
from .result import Evaluation, Role, Row, setting_text
from .run import evaluate

__all__ = [
    "Contender",
    "Evaluation",
    "Role",
    "Row",
    "accuracy",
    "batches",
    "evaluate",
    "listing",
    "preferred",
    "setting_text",
    "write_atomically",
]

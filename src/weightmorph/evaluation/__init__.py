"""Metrics over a grid of θ: the conditioned network beside what a user might rather pick."""

from ..io import write_atomically
from .advice import preferred
from .contenders import Contender
from .data import batches
from .figures import Role, Row, listing
from .metric import accuracy
from .result import Evaluation, setting_text
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

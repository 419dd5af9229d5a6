"""Metrics over a grid of θ: the conditioned network beside what a user might rather pick."""

from .advice import preferred
from .data import batches
from .result import Evaluation, Row, setting_text, write_atomically
from .run import Contender, accuracy, evaluate

__all__ = [
    "Contender",
    "Evaluation",
    "Row",
    "accuracy",
    "batches",
    "evaluate",
    "preferred",
    "setting_text",
    "write_atomically",
]

"""θ from data, when nobody knows it: by searching, by a trained head, or by both."""

from .head import attach
from .result import Inferred, Method, Pool
from .run import infer

__all__ = ["Inferred", "Method", "Pool", "attach", "infer"]

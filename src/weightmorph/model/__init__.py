"""A frozen network whose weights follow a parameter.

`condition` reads a network once and makes the model; the model's call is in `model`, in the order in which it happens.
"""

from .condition import condition
from .conditioned import Conditioned

__all__ = ["Conditioned", "condition"]

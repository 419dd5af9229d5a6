"""y = op(x; weight expression): the routes, and the rule that picks one.

Whatever functional call consumes a conditioned weight arrives in [`call`][weightmorph.execution.dispatch.call], with
the input, the weight expression and the batch at hand. Under a shared θ the weight is a tensor and the function runs as
it is. Under per-sample θ the function's handler computes what calling it sample by sample, each with its own weight,
would give.
"""

from .batch import DEFAULT_MEMORY_LIMIT, Batch
from .desk import Desk
from .dispatch import CallContext, CurrentCall, LazyWeights, Weight, WeightProxy, call
from .making import make
from .rule import Plan, plan

__all__ = [
    "DEFAULT_MEMORY_LIMIT", "Batch", "CallContext", "CurrentCall", "Desk", "LazyWeights", "Plan", "Weight", "WeightProxy",
    "call", "make", "plan",
]  # fmt: skip

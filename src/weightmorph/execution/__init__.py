"""y = op(x; weight expression): the routes, and the planner that picks one.

Whatever functional call consumes a conditioned weight arrives in [`call`][weightmorph.execution.dispatch.call], with
the input, the weight expression and the batch at hand. Under a shared θ the weight is a tensor and the function runs as
it is. Under per-sample θ the function's handler computes what calling it sample by sample, each with its own weight,
would give: the planner returns a plan, and `routes` carries it out.
"""

from .autotune import Recorder, Row, Tuner
from .batch import DEFAULT_MEMORY_LIMIT, Batch, ForcedRoute
from .dispatch import CallContext, CurrentCall, LazyWeights, Weight, WeightProxy, call
from .norm import Norm, mixes_samples, prepare_norms
from .planner import candidates, cheapest, factored_pays_when_shared
from .plans import MeasuredPlans, Plan
from .routes import Observer, Step

__all__ = [
    "DEFAULT_MEMORY_LIMIT", "Batch", "CallContext", "CurrentCall", "ForcedRoute",
    "LazyWeights", "MeasuredPlans", "Norm", "Observer", "Plan", "Recorder", "Row",
    "Step", "Tuner", "Weight", "WeightProxy", "call", "candidates", "cheapest", "factored_pays_when_shared",
    "mixes_samples", "prepare_norms",
]  # fmt: skip

"""Estimate θ for a model's inputs: by search, by the model's trained head, or by both.

[`infer`][weightmorph.infer] runs conditioned models at many settings, so this room lies *above* `model/`. The head
itself, [`Estimator`][weightmorph.estimator.Estimator], is a part of a model and lies below it, in `estimator/`.
[`attach`][weightmorph.estimation.attach] gives a model such a head.
"""

from .attach import attach
from .result import Inferred, Method, Pool
from .run import infer

__all__ = ["Inferred", "Method", "Pool", "attach", "infer"]

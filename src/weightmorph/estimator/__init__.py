r"""A small head on the base's early features that says how likely every value of θ is.

[`Estimator`][weightmorph.estimator.Estimator] is trained by `fit(…, predict_parameter=True)` and stays with the model
as `model.estimator`, so that it is saved, moved and copied with it. `model(x, angle="infer")` asks it, and so does
[`infer`][weightmorph.infer], which can go on from there.
"""

from .axis import Axis, peak
from .head import Estimator, estimator_of
from .taps import Tap, probe

__all__ = ["INFER", "Axis", "Estimator", "Tap", "estimator_of", "peak", "probe"]

INFER = "infer"
"""What a model is given in place of a value that nobody knows."""

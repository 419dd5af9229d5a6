r"""The head that a model carries to estimate θ; the search for θ, which runs whole models, is `estimation/`.

An [`Estimator`][weightmorph.estimator.Estimator] reads early features of the frozen base and gives a density over θ.
This room lies *below* `model/`, because a model holds its head as `model.estimator`: it is saved, loaded, moved and
copied with the model, and `model(x, angle="infer")` asks it. So nothing here knows what a conditioned model is.
"""

from .axis import Axis, peak
from .head import Estimator, estimator_of
from .taps import Tap, choose_taps, probe

__all__ = ["INFER", "Axis", "Estimator", "Tap", "choose_taps", "estimator_of", "peak", "probe"]

INFER = "infer"
"""What a call is given in place of a value that the estimator shall fill in."""

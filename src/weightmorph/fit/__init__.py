"""Training on Lightning: `fit` for a conditioned model, `fine_tune` for the baseline that changes every weight."""

from .prior import PriorCheck
from .run import Fit, fine_tune, fit

__all__ = ["Fit", "PriorCheck", "fine_tune", "fit"]

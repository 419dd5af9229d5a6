"""Training on Lightning: `fit` for a conditioned model, `fine_tune` for the baseline that trains every weight."""

from .agreement import agree
from .prior import PriorCheck
from .result import Fit
from .run import fine_tune, fit

__all__ = ["Fit", "PriorCheck", "agree", "fine_tune", "fit"]

"""One setting of a model as a small difference to its base, which a plain network takes in and gives back.

[`Delta`][weightmorph.Delta] is one setting, and [`apply_delta`][weightmorph.apply_delta] puts it into a network and
takes it out again.
"""

from .apply import Applied, apply_delta
from .delta import Delta, Origin, delta_of

__all__ = ["Applied", "Delta", "Origin", "apply_delta", "delta_of"]

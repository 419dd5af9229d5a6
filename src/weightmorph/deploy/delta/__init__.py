"""Settings of a model as small differences to its base, which a plain network can be switched between.

[`Delta`][weightmorph.Delta] is one setting, [`DeltaBook`][weightmorph.DeltaBook] what many of one model have in common,
and [`apply_delta`][weightmorph.apply_delta] puts a setting into a network and takes it out again.
"""

from .apply import Applied, apply_delta
from .book import DeltaBook
from .delta import Delta, delta_of
from .files import Origin

__all__ = ["Applied", "Delta", "DeltaBook", "Origin", "apply_delta", "delta_of"]

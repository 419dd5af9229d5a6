"""The families of weight transforms, one file each.

`__all__` lists the families and their base class. A family that joins it is a public name of the library, can be saved
and loaded by its `config()`, can be named on the command line, and is tested on every law.
"""

from .base import CoefficientTransform as CoefficientTransform
from .base import Sum as Sum
from .base import WeightTransform
from .custom import Custom
from .lie import Lie
from .lowrank import LowRank
from .perfilter import PerFilter
from .scale import Scale
from .subspace import Subspace
from .tree import TransformTree as TransformTree
from .warp import Warp

__all__ = ["Custom", "Lie", "LowRank", "PerFilter", "Scale", "Subspace", "Warp", "WeightTransform"]

"""The families of weight transforms, one file each."""

from .base import Sum, WeightTransform
from .custom import Custom
from .families import Families
from .lie import Lie
from .lowrank import LowRank
from .perfilter import PerFilter
from .scale import Scale
from .subspace import Subspace
from .warp import Warp

__all__ = ["Custom", "Families", "Lie", "LowRank", "PerFilter", "Scale", "Subspace", "Sum", "Warp", "WeightTransform"]

from .conditioned import Conditioned, condition
from .parameters import Angle, Categorical, Interval, LogInterval, ParameterSpace
from .transforms import LowRank, Scale, Warp, Lie, PerFilter, Subspace

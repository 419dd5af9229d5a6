r"""Weight expressions: $W(\theta) = W + \sum_i \Delta_i$, each term carrying its own algebra."""

from .expression import (
    BasisMix,
    Dense,
    LowRankUpdate,
    RowScale,
    TapMix,
    Term,
    WeightExpression,
    Whole,
    beyond,
    widen,
)

__all__ = [
    "BasisMix", "Dense", "LowRankUpdate", "RowScale", "TapMix", "Term", "WeightExpression", "Whole", "beyond", "widen",
]  # fmt: skip

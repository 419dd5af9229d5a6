r"""Weight expressions: $W(\theta) = W + \sum_i \Delta_i$, each term carrying its own algebra.

A new term is one file here, a subclass of [`Term`][weightmorph.terms.Term], and one entry in `TERMS`.
"""

from .base import Term, TermKind, beyond, widen
from .basis_mix import BasisMix
from .dense import Dense, Replacement
from .expression import WeightExpression
from .frozen import Frozen
from .low_rank import LowRankUpdate
from .row_scale import RowScale
from .tap_mix import TapMix
from .vectors import materialise_vectors

__all__ = [
    "TERMS", "BasisMix", "Dense", "Frozen", "LowRankUpdate", "Replacement", "RowScale", "TapMix", "Term", "TermKind",
    "WeightExpression", "beyond", "materialise_vectors", "widen",
]  # fmt: skip

TERMS: dict[str, type[Term]] = {
    term.__name__: term for term in (BasisMix, Dense, LowRankUpdate, Replacement, RowScale, TapMix)
}
"""The terms that transforms make, by the names under which files know them."""

"""What a route needs to know about a batch with one θ per sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import BatchSizeError, ConditioningWarning, MemoryLimitError
from ..terms import WeightExpression
from .plans import MeasuredPlans

__all__ = ["DEFAULT_MEMORY_LIMIT", "Batch", "ForcedRoute", "NormAffine", "expand", "vector_values"]

DEFAULT_MEMORY_LIMIT = 4 * 2**30
"""Bytes that the dense per-sample weights of one layer may take, unless a model says otherwise."""

NormAffine = tuple[Tensor, Tensor, Tensor]
"""A norm layer's running mean, by which it is known, and its multiply and add per sample and channel, `(B, C)`."""

ForcedRoute = Literal["factored", "grouped", "product", "by setting", "constant"]
"""A route to take wherever it exists. `"constant"` is the factored route, and an error where it does not exist."""


@dataclass(frozen=True)
class Batch:
    """A batch of `size` samples, each with its own θ.

    Attributes:
        size: B.
        index: where few settings are distinct, each sample's setting `(B,)`; expressions then have one row per setting.
        rows: one index tensor per setting: the samples that have it.
        inverse: the order that puts outputs computed setting by setting back.
        memory_limit: bytes that one layer's dense per-sample weights may take.
        probed: was the base seen to keep the batch first?
        plans: routes that were measured before.
        observer: an `Observer` of [`weightmorph.execution.routes`][], which carries out every step; None for nobody.
        norms: by layer, the affine map that `prepare_norms` computed.
        route: a route to take wherever it exists; None leaves the choice to the planner.
    """

    size: int
    index: Tensor | None = None
    rows: tuple[Tensor, ...] = ()
    inverse: Tensor | None = None
    memory_limit: int = DEFAULT_MEMORY_LIMIT
    probed: bool = False
    plans: MeasuredPlans = field(default_factory=MeasuredPlans)
    observer: Callable[[Any], Tensor] | None = None
    norms: Mapping[str, NormAffine] = field(default_factory=dict)
    route: ForcedRoute | None = None

    def by_setting(self, index: Tensor, settings: int) -> Batch:
        """The same batch with few settings, from `index (B,)`, the setting of each sample."""
        order = torch.argsort(index, stable=True)
        rows = torch.split(order, torch.bincount(index, minlength=settings).tolist())
        return replace(self, index=index, rows=tuple(rows), inverse=torch.argsort(order))

    def restore(self, parts: Sequence[Tensor]) -> Tensor:
        """Outputs computed setting by setting, back in the order of the samples."""
        assert self.inverse is not None
        return torch.cat(list(parts)).index_select(0, self.inverse)

    def check(self, x: Tensor, where: str, dims: int | None = None) -> None:
        """Refuse an input whose first axis is not the batch."""
        fits = isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == self.size and dims in (None, x.dim())
        if not fits:
            raise BatchSizeError(
                f"{where}: under one θ per sample expected a batch of {self.size} first, got an input of shape "
                f"{tuple(getattr(x, 'shape', ()))}; a layer before it has folded or moved the batch dimension. Give "
                "one θ for the whole batch, or deselect this layer with select="
            )
        if not self.probed and dims is None and x.dim() == 3 and x.shape[1] == self.size:
            warnings.warn(
                f"{where}: cannot tell whether the first axis or the second of an input of shape {tuple(x.shape)} is "
                "the batch; taking the first. Pass example= to condition(), which then finds it out once",
                ConditioningWarning,
                stacklevel=2,
            )

    def too_large(self, numbers: int, itemsize: int) -> bool:
        """Would dense per-sample weights pass the limit? An exported graph serves any batch, so it has none."""
        return not torch.compiler.is_exporting() and self.size * numbers * itemsize > self.memory_limit

    def check_memory(self, numbers: int, itemsize: int, where: str, advice: str) -> None:
        """Refuse dense per-sample weights that would take more than the limit."""
        if self.too_large(numbers, itemsize):
            need = self.size * numbers * itemsize
            raise MemoryLimitError(
                f"{where}: one dense weight per sample needs {need / 2**30:.2f} GiB ({self.size} samples x {numbers:,} "
                f"numbers), the limit is {self.memory_limit / 2**30:.2f} GiB; {advice}"
            )


def expand(batch: Batch, expression: WeightExpression) -> WeightExpression:
    """One row per sample, where there is one per setting."""
    return expression if batch.index is None or not expression.batch else expression.take(batch.index)


def vector_values(batch: Batch, operand: Tensor | WeightExpression) -> Tensor:
    """A vector-like weight as `(B, *S)`, or `(*S)` where it does not depend on θ."""
    return expand(batch, operand).dense() if isinstance(operand, WeightExpression) else operand

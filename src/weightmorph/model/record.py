"""What `save` writes beside the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import storage

if TYPE_CHECKING:
    from .conditioned import Conditioned

__all__ = ["recorded"]


def recorded(model: Conditioned, metrics: Mapping[str, Any]) -> storage.Record:
    """Everything of a model but its tensors and its base."""
    return storage.Record(
        space=model.space,
        recipe=model.recipe,
        slots=tuple(model.slots.values()),
        base=storage.Fingerprint.of(model.view.tensors(), model.view.written()),
        network=model.view.classes[0].__name__,
        selected=model.selected,
        dtype=model.dtype,
        memory_limit=model.memory_limit,
        positions=model.seen.positions if model.seen else None,
        folded=None if model.folded is None else tuple(model.folded),
        estimator=None if model.estimator is None else model.estimator.config(),
        metrics=dict(metrics),
        plan=model.plan,
    )

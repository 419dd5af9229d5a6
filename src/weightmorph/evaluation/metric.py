"""Metrics: the score of an output, one number per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import InputError

__all__ = ["Metric", "accuracy"]

Metric = Callable[[Any, Tensor], Tensor]
"""Outputs and targets to scores `(B,)`; higher is better."""


def accuracy(output: Any, target: Tensor) -> Tensor:
    """1 where the highest logit is the target's, 0 elsewhere; averaged per sample where there is one per position.

    Args:
        output: logits `(B, C, *positions)`, or an object that holds them as `.logits`.
        target: class indices `(B, *positions)`.

    Returns:
        scores `(B,)`.

    Raises:
        InputError: if the two do not fit.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).tolist()
        [1.0, 0.0]
    """
    logits = getattr(output, "logits", output)
    if not (
        isinstance(logits, Tensor)
        and logits.dim() >= 2
        and logits.shape[:1] + logits.shape[2:] == target.shape
        and not target.is_floating_point()
    ):
        got = f"{tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"metric 'accuracy': expected logits (B, C, …) and class indices (B, …), got {got} "
            f"and {tuple(target.shape)} of {target.dtype}; give metric= a function (output, target) -> scores (B,)"
        )
    hits = (logits.argmax(1) == target).float()
    return hits.flatten(1).mean(1) if hits.dim() > 1 else hits

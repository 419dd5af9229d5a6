"""What of Lightning's Trainer the user may set, and what not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import TrainingError

__all__ = ["trainer_options"]

OWN = {
    "accelerator", "devices", "logger", "precision",
    "accumulate_grad_batches", "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "fast_dev_run",
    "limit_train_batches", "max_epochs", "max_steps", "min_epochs", "min_steps", "overfit_batches",
    "reload_dataloaders_every_n_epochs", "use_distributed_sampler",
}  # fmt: skip
"""Arguments of Lightning's Trainer that `fit` sets itself."""

PRECISIONS = (None, "bf16-mixed", "16-mixed", "32-true", "bf16", "16", "32", 16, 32)
"""Those of Lightning's precisions under which the model stays in its own type."""


def trainer_options(
    progress: bool, logger: Any, precision: Any, accelerator: str, devices: Any, trainer: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Arguments of Lightning's Trainer."""
    if precision not in PRECISIONS:
        raise TrainingError(
            f"precision: expected one of {', '.join(map(repr, PRECISIONS[1:]))}, or None, got {precision!r}; to train "
            "in another type convert the network, e.g. condition(net.double(), …)"
        )
    more = dict(trainer or {})
    taken = sorted(OWN & set(more))
    if taken:
        raise TrainingError(
            f"trainer={{{taken[0]!r}: …}} is set by fit itself: use its own arguments (steps, epochs, checkpoint, "
            "progress, logger, precision, accelerator, devices)"
        )
    return more | {
        "enable_progress_bar": progress, "logger": False if logger is None else logger, "precision": precision,
        "accelerator": accelerator, "devices": devices,
    }  # fmt: skip

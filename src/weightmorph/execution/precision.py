"""Mixed precision: which type a layer computes in, and what is kept out of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["full_precision", "layer_dtype"]


def layer_dtype(x: Tensor) -> torch.dtype:
    """The type in which a convolution or a product takes this input."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Within it nothing is cast.

    The code side is small, and an angle in half precision is a coarse one; a weight is cast by the layer that reads it,
    as the frozen weight is.
    """
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()

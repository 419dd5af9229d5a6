"""Results that may be written into, by a route or by the network's own in-place functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["unviewed"]


def unviewed(result: Tensor, shape: Sequence[int]) -> Tensor:
    """A result that nothing else holds, in another shape, and for autograd not a view of it.

    What is written into a view has its gradient copied twice, for the tensor that it is a view of may be read as well.

    Example:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> type(unviewed(x * 2, (6,)).add_(1).grad_fn).__name__
        'AddBackward0'
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not result.is_contiguous():
        return result.reshape(shape)
    return torch.ops.aten._unsafe_view.default(result, list(shape))  # type: ignore[no-any-return]

"""What autograd keeps for the backward: of large tensors that are quickly made, only how to make them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["instead", "made_again"]

LARGE = 2**23
"""Bytes of the weights of all samples from which on they are made again in the backward and not kept."""

Kept = Tensor | tuple[Callable[[], Tensor], torch.Size, tuple[int, ...]]


def made_again(numbers: int, itemsize: int) -> bool:
    """Are weights, or patches, that large made again in the backward, a few samples at a time?"""
    return numbers * itemsize >= LARGE


def instead(*made: tuple[Tensor, Callable[[], Tensor]], when: bool) -> AbstractContextManager[object]:
    """Within it, autograd does not keep these tensors but how each was made.

    The weights of all samples, and patches, are large, and made from little in a fraction of the time of their use.
    """
    if not when or not torch.is_grad_enabled():
        return nullcontext()
    known = {(tensor.data_ptr(), tensor.numel()): again for tensor, again in made}

    def pack(tensor: Tensor) -> Kept:
        again = known.get((tensor.data_ptr(), tensor.numel()))
        return tensor if again is None else (again, tensor.shape, tensor.stride())

    def unpack(kept: Kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        again, shape, strides = kept
        with torch.no_grad():
            return again().as_strided(shape, strides)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)

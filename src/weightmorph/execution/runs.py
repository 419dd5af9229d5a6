"""A batch in runs of samples whose working set fits a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..terms import Term

__all__ = ["pieces", "slices"]

CACHE = 4 * 2**20
"""Bytes of a working set that stays in one core's caches; much larger ones are also returned to the system after every
use."""

CORES = 8
"""So many cores' caches are counted on at most."""


def length(size: int, bytes_each: int, device: torch.device, least: int = 0) -> int:
    """Samples in a run, of `least` bytes or more; on an accelerator, as many as take a GiB."""
    budget = CACHE * min(torch.get_num_threads(), CORES) if device.type == "cpu" else 2**30
    most = max(1, max(budget, least) // max(1, bytes_each))
    # A power of two: products are fastest where they divide into whole blocks.
    return size if most >= size else 1 << (most.bit_length() - 1)


def slices(size: int, bytes_each: int, device: torch.device, least: int = 0) -> Iterator[slice]:
    """The runs, as slices of the batch."""
    step = length(size, bytes_each, device, least)
    return (slice(i, min(i + step, size)) for i in range(0, size, step))


def pieces(x: Tensor, terms: Sequence[Term], bytes_each: int) -> Iterator[tuple[Tensor, Sequence[Term]]]:
    """The runs of an input, and of the terms of its weights.

    All of them split off at once, for the gradient of a slice is a tensor as large as what was sliced.
    """
    step = length(x.shape[0], bytes_each, x.device)
    if step == x.shape[0]:
        return iter([(x, terms)])
    inputs = x.split(step)
    own = [t.split(step, len(inputs)) for t in terms]
    return ((part, [runs[i] for runs in own]) for i, part in enumerate(inputs))

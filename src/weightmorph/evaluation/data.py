"""Repeated passes over data, in one order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError

__all__ = ["Pairs", "batches"]

Pairs = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Starts a pass over the data: batches of inputs and targets."""


def batches(data: Any, size: int) -> Pairs:
    """A function that starts a pass over the data, as pairs of tensors.

    Example:
        >>> passes = batches((torch.zeros(5, 3), torch.arange(5)), size=2)
        >>> [len(x) for x, y in passes()], [len(x) for x, y in passes()]
        ([2, 2, 1], [2, 2, 1])

    Raises:
        InputError: if the data are of no such kind, or, in a later pass, come in another order.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"batch_size: expected a positive integer, got {size!r}")
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        x, y = data
        if len(x) != len(y):
            raise InputError(f"data: expected as many targets as images, got {len(x)} images and {len(y)} targets")
        return lambda: zip(x.split(size), y.split(size), strict=True)
    if isinstance(data, Dataset):
        # A generator of its own, because a loader otherwise draws its workers' seed from torch's global one.
        data = DataLoader(data, batch_size=size, generator=torch.Generator())
    if not isinstance(data, Iterable) or isinstance(data, Iterator):
        once = "; it can be gone through only once, make it a list" if isinstance(data, Iterator) else ""
        raise InputError(
            f"data: expected a pair of tensors (x, y), a Dataset or a loader of such pairs, got "
            f"{type(data).__name__}{once}"
        )
    first: list[str] = []

    def again() -> Iterator[tuple[Tensor, Tensor]]:
        digest = hashlib.blake2b()
        for batch in data:
            if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
                got = [type(part).__name__ for part in batch] if isinstance(batch, tuple | list) else batch
                raise InputError(f"data: expected batches (x, y) of two tensors, got {got}")
            x, y = batch
            if y.dim() < 1 or len(x) != len(y):
                raise InputError(f"data: expected as many targets as images, got {tuple(x.shape)} and {tuple(y.shape)}")
            digest.update(y.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            yield x, y
        first.append(digest.hexdigest())
        if first[-1] != first[0]:
            raise InputError("data: a later pass gave the targets in another order; give a loader with shuffle=False")

    return again

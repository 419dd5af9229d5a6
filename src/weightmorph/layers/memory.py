"""How tensors are held: shapes without views, recomputation in the backward pass, chunks of a batch, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .processor import current

__all__ = [
    "chunk_length", "chunks", "full_precision", "layer_dtype", "rematerialise", "reshape_owned",
    "should_rematerialise",
]  # fmt: skip


def reshape_owned(result: Tensor, shape: Sequence[int]) -> Tensor:
    """Give a tensor that nothing else holds another shape, without autograd taking the result for a view.

    Autograd copies the gradient twice where something is written into a view, because the tensor behind the view may
    be read as well.

    Example:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> type(reshape_owned(x * 2, (6,)).add_(1).grad_fn).__name__
        'AddBackward0'
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not result.is_contiguous():
        return result.reshape(shape)
    return torch.ops.aten._unsafe_view.default(result, list(shape))  # type: ignore[no-any-return]


Saved = Tensor | tuple[Callable[[], Tensor], torch.Size, tuple[int, ...]]


def should_rematerialise(numbers: int, itemsize: int) -> bool:
    """Are weights, or patches, so large that the backward pass recomputes them, a few samples at a time?"""
    return numbers * itemsize >= current().recompute


def rematerialise(*recipes: tuple[Tensor, Callable[[], Tensor]], when: bool) -> AbstractContextManager[object]:
    """Autograd saves a recompute closure in place of each given tensor.

    The weights of all samples, and patches, are large, and recomputing them takes a fraction of the time of using them.

    Args:
        recipes: tensors, each with the function that recomputes it.
        when: False leaves autograd as it is.
    """
    if not when or not torch.is_grad_enabled():
        return nullcontext()
    known = {(tensor.data_ptr(), tensor.numel()): recompute for tensor, recompute in recipes}

    def pack(tensor: Tensor) -> Saved:
        recompute = known.get((tensor.data_ptr(), tensor.numel()))
        return tensor if recompute is None else (recompute, tensor.shape, tensor.stride())

    def unpack(saved: Saved) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        recompute, shape, strides = saved
        with torch.no_grad():
            return recompute().as_strided(shape, strides)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def chunk_length(size: int, bytes_each: int, device: torch.device, least: int = 0) -> int:
    """Samples in a chunk whose working set fits the caches, or takes `least` bytes; on an accelerator, a GiB."""
    machine = current()
    budget = machine.cache * min(torch.get_num_threads(), machine.cores) if device.type == "cpu" else 2**30
    most = max(1, max(budget, least) // max(1, bytes_each))
    # A power of two, because products are fastest where they divide into whole blocks.
    return size if most >= size else 1 << (most.bit_length() - 1)


def chunks(size: int, bytes_each: int, device: torch.device, least: int = 0) -> Iterator[slice]:
    """The chunks as slices of the batch."""
    step = chunk_length(size, bytes_each, device, least)
    return (slice(i, min(i + step, size)) for i in range(0, size, step))


def layer_dtype(x: Tensor) -> torch.dtype:
    """The type in which a convolution or a product takes this input, autocast included."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Within it autocast is off.

    An angle in half precision is a coarse one, and the work on the code is small. The layer that reads a weight casts
    it, as it casts the frozen weight.
    """
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()

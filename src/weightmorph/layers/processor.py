"""Constants fitted to one processor: the cost rule's units, cache sizes, and where one method overtakes another.

Nothing in here changes a result; every constant only decides which of several exact ways is taken. Tests and
benchmarks replace them with [`using`][weightmorph.layers.processor.using]. No accelerator has been measured: there
`Conditioned.autotune` decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["AVX2", "AVX512", "Processor", "current", "using"]


@dataclass(frozen=True, eq=False)
class Processor:
    """One kind of processor, by what its steps cost and what fits its caches.

    The costs are nanoseconds of one core per unit. The rate of multiply-adds is the machine's and sets the scale; the
    others are such that the cheapest route by the rule is the fastest one that `benchmarks/layers.py` measured, in
    float32 with torch 2.13, forward and backward: 16 to 512 channels, maps of 32² to 4², batch 8 to 64, every family.
    """

    # Costs, each per number unless said otherwise.
    multiply_add: float  # of a convolution or a large product
    depthwise: float  # a multiply-add of a depthwise convolution
    stream: float  # an activation that a convolution reads or writes in a layout of its own
    element: float  # one pass over a tensor that reads and writes it
    copy: float  # a weight that is copied
    patch: float  # a patch that is copied
    row: float  # per row of neighbouring pixels in a patch
    mix: float  # a mixed patch, per tap
    tap_weight: float  # a weight whose taps are mixed, per tap
    rank_weight: float  # a weight that gets a low-rank update, per rank
    basis_weight: float  # a weight mixed from weight sets, per set
    reorder: float  # a weight that a convolution brings into a layout of its own
    narrow: float  # fixed overhead of a narrow convolution, in output channels
    narrow_product: float  # fixed overhead of a narrow product, in output channels
    single_channel: float  # a grouped convolution with one input channel a group, relative to more
    launch: float  # the overhead of one operation
    setting: float = 100_000.0  # one more convolution, with its samples picked out and put back
    setting_product: float = 20_000.0  # one more product, likewise

    # Sizes at which one method overtakes another.
    vector: int = 8  # numbers in a vector unit
    thin_products_are_slow: bool = True  # does a product with nine columns run at a third of a wide one's rate?
    wide_filters: int = 16  # taps from which a filter's product fills a vector unit
    few_filters: int = 128  # below it, taking several filters at once costs more than it saves
    many_filters: int = 2**14  # from it, the gradient of a tap mixing is computed in chunks, which use several cores
    filter_chunks: int = 64
    few_columns: int = 16  # below it, a product per sample is slower than a narrow convolution
    few_pixels: int = 32  # below it, torch's batch norm takes longer than a multiply and an add
    cache: int = 4 * 2**20  # bytes of a working set that stays in one core's caches
    cores: int = 8  # at most so many cores' caches are counted on
    recompute: int = 2**23  # bytes of all samples' weights from which they are recomputed in the backward pass
    lazy_weight: int = 2**16  # numbers of a shared weight from which it is materialised where it is read
    samples_per_setting: int = 4  # samples that must share a setting on average to run setting by setting


AVX512 = Processor(
    multiply_add=1 / 80, depthwise=0.57, stream=1.4, element=0.27, copy=0.78, patch=1.0, row=3.6, mix=0.062,
    tap_weight=0.08, rank_weight=0.096, basis_weight=0.0062, reorder=0.245, narrow=30.0, narrow_product=208.0,
    single_channel=0.39, launch=2_230.0, vector=16, thin_products_are_slow=False,
)  # fmt: skip
"""Intel Xeon (Sapphire Rapids), one and two threads: 556 of 559 rows within 1.15 of the fastest route."""

AVX2 = Processor(
    multiply_add=1 / 42, depthwise=0.26, stream=0.83, element=0.123, copy=0.4, patch=0.78, row=10.6, mix=0.123,
    tap_weight=0.286, rank_weight=0.128, basis_weight=0.129, reorder=0.53, narrow=24.1, narrow_product=121.0,
    single_channel=2.79, launch=3_140.0,
)  # fmt: skip
"""The same machine held to AVX2 (in torch, oneDNN and MKL), one thread: 275 of 279 rows."""

_current = AVX512 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else AVX2


def current() -> Processor:
    """The current constants: this machine's, unless [`using`][weightmorph.layers.processor.using] says otherwise."""
    return _current


@contextmanager
def using(processor: Processor | None = None, **changes: Any) -> Iterator[Processor]:
    """Use other constants inside a `with` block, in all threads: for tests and benchmarks.

    Args:
        processor: the constants to start from; None for the current ones.
        changes: constants to change, by name.

    Example:
        >>> with using(cache=1):
        ...     current().cache
        1
    """
    global _current
    before = _current
    _current = dataclasses.replace(processor or before, **changes)
    try:
        yield _current
    finally:
        _current = before

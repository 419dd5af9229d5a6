"""What a step takes, for the cost rule: fitted to what the benchmark of single layers measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["AVX2", "AVX512", "COSTS", "Costs"]


@dataclass(frozen=True)
class Costs:
    """Nanoseconds of one core, per unit named in each comment; backward factors count the forward as 1.

    The rate of multiply-adds is the machine's, which sets the scale. The others are such that the cheapest route by the
    rule is the fastest one by `benchmarks/layers.py`, in float32 with torch 2.13, forward and backward: 16 to 512
    channels, maps of 32² to 4², batch 8 to 64, every family.
    """

    multiply_add: float  # of a convolution or a large product
    depthwise: float  # multiply-add of a depthwise convolution
    stream: float  # of a number that a convolution reads or writes, and lays out for itself
    element: float  # of one pass over a tensor that reads and writes it
    copy: float  # of a weight
    patch: float  # of a patch that is copied
    run: float  # per stretch of pixels that lie side by side in a patch
    mix: float  # of a mixed patch, per tap
    tap_weight: float  # of a weight whose taps are mixed, per tap
    rank_weight: float  # of a weight, per rank added
    basis_weight: float  # of a weight, per weight set mixed
    reorder: float  # of a weight that a convolution has to lay out anew
    narrow: float  # rows by which a convolution to few channels costs more than they do
    narrow_product: float  # the same of a product, where a kernel has one tap
    lone: float  # a grouped convolution with one input channel, against more
    launch: float  # one operation's overhead
    setting: float = 100_000.0  # of one more convolution, with its samples picked out and put back
    setting_product: float = 20_000.0  # of one more product


AVX512 = Costs(
    multiply_add=1 / 80, depthwise=0.57, stream=1.4, element=0.27, copy=0.78, patch=1.0, run=3.6, mix=0.062,
    tap_weight=0.08, rank_weight=0.096, basis_weight=0.0062, reorder=0.245, narrow=30.0, narrow_product=208.0,
    lone=0.39, launch=2_230.0,
)  # fmt: skip
"""Intel Xeon (Sapphire Rapids), one and two threads: 556 of 559 rows within 1.15 of the fastest route."""

AVX2 = Costs(
    multiply_add=1 / 42, depthwise=0.26, stream=0.83, element=0.123, copy=0.4, patch=0.78, run=10.6, mix=0.123,
    tap_weight=0.286, rank_weight=0.128, basis_weight=0.129, reorder=0.53, narrow=24.1, narrow_product=121.0,
    lone=2.79, launch=3_140.0,
)  # fmt: skip
"""The same machine held to AVX2 (in torch, oneDNN and MKL), one thread: 275 of 279 rows."""

COSTS = AVX512 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else AVX2
"""This machine's. Nothing was measured on accelerators: `autotune` is for them."""

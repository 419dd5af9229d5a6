"""What a layer looks like to the cost rule, and the estimate that a route adds up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

from ..slots import Grow, Slot
from .processor import Processor, current

__all__ = ["Cost", "LayerSize", "cached_unless_tracing"]

P = ParamSpec("P")
R = TypeVar("R")


def cached_unless_tracing(function: Callable[P, R]) -> Callable[P, R]:
    """Remember a pure function's results by its arguments, but compute them anew while a graph is traced.

    A traced graph holds symbolic sizes, which must neither be hashed nor outlive the trace.
    """
    cached = lru_cache(maxsize=4096)(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        return cached(*args, **kwargs)  # type: ignore[arg-type]  # lru_cache asks for Hashable arguments

    return call


@dataclass(frozen=True)
class LayerSize:
    """One layer in numbers: a sample's output positions, and the canonical weight `(G, O, I, T)`.

    Attributes:
        positions: output pixels of one sample; for a transposed convolution, its input pixels, where its work is.
        groups, outputs, inputs, taps: G, O, I, T of the frozen weight.
        grown: taps of W(θ).
        kind: `"conv"`, `"conv_transpose"` or `"linear"`.
        row: the length of a row of output positions.
        batch: the number of samples; None where a traced graph must not depend on it.
        training: True if a backward pass follows.
        tracing: True while a graph is traced.
        tiles: True if a transposed convolution's outputs lie side by side, without overlap.
    """

    positions: int
    groups: int
    outputs: int
    inputs: int
    taps: int
    grown: int
    kind: str = "conv"
    row: int = 8
    batch: int | None = None
    training: bool = False
    tracing: bool = False
    tiles: bool = False

    @classmethod
    def of(cls, slot: Slot, positions: int, grow: Grow, batch: int | None = None) -> LayerSize:
        """The layer of a slot that gives so many output positions."""
        g, o, i, t = slot.canonical_shape
        grown = math.prod(slot.grown(grow))
        if slot.kind == "linear":
            return cls(positions, 1, o, i, t, grown, "linear", batch=batch)
        row = max(1, round(positions ** (1 / max(1, slot.spatial))))
        return cls(positions, g, o, i, t, grown, slot.kind, row, batch)

    @property
    def numbers(self) -> int:
        """Numbers in the weight, its grown support included."""
        return self.groups * self.outputs * self.inputs * self.grown

    @property
    def work(self) -> int:
        """Multiply-adds of the layer with the grown support."""
        return self.positions * self.numbers

    @property
    def frozen_work(self) -> float:
        """Multiply-adds of the frozen layer."""
        return self.work / self.grown * self.taps

    @property
    def outputs_of_all(self) -> int:
        """Numbers in the output of one sample."""
        return self.positions * self.groups * self.outputs

    @property
    def depthwise(self) -> bool:
        """One input channel a group."""
        return self.groups > 1 and self.inputs == 1


@dataclass
class Cost:
    """What a route does to one sample, added up step by step.

    Attributes:
        layer: the layer in numbers.
        time: nanoseconds of one core, without the overhead of operations.
        work: multiply-adds.
        moved: numbers read and written.
        launches: operations.
        frozen_absorbed: True if a term's work includes the frozen layer's.
        machine: the constants of the processor.
    """

    layer: LayerSize
    time: float = 0.0
    work: float = 0.0
    moved: float = 0.0
    launches: float = 0.0
    frozen_absorbed: bool = False
    machine: Processor = field(default_factory=current)

    @classmethod
    def of_frozen(cls, layer: LayerSize) -> Cost:
        """The frozen layer itself."""
        cost = cls(layer)
        cost.convolution(layer.frozen_work, weights=layer.numbers / max(1, layer.batch or 1), back=1.0)
        return cost

    def add(
        self, time: float, *, work: float = 0.0, moved: float = 0.0, launches: float = 1.0, back: float = 2.0
    ) -> None:
        """Add one step; its backward pass costs `back` times as much."""
        self.time += time * (1 + back if self.layer.training else 1)
        self.work += work
        self.moved += moved
        self.launches += launches * (2.5 if self.layer.training else 1)

    def convolution(self, work: float, *, weights: float, back: float, product: bool = False) -> None:
        """Add a convolution or a large product: `work` multiply-adds with a weight of so many numbers."""
        layer = self.layer
        rate = self.machine.depthwise if layer.depthwise else self.machine.multiply_add
        maps = layer.groups * (layer.inputs + layer.outputs) * layer.positions
        streamed = 0.0 if product or layer.kind == "linear" else self.machine.stream * maps
        self.add(work * rate + streamed, work=work, moved=maps + weights, back=back)

    def elements(self, numbers: float, passes: float = 1.0, back: float = 1.5) -> None:
        """Add passes over a tensor."""
        time = self.machine.element * numbers * passes
        self.add(time, work=numbers * passes, moved=2 * numbers * passes, back=back)

    def patches(self) -> None:
        """Add a copy of what every tap sees; the backward pass copies it again and sums it up."""
        layer = self.layer
        size = layer.groups * layer.inputs * layer.grown * layer.positions
        self.add(size * (self.machine.patch + self.machine.row / layer.row), moved=2 * size, launches=2, back=2.5)

    def narrow(self, rank: int) -> None:
        """Add a convolution to `rank` channels a group, and the product that takes them to the outputs."""
        layer, g = self.layer, self.layer.groups
        work = layer.positions * g * layer.inputs * layer.taps * rank
        overhead = self.machine.narrow if layer.taps > 1 else self.machine.narrow_product
        back = 2.5 if layer.taps > 1 else 3.5
        time = work / rank * (rank + overhead) * self.machine.multiply_add
        self.add(time, work=work, moved=layer.positions * g * layer.inputs, back=back)
        self.elements(layer.outputs_of_all, back=1.0)
        self.work += layer.outputs_of_all * rank
        self.launches += 1

    def total(self) -> float:
        """Nanoseconds per sample, each operation's overhead shared by the batch."""
        batch = self.layer.batch
        return self.time + (self.launches * self.machine.launch / batch if batch else 0.0)

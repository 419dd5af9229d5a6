"""What a call does beside the clock: operators, multiply-adds, bytes, and how long it is in none of torch's operators.

It says what limits a call that is slower than its bar: arithmetic, memory, or the number of steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from timing import Call
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Work", "work"]

IN_PLACE = {torch.ops.aten.baddbmm_: torch.ops.aten.baddbmm, torch.ops.aten.addmm_: torch.ops.aten.addmm}
"""Operators whose multiply-adds are counted as those of another."""


@dataclass(frozen=True)
class Work:
    """One call: operators that compute, multiply-adds, bytes they read and write, seconds outside of them."""

    operators: int
    multiply_adds: float
    bytes: float
    outside: float


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators, self.multiply_adds, self.bytes = 0, 0.0, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        alias = [r.alias_info for r in func._schema.returns]
        if any(info is not None and not info.is_write for info in alias):
            return out  # a view
        self.operators += 1
        packet = IN_PLACE.get(func._overloadpacket, func._overloadpacket)
        if packet in flop_registry:
            given = {name: value for name, value in kwargs.items() if name != "out"}
            self.multiply_adds += flop_registry[packet](*args, **given, out_val=out) / 2
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def work(call: Call, rounds: int = 5) -> Work:
    """Count once, and measure the time outside of operators over a few calls.

    Torch's profiler tells each operator's own time; what is left of the wall clock is Python's and the dispatcher's.
    """
    with _Counting() as counted:
        call()
    outside = []
    for _ in range(rounds):
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            start = time.perf_counter()
            call()
            taken = time.perf_counter() - start
        outside.append(taken - sum(event.self_cpu_time_total for event in seen.key_averages()) / 1e6)
    return Work(counted.operators, counted.multiply_adds, counted.bytes, sorted(outside)[rounds // 2])

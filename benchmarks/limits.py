"""What a call does beside the clock: operators, multiply-adds, bytes, and how long it is in none of torch's operators.

It says what limits a call that is slower than its bar: arithmetic, memory, or the number of steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from timing import Call
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Work", "work"]


@dataclass(frozen=True)
class Work:
    """One call: operators that compute, multiply-adds, bytes they read and write, seconds outside of them."""

    operators: int
    multiply_adds: float
    bytes: float
    outside: float


def multiply_adds(name: str, args: tuple[Any, ...], out: Any) -> float:
    """Of a convolution, its backward or a product; of anything else none."""
    if name in ("mm", "bmm"):
        return float(out.numel() * args[0].shape[-1])
    if name in ("addmm", "baddbmm"):
        return float(out.numel() * args[1].shape[-1])
    if name == "convolution":
        pixels = args[0].numel() if args[6] else out.numel()
        return float(pixels * args[1][0].numel())
    if name == "convolution_backward":
        # Once for the input's gradient and once for the weight's, as many as the forward.
        grad, x, weight = args[:3]
        pixels = x.numel() if args[7] else grad.numel()
        return float(pixels * weight[0].numel() * sum(args[10][:2]))
    return 0.0


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
        self.multiply_adds += multiply_adds(func._overloadpacket.__name__.rstrip("_"), args, out)
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

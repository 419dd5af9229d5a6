"""Whole networks: the price of conditioned weights, against the frozen forward and the plain training step.

    python benchmarks/engine.py [--quick] [--threads 1 2] [--only PATTERN ...]

Each network's calls are timed in one process, round-robin; peak memory is taken in a process of its own per call. The
bar that a call has to meet stands beside it. See benchmarks/README.md for what each row is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from limits import work
from networks import NETWORKS, Network, angles, condition, network, step
from timing import (
    Call,
    Peak,
    Timing,
    interleave,
    milliseconds,
    parser,
    peak_memory,
    say,
    settle,
    table,
    threads,
    times,
    wanted,
    write,
)
from torch import Tensor, nn

import weightmorph as wm

ANGLE = 30.0
COPIES = "three copies of the conditioned weights"
STRICT = ("demo CNN 28²", "ResNet-18 224²")  # where a shared θ may cost 5 %, without the allowance of three copies

Row = dict[str, Any]


def forwards(net: nn.Module, models: dict[str, wm.Conditioned], x: Tensor, theta: Tensor) -> dict[str, Call]:
    """The calls of inference: to be made without gradients."""
    copied = list(models["full sum"].weights(angle=ANGLE).values())
    made: dict[str, Call] = {"frozen": lambda: net(x)}
    for family, model in models.items():
        if family != "low rank + scale":
            made[f"at(θ), {family}"] = partial(model.at(angle=ANGLE), x)
    made |= {f"shared θ, {family}": partial(model, x, angle=ANGLE) for family, model in models.items()}
    made |= {f"per sample, {family}": partial(model, x, angle=theta) for family, model in models.items()}
    return {**made, COPIES: lambda: [weight.clone() for weight in copied for _ in range(3)]}


def families(net: nn.Module, x: Tensor) -> dict[str, wm.Conditioned]:
    """What is measured: also without grown supports, where the full sum has some."""
    models = {family: condition(net, family, x) for family in ("low rank + scale", "full sum")}
    made = models["full sum"].weights(angle=ANGLE)
    if any(weight.shape != models["full sum"].slots[name].shape for name, weight in made.items()):
        models["full sum, no grown taps"] = condition(net, "full sum, no grown taps", x)
    return models


def steps(net: nn.Module, models: dict[str, wm.Conditioned], x: Tensor, y: Tensor, theta: Tensor) -> dict[str, Call]:
    """Training steps: the plain one trains all of the network's weights, ours the transform alone."""
    made: dict[str, Call] = {"plain": step(partial(net, x), net.parameters(), y)}
    for name, model in models.items():
        made[f"shared θ, {name}"] = step(partial(model, x, angle=ANGLE), model.parameters(), y)
    for name, model in models.items():
        made[f"per sample, {name}"] = step(partial(model, x, angle=theta), model.parameters(), y)
    return made


FORWARD_BARS = {"at(θ)": (1.02, None), "per sample, low rank": (1.3, 1.2), "per sample, full sum": (1.5, 1.2)}


def forward_bar(name: str, found: Network, timings: dict[str, Timing]) -> tuple[float | None, float | None]:
    """What a forward may cost against the frozen one, and what it is meant to."""
    if name.startswith("shared"):
        return (1.05, None) if found.name in STRICT else (1 + timings[COPIES].ratio, None)
    return next((bar for start, bar in FORWARD_BARS.items() if name.startswith(start)), (None, None))


def step_bar(name: str, found: Network, timings: dict[str, Timing]) -> tuple[float | None, float | None]:
    """The same of a training step against the plain one."""
    if name.startswith("shared"):
        return 1.10, None
    return (1.25, 1.15) if name.startswith("per sample") else (None, None)


LIMITS = (
    "What each call does, in multiples of the first: multiply-adds, bytes that operators read and write, operators "
    "that compute, and the time outside of torch's operators: Python's, the dispatcher's and, here, the profiler's."
)

Bar = Callable[[str, Network, dict[str, Timing]], tuple[float | None, float | None]]


def measure(found: Network, size: int, thread_count: int, quick: bool, seconds: float | None) -> list[Row]:
    """The rows of one network at one batch size: forwards, then training steps."""
    net = found.make()
    x, y = found.inputs(size)
    theta = angles(size)
    models = families(net, x)
    rows: list[Row] = []
    least, most = (1, 2) if quick else (5, 300)
    spent = seconds or (0.2 if quick else 6.0)
    with threads(thread_count):
        with torch.no_grad():
            timings = interleave(forwards(net, models, x, theta), spent, least=least, most=most)
        rows += judged("forward", found, timings, forward_bar)
        timings = interleave(steps(net, models, x, y, theta), spent, least=min(least, 3), most=most)
        rows += judged("training step", found, timings, step_bar)
    return [{"network": found.name, "batch": size, "threads": thread_count, **row} for row in rows]


def judged(what: str, found: Network, timings: dict[str, Timing], bar: Bar) -> list[Row]:
    """Timings as rows, each with its bar."""
    rows = []
    for name, timing in timings.items():
        limit, goal = bar(name, found, timings)
        row = {"what": what, "call": name, "seconds": timing.seconds, "ratio": timing.ratio, "rounds": timing.rounds}
        rows.append({**row, "low": timing.low, "high": timing.high, "bar": limit, "goal": goal})
    return rows


# What limits them


def limits(found: Network, size: int, thread_count: int) -> list[Row]:
    """Operators, arithmetic and bytes of forwards and training steps, and the time outside of operators."""
    net = found.make()
    x, y = found.inputs(size)
    theta, models, rows = angles(size), families(net, x), []
    groups = (
        ("forward", False, forwards(net, models, x, theta)),
        ("training step", True, steps(net, models, x, y, theta)),
    )
    for what, grad, calls in groups:
        for name, call in calls.items():
            if name.startswith(("frozen", "plain", "shared", "per sample")):
                with threads(thread_count), torch.set_grad_enabled(grad):
                    call()
                    rows.append({"what": f"work of a {what}", "call": name, **asdict(work(call))})
    return [
        {"network": found.name, "batch": size, "threads": thread_count, "bar": None, "goal": None, **r} for r in rows
    ]


def limits_table(rows: list[Row], timed: list[Row]) -> str:
    """Beside each call's time, what it does in multiples of the frozen or plain call."""
    times_of = {(row["threads"], f"work of a {row['what']}", row["call"]): row for row in timed}
    lines = []
    for row in rows:
        first = next(r for r in rows if r["what"] == row["what"])
        time = times_of.get((row["threads"], row["what"], row["call"]))
        if time is None:
            continue
        ratios = [times(row[key] / max(first[key], 1)) for key in ("multiply_adds", "bytes")]
        outside = f"{row['outside'] * 1e3:.1f} ms ({row['outside'] / time['seconds']:.0%})"
        lines.append(
            (
                row["what"].removeprefix("work of a "),
                row["call"],
                times(time["ratio"]),
                *ratios,
                row["operators"],
                outside,
            )
        )
    header = ("what", "call", ">time", ">multiply-adds", ">bytes", ">operators", ">outside of operators")
    return table(header, lines)


# Memory


def build_step(name: str, call: str, size: int) -> tuple[Call, Call]:
    """In a fresh process: the training step `call` on one sample, and on the whole batch."""
    found = network(name)
    net = found.make()
    x, y = found.inputs(size)
    family = call.partition(", ")[2]
    models = {family: condition(net, family, x)} if family else {}
    small, whole = (steps(net, models, x[:n], y[:n], angles(n)) for n in (1, size))

    def warm() -> None:
        small[call]()
        for module in (net, *models.values()):
            module.zero_grad()  # gradients are part of what is measured

    return warm, whole[call]


def memory(found: Network, size: int, thread_count: int) -> list[Row]:
    """Peak memory of training steps, above what the process held before: network, transform and inputs."""
    calls = ("plain", "shared θ, full sum", "per sample, low rank + scale", "per sample, full sum")
    peaks: dict[str, Peak] = {}
    for call in calls:
        found_peaks = [peak_memory(build_step, found.name, call, size, thread_count=thread_count) for _ in range(3)]
        peaks[call] = sorted(found_peaks, key=lambda peak: peak.above)[1]  # the allocator's luck is a tenth
    plain = peaks["plain"]
    return [
        {
            "network": found.name,
            "batch": size,
            "threads": thread_count,
            "what": "peak memory of a training step",
            "call": call,
            "bytes": peak.above,
            "process": peak.before + peak.above,
            "ratio": peak.above / max(plain.above, 1),
            "process_ratio": (peak.before + peak.above) / (plain.before + plain.above),
            "bar": 1.3 if call.startswith("per sample") else None,
            "goal": None,
        }
        for call, peak in peaks.items()
    ]


# The tables


def verdict(row: Row) -> str:
    """Was the bar met?"""
    if row["bar"] is None:
        return ""
    if row["goal"] is not None and row["ratio"] <= row["goal"]:
        return "yes, and the goal"
    return "yes" if row["ratio"] <= row["bar"] else "**no**"


def blocks(rows: list[Row]) -> list[str]:
    """One table per network and batch size, and before them how many bars were met."""
    barred = [row for row in rows if row["bar"] is not None]
    met = sum(row["ratio"] <= row["bar"] for row in barred)
    found = [
        "Ratios are to the first row of their kind: the frozen network's forward, the plain training step (all of the "
        "network's weights trained; no optimiser's update on either side), and that step's peak memory. In brackets "
        "the quartiles over the rounds. Every network runs in eval mode.",
        f"**{met} of {len(barred)} bars met.**",
    ]
    for name, size in dict.fromkeys((row["network"], row["batch"]) for row in rows):
        lines = []
        mine = [r for r in rows if (r["network"], r["batch"]) == (name, size)]
        counted = [r for r in mine if "operators" in r]
        for row in (r for r in mine if "operators" not in r):
            timed = "seconds" in row
            quantity = f"{milliseconds(row['seconds'])} ms" if timed else f"{row['bytes'] / 2**20:,.0f} MiB"
            quartiles = f" ({row['low']:.2f}–{row['high']:.2f})" if timed and row["low"] != row["high"] else ""
            bar = "" if row["bar"] is None else f"≤ {row['bar']:.2f}×"
            goal = "" if row["goal"] is None else f"{row['goal']:.2f}×"
            what = (row["threads"], row["what"], row["call"], quantity, times(row["ratio"]) + quartiles)
            lines.append((*what, bar, goal, verdict(row)))
        header = (">threads", "what", "call", ">median", ">ratio", ">bar", ">goal", "met")
        block = f"## {name}, batch {size}\n\n{table(header, lines)}"
        if counted:
            block += f"\n\n{LIMITS}\n\n{limits_table(counted, [r for r in mine if 'seconds' in r])}"
        found.append(block)
    return found


def main() -> None:
    """Measure every network, and write after each."""
    options = parser(__doc__).parse_args()
    settle()
    rows: list[Row] = []
    for found in NETWORKS:
        if not found.installed:
            say(f"{found.name}: left out, {found.needs} is not installed")
            continue
        for number, size in enumerate(found.batches):
            if not wanted(options, f"{found.name} batch {size}"):
                continue
            size = min(size, 4) if options.quick else size
            for count in options.threads:
                say(f"{found.name}, batch {size}, {count} thread(s)")
                rows += measure(found, size, count, options.quick, options.seconds)
            rows += limits(found, size, options.threads[0])
            if number == 0:
                say(f"{found.name}, batch {size}, peak memory")
                rows += memory(found, size, options.threads[0])
            write(options, "engine", "Whole networks under conditioned weights", blocks(rows), rows)
    say("\n\n".join(blocks(rows)))


if __name__ == "__main__":
    main()

"""How the price grows: with the batch, with the number of distinct θ in it, and with the network's depth.

    python benchmarks/growth.py [--quick] [--threads 1] [--only batch distinct depth]

Writes growth.md, growth.json and growth.png. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from networks import Network, angles, condition, network, step
from timing import (
    Call,
    Timing,
    folder,
    interleave,
    milliseconds,
    parser,
    say,
    settle,
    table,
    threads,
    times,
    wanted,
    write,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import weightmorph as wm

ANGLE = 30.0
GROWING = {"demo CNN 28²": 64, "ResNet-18 32²": 16}
"""Which networks, up to which batch size."""

Row = dict[str, Any]
Plan = Mapping[str, Sequence[int]]
FULL: Plan = dict.fromkeys(("batch", "distinct", "depth"), (1, 2, 4, 8, 16, 32, 64))
QUICK: Plan = {"batch": (1, 4), "distinct": (1, 4), "depth": (1, 4, 16)}


def compare(calls: Mapping[str, Call], options: argparse.Namespace, grad: bool = False) -> dict[str, Timing]:
    """Time calls in one grad mode."""
    spent, least = (0.05, 2) if options.quick else (1.0, 5)
    with torch.set_grad_enabled(grad):
        return interleave(calls, options.seconds or spent, least=least)


def rows_of(kind: str, where: str, at: int, timings: Mapping[str, Timing]) -> list[Row]:
    """Timings as rows."""
    place = {"kind": kind, "where": where, "at": at}
    return [
        {**place, "call": name, "seconds": timing.seconds, "ratio": timing.ratio, "rounds": timing.rounds}
        for name, timing in timings.items()
    ]


def with_batch(found: Network, sizes: Sequence[int], options: argparse.Namespace) -> list[Row]:
    """Forwards and training steps at growing batch sizes, every sample with its own θ."""
    net, rows = found.make(), []
    models = {name: condition(net, name, found.inputs(1)[0]) for name in ("low rank + scale", "full sum")}
    for size in sizes:
        (x, labels), theta = found.inputs(size), angles(size)
        forwards: dict[str, Call] = {"frozen": partial(net, x)}
        forwards["shared θ, full sum"] = partial(models["full sum"], x, angle=ANGLE)
        forwards |= {f"per sample, {name}": partial(model, x, angle=theta) for name, model in models.items()}
        rows += rows_of("batch, forward", found.name, size, compare(forwards, options))
        steps: dict[str, Call] = {"plain": step(partial(net, x), net.parameters(), labels)}
        for name, model in models.items():
            steps[f"per sample, {name}"] = step(partial(model, x, angle=theta), model.parameters(), labels)
        rows += rows_of("batch, training step", found.name, size, compare(steps, options, grad=True))
        say(f"{found.name}, batch {size}")
    return rows


def with_distinct(found: Network, size: int, numbers: Sequence[int], options: argparse.Namespace) -> list[Row]:
    """One batch in which so many θ are distinct."""
    net, rows = found.make(), []
    x, labels = found.inputs(size)
    models = {name: condition(net, name, x) for name in ("low rank + scale", "full sum")}
    for number in numbers:
        theta = angles(size, number)
        forwards: dict[str, Call] = {"frozen": partial(net, x)}
        forwards |= {f"per sample, {name}": partial(model, x, angle=theta) for name, model in models.items()}
        rows += rows_of("distinct, forward", found.name, number, compare(forwards, options))
        steps: dict[str, Call] = {"plain": step(partial(net, x), net.parameters(), labels)}
        for name, model in models.items():
            steps[f"per sample, {name}"] = step(partial(model, x, angle=theta), model.parameters(), labels)
        rows += rows_of("distinct, training step", found.name, number, compare(steps, options, grad=True))
        say(f"{found.name}, batch {size}, {number} distinct")
    return rows


# Depth


def chain(depth: int) -> nn.Module:
    """So many small convolutions, one after another: what a layer costs beside its arithmetic."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(depth))).eval()


class Launches(TorchDispatchMode):
    """Counts torch's operators; those that only make a view apart from those that compute."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.computing = self.views = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        alias = [r.alias_info for r in func._schema.returns]
        if any(info is not None and not info.is_write for info in alias):
            self.views += 1
        else:
            self.computing += 1
        return func(*args, **(kwargs or {}))


def launches(call: Call) -> tuple[int, int]:
    """How many operators compute, and how many make a view."""
    with torch.no_grad(), Launches() as counted:
        call()
    return counted.computing, counted.views


def depth_calls(net: nn.Module, model: wm.Conditioned, x: Tensor, theta: Tensor) -> dict[str, Call]:
    """What is timed on a chain; `model.frozen()` is the clone that a call makes, without weights in it."""
    fixed = model.at(angle=ANGLE)
    return {
        "frozen": partial(net, x),
        "at(θ)": partial(fixed, x),
        "shared θ": partial(model, x, angle=ANGLE),
        "per sample": partial(model, x, angle=theta),
        "clone": model.frozen,
        "weights(θ)": partial(model.weights, angle=ANGLE),
        "at(θ), making it": partial(model.at, angle=ANGLE),
    }


def with_depth(depths: Sequence[int], options: argparse.Namespace) -> list[Row]:
    """Chains of small convolutions: time, and operators launched."""
    rows = []
    x, theta = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1)), angles(4)
    for family in ("low rank + scale", "full sum"):
        for depth in depths:
            net = chain(depth)
            calls = depth_calls(net, condition(net, family, x), x, theta)
            timings = compare(calls, options)
            for row in rows_of("depth", family, depth, timings):
                computing, views = launches(calls[row["call"]])
                rows.append({**row, "operators": computing, "views": views})
            say(f"chain of {depth}, {family}")
    return rows


# The tables


def blocks(rows: list[Row]) -> list[str]:
    """A table per kind of growth and network."""
    found = [
        "Batch and distinct θ: in multiples of the frozen forward, or of the plain training step, on the same batch. "
        "Depth: a chain of 3×3 convolutions of 8 channels on four 8×8 maps, where arithmetic is next to nothing.",
    ]
    for kind, where in dict.fromkeys((row["kind"], row["where"]) for row in rows):
        mine = [row for row in rows if (row["kind"], row["where"]) == (kind, where)]
        heading = f"## {kind[0].upper()}{kind[1:]}: {where}"
        found.append(f"{heading}\n\n{depth_table(mine) if kind == 'depth' else ratio_table(kind, mine)}")
    return found


def ratio_table(kind: str, rows: list[Row]) -> str:
    """Ratios by batch size or number of distinct θ."""
    calls = list(dict.fromkeys(row["call"] for row in rows))
    lines = []
    for at in dict.fromkeys(row["at"] for row in rows):
        here = {row["call"]: row for row in rows if row["at"] == at}
        first = f"{milliseconds(here[calls[0]]['seconds'])} ms"
        lines.append((at, first, *(times(here[call]["ratio"]) for call in calls[1:])))
    return table((f">{kind.partition(',')[0]}", *(f">{call}" for call in calls)), lines)


def depth_table(rows: list[Row]) -> str:
    """The deepest chain, and what one layer more costs."""
    deepest = max(row["at"] for row in rows)
    lines = []
    for call in dict.fromkeys(row["call"] for row in rows):
        mine = [row for row in rows if row["call"] == call]
        last = next(row for row in mine if row["at"] == deepest)
        figures = [f"{per_layer(mine, key) * unit:.1f}" for key, unit in UNITS.items()]
        lines.append((call, f"{milliseconds(last['seconds'])} ms", *figures))
    header = ("call", f">{deepest} layers", ">µs a layer", ">operators a layer", ">views a layer")
    by_call = {row["call"]: row["seconds"] for row in rows if row["at"] == deepest}
    rest = by_call["shared θ"] - by_call["at(θ)"] - by_call["clone"]
    told = (
        f"Beside the network and the clone a shared θ's call takes {rest / deepest * 1e6:.1f} µs a layer: making the "
    )
    return f"{table(header, lines)}\n\n{told}weights, binding and dispatch (by subtraction)."


UNITS = {"seconds": 1e6, "operators": 1.0, "views": 1.0}


def per_layer(rows: Sequence[Row], key: str) -> float:
    """The slope of a figure over depth."""
    if len(rows) < 2:
        return float(rows[0][key] / rows[0]["at"])
    return float(statistics.linear_regression([row["at"] for row in rows], [row[key] for row in rows]).slope)


# The picture


def plot(rows: list[Row], options: argparse.Namespace) -> None:
    """One panel per table of ratios, and one for depth; skipped where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        say("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((row["kind"], row["where"]) for row in rows))
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.2 * columns, 3.4 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    colours = {"frozen": 0, "plain": 0, "shared θ, full sum": 1, "per sample, low rank + scale": 2}
    for axis, (kind, where) in zip(axes.flat, panels, strict=False):
        mine = [row for row in rows if (row["kind"], row["where"]) == (kind, where)]
        depth = kind == "depth"
        key, unit = ("seconds", 1e3) if depth else ("ratio", 1.0)
        for call in dict.fromkeys(row["call"] for row in mine):
            points = [(row["at"], row[key] * unit) for row in mine if row["call"] == call]
            colour = f"C{colours.setdefault(call, len(colours))}"
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, label=call, color=colour)
        axis.set(title=f"{where}: {kind}", xlabel="layers" if depth else kind.partition(",")[0], xscale="log")
        axis.set_ylabel("ms" if depth else "times the first")
        axis.set_yscale("log" if depth else "linear")
        axis.set_xticks(list(dict.fromkeys(row["at"] for row in mine)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    path = folder(options) / "growth.png"
    beside = path.with_name(".growth.png")
    figure.savefig(beside, dpi=110)
    beside.replace(path)
    pyplot.close(figure)


def main() -> None:
    """Measure the three kinds of growth, and write after each."""
    options = parser(__doc__, thread_counts=(1,)).parse_args()
    settle()
    sizes, rows = QUICK if options.quick else FULL, []
    with threads(options.threads[0]):
        for name, largest in GROWING.items():
            found = network(name)
            if wanted(options, f"batch {name}"):
                rows += with_batch(found, [n for n in sizes["batch"] if n <= largest], options)
            if wanted(options, f"distinct {name}"):
                size = 8 if options.quick else largest
                rows += with_distinct(found, size, [n for n in sizes["distinct"] if n <= size], options)
            report(rows, options)
        if wanted(options, "depth"):
            rows += with_depth(sizes["depth"], options)
            report(rows, options)
    say("\n\n".join(blocks(rows)))


def report(rows: list[Row], options: argparse.Namespace) -> None:
    """Tables and picture."""
    if rows:
        plot(rows, options)
        write(options, "growth", "How the price grows", [*blocks(rows), "![The same as curves](growth.png)"], rows)


if __name__ == "__main__":
    main()

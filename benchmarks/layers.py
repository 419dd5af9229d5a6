"""The layer grid: every route of every family on single layers, and how good the planner's choice is.

    python benchmarks/layers.py [--quick] [--threads 1 2] [--only PATTERN ...] [--families PATTERN ...]

A row is a layer, a family and a pass (forward, or forward and backward), one θ per sample. See benchmarks/README.md.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from networks import shake
from routes import ASIDE, ROUTES, taking
from timing import Call, Timing, interleave, milliseconds, parser, say, settle, table, threads, times, wanted, write
from torch import Tensor, nn

import weightmorph as wm

PLANNER_BAR, AUTOTUNE_BAR = 1.15, 1.05
TOO_LONG = 1.5  # seconds: where the planner's call takes longer, the routes are not compared
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A layer without bias, the shape of one input and the batch size."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int

    @property
    def parameter(self) -> wm.parameters.Parameter:
        """What moves the taps: a turn where there is a plane, a stretch on a line."""
        return wm.LogInterval(0.5, 2.0, affine="zoom") if len(self.shape) == 2 else wm.Angle("deg")


def square(inputs: int, outputs: int, size: int, batch: int, note: str = "", **options: Any) -> Case:
    """A 2-D convolution that keeps the size where its stride is 1."""
    kernel = options.pop("kernel", 3)
    name = f"{inputs}→{outputs} {kernel}×{kernel} {size}² B{batch}" + (f" {note}" if note else "")
    build = partial(nn.Conv2d, inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return Case(name, build, (inputs, size, size), batch)


CASES = (
    # ANCHORS.md
    square(32, 64, 26, 64),
    square(64, 128, 14, 64),
    square(128, 256, 7, 64),
    square(256, 256, 7, 16),
    # a ResNet's, from the trial
    square(64, 64, 32, 16),
    square(128, 128, 16, 16),
    square(256, 256, 8, 16),
    square(512, 512, 4, 16),
    # a small network's
    square(1, 16, 28, 64),
    square(16, 32, 13, 64),
    square(32, 64, 6, 64),
    # other kinds
    square(64, 128, 32, 16, "stride 2", stride=2),
    square(128, 256, 14, 32, kernel=1),
    square(128, 128, 28, 32, "depthwise", groups=128),
    square(240, 240, 14, 32, "depthwise", groups=240, kernel=5),
    Case("Conv1d 64→64 9 L256 B32", lambda: nn.Conv1d(64, 64, 9, padding=4, bias=False), (64, 256), 32),
    Case("Conv3d 16→32 3³ 12³ B8", lambda: nn.Conv3d(16, 32, 3, padding=1, bias=False), (16, 12, 12, 12), 8),
    Case(
        "transposed 128→64 4×4 8² stride 2 B16",
        lambda: nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False),
        (128, 8, 8),
        16,
    ),
    Case(
        "transposed 64→32 2×2 16² stride 2 B16",
        lambda: nn.ConvTranspose2d(64, 32, 2, 2, bias=False),
        (64, 16, 16),
        16,
    ),
    Case("Linear 512→512 B64", lambda: nn.Linear(512, 512, bias=False), (512,), 64),
    Case(
        "Linear 64×7×7→128 B64 over a map",
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64 * 49, 128, bias=False)),
        (64, 7, 7),
        64,
    ),
)

FAMILIES: dict[str, Callable[[], wm.WeightTransform]] = {
    "LowRank(8)": lambda: wm.LowRank(8),
    "Scale": lambda: wm.Scale(),
    "Warp": lambda: wm.Warp(),
    "Subspace(3)": lambda: wm.Subspace(3),
    "Lie": lambda: wm.Lie(),
    "PerFilter(mlp)": lambda: wm.PerFilter("mlp"),
    "Warp + LowRank(8) + Scale": lambda: wm.Warp() + wm.LowRank(8) + wm.Scale(),
}


def conditioned(case: Case, net: nn.Module, family: str, x: Tensor) -> wm.Conditioned | None:
    """The layer under a family, or None where the family has nothing to do there (a warp on a single tap)."""
    torch.manual_seed(0)
    try:
        model = wm.condition(net, {"theta": case.parameter}, FAMILIES[family](), example=x[:2])
    except (wm.errors.SelectionError, wm.errors.TransformError):
        return None
    return shake(model)


def passes(run: Callable[[Tensor], Tensor], x: Tensor, trained: nn.Module, gradient: Tensor | None) -> Call:
    """The forward, or forward and backward to the input and to what is trained, as within a network."""
    if gradient is None:

        def forward() -> Tensor:
            with torch.no_grad():
                return run(x)

        return forward
    inner = x.clone().requires_grad_()
    parameters = list(trained.parameters())

    def both() -> None:
        inner.grad = None
        for parameter in parameters:
            parameter.grad = None
        run(inner).backward(gradient)

    return both


def measure(case: Case, family: str, backward: bool, quick: bool, seconds: float | None) -> Row | None:
    """One row: the frozen layer, each route that there is, the planner, the tuned plan, and one θ for the batch."""
    torch.manual_seed(0)
    net, size = case.build().eval(), 4 if quick else case.batch
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, *case.shape, generator=generator)
    model, tuned = (conditioned(case, net, family, x) for _ in range(2))
    if model is None or tuned is None:
        return None
    theta = wm.ParameterSpace({"theta": case.parameter}).sample(size, generator)["theta"]
    gradient = torch.randn(net(x).shape, generator=generator) if backward else None

    calls = {"frozen": passes(net, x, net, gradient)}
    calls["frozen"]()
    calls["shared θ"] = passes(partial(model, theta=float(theta[0])), x, model, gradient)

    def per_sample(of: wm.Conditioned, route: str | None = None) -> tuple[Call, str, object]:
        """The call with that route, the route that it takes, and what it gives."""
        forced, taken = taking(of, route)
        call = passes(partial(forced, theta=theta), x, of, gradient)
        output = call()
        return call, taken[-1] if taken else "", output

    calls["planner"] = passes(partial(model, theta=theta), x, model, gradient)
    start = time.perf_counter()
    _, label, expected = per_sample(model)
    labels = {"planner": label or "planner"}
    compared = ROUTES if time.perf_counter() - start < TOO_LONG else ()
    rivals = []
    for route in compared:
        call, label, output = per_sample(model, route)
        if label == route:
            calls[route] = call
            rivals.append(route)
            _same(output, expected)
    autotune = getattr(tuned, "autotune", None)
    if compared and autotune is not None:
        with torch.set_grad_enabled(backward):
            autotune(x.clone().requires_grad_(backward), theta=theta)
        calls["autotuned"] = passes(partial(tuned, theta=theta), x, tuned, gradient)
        _, label, output = per_sample(tuned)
        labels["autotuned"] = label or "autotuned"
        _same(output, expected)
    spent, least = (0.02, 2) if quick else (0.5, 3)
    # Finding the labels was the first warm call.
    timings = interleave(calls, seconds or spent, least=least, warm=1, rivals=rivals, patience=1.0)
    return {"layer": case.name, "family": family, "pass": "both" if backward else "forward", **judged(timings, labels)}


def _same(output: object, expected: object) -> None:
    """Whatever the route, a forward gives the same."""
    if isinstance(output, Tensor) and isinstance(expected, Tensor):
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def judged(timings: dict[str, Timing], labels: dict[str, str]) -> Row:
    """Times, and how far the planner's choice and the tuned plan are from the fastest route.

    Where a choice is one of the routes that were timed, that route's own time stands for it: the same work timed twice
    differs by noise alone. Otherwise it is the call's.
    """
    routes = {name: timings[name] for name in ROUTES if name in timings}
    fastest = min((timing.ratio for timing in routes.values()), default=1.0)
    row: Row = {
        "frozen": timings["frozen"].seconds,
        "ratios": {name: timing.ratio for name, timing in timings.items()},
        "rounds": {name: timing.rounds for name, timing in timings.items()},
        "labels": labels,
    }
    for name, label in labels.items() if routes else ():
        row[f"{name} to fastest"] = routes.get(label, timings[name]).ratio / fastest
        row[f"{name} call to fastest"] = timings[name].ratio / fastest
    return row


def blocks(rows: list[Row]) -> list[str]:
    """A summary against the bars, and one table per pass and number of threads."""
    found = [
        "One θ per sample; a route with a + does the low rank on the activations. Routes and the shared θ are in "
        "multiples of the frozen layer's time, for both passes of the same layer's forward and backward with its "
        "weight's gradient. *Its call* is the planner's own in the same multiples. *Choice* is the time of the route "
        f"that the planner chose over the fastest route's (bar: {PLANNER_BAR}), *tuned* the same after `autotune` "
        f"(bar: {AUTOTUNE_BAR}), *call* the planner's own call over the fastest route's, with whatever deciding "
        f"costs. Where a call takes over {TOO_LONG} s, which is making the weights, the routes are not compared.",
    ]
    for name, bar in (("planner", PLANNER_BAR), ("autotuned", AUTOTUNE_BAR)):
        key = f"{name} to fastest"
        values = [row[key] for row in rows if key in row]
        if values:
            met = sum(value <= bar for value in values)
            found.append(f"**{name}: {met} of {len(values)} rows within {bar}; the worst is {max(values):.2f}.**")
    for kind, count in dict.fromkeys((row["pass"], row["threads"]) for row in rows):
        lines = []
        for row in (r for r in rows if (r["pass"], r["threads"]) == (kind, count)):
            ratios = [times(row["ratios"][name]) if name in row["ratios"] else "" for name in (*ROUTES, "shared θ")]
            judged_ = (
                _against(row, "planner to fastest", PLANNER_BAR),
                _against(row, "planner call to fastest", float("inf")),
                _against(row, "autotuned to fastest", AUTOTUNE_BAR),
            )
            what = (row["layer"], row["family"], milliseconds(row["frozen"]))
            lines.append((*what, *ratios, _short(row["labels"]["planner"]), times(row["ratios"]["planner"]), *judged_))
        header = ("layer", "family", ">frozen, ms", *(f">{_short(name)}" for name in ROUTES), ">shared θ", "planner")
        title = "Forward" if kind == "forward" else "Forward and backward"
        heading = f"## {title}, {count} thread{'s' if count > 1 else ''}"
        found.append(f"{heading}\n\n{table((*header, '>its call', '>choice', '>call', '>tuned'), lines)}")
    return found


def _short(route: str) -> str:
    """A route as it stands in a table."""
    return route.replace(ASIDE, " +")


def _against(row: Row, key: str, bar: float) -> str:
    """A figure, bold where it misses its bar."""
    value = row.get(key)
    return "-" if value is None else f"{value:.2f}" if value <= bar else f"**{value:.2f}**"


def main() -> None:
    """Measure the grid, and write after each layer."""
    found = parser(__doc__)
    found.add_argument("--families", nargs="+", default=[""], metavar="PATTERN", help="families whose name holds it")
    options = found.parse_args()
    settle()
    warnings.simplefilter("ignore", wm.errors.ConditioningWarning)
    rows: list[Row] = []
    for case in (c for c in CASES if wanted(options, c.name)):
        for family in (f for f in FAMILIES if any(part in f for part in options.families)):
            for count in options.threads:
                for backward in (False, True):
                    with threads(count):
                        row = measure(case, family, backward, options.quick, options.seconds)
                    if row is not None:
                        rows.append({"threads": count, **row})
                        choice = _against(row, "planner to fastest", PLANNER_BAR)
                        say(f"{case.name}, {family}, {row['pass']}, {count} thread(s): choice {choice}")
        write(options, "layers", "Routes of single layers", blocks(rows), rows)
    say("\n\n".join(blocks(rows)))


if __name__ == "__main__":
    main()

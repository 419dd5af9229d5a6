"""Two versions of the library in one process: the same calls of the same networks, interleaved.

    python benchmarks/versions.py CHECKOUT [--quick] [--threads 1 2] [--only PATTERN ...]

CHECKOUT is the folder of another version, e.g. made with `git worktree add ../before 942ceee`. Its package is imported
under another name, so both run side by side on the same base, inputs and θ. A ratio above 1 says that this version is
slower. Outputs are compared as well.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS, Network, angles, shake, step
from timing import interleave, milliseconds, parser, say, settle, table, wanted, write

import weightmorph as wm

ANGLE = 30.0
BAR = 1.03

Row = dict[str, Any]

FAMILIES: dict[str, Callable[[Any], Any]] = {
    "low rank + scale": lambda w: w.LowRank(8) + w.Scale(),
    "full sum": lambda w: w.Warp() + w.LowRank(8) + w.Scale(),
    "full sum, no grown taps": lambda w: w.Warp(grow=0) + w.LowRank(8) + w.Scale(),
}


def imported(checkout: Path) -> Any:
    """The package of another checkout, as `weightmorph_before`."""
    folder = tempfile.mkdtemp()
    os.symlink((checkout / "src" / "weightmorph").resolve(), Path(folder) / "weightmorph_before")
    sys.path.insert(0, folder)
    return importlib.import_module("weightmorph_before")


def calls(model: Any, x: torch.Tensor, y: torch.Tensor, theta: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """What is timed of a model."""

    def forward(angle: Any) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = model(x, angle=angle)
        return out

    return {
        "forward, one θ": partial(forward, ANGLE),
        "forward, one θ per image": partial(forward, theta),
        "training step, one θ": step(partial(model, x, angle=ANGLE), model.parameters(), y),
        "training step, one θ per image": step(partial(model, x, angle=theta), model.parameters(), y),
    }


def measure(before: Any, known: Network, size: int, options: argparse.Namespace) -> Iterator[Row]:
    """Every family and call of one network, in both versions."""
    net = known.make()
    x, y = known.inputs(size)
    theta = angles(size)
    for family, make in FAMILIES.items():
        models = [shake(w.condition(net, {"angle": w.Angle("deg")}, make(w), example=x[:1])) for w in (before, wm)]
        models[1].load_state_dict(models[0].state_dict())
        first, second = (calls(model, x, y, theta) for model in models)
        for count in options.threads:
            torch.set_num_threads(count)
            for what, old in first.items():
                new = second[what]
                torch.testing.assert_close(new(), old(), rtol=1e-3, atol=1e-3)
                found = interleave({"before": old, "after": new}, options.seconds or 2.0, least=7)["after"]
                yield {
                    "network": f"{known.name}, batch {size}", "family": family, "threads": count, "call": what,
                    "seconds": found.seconds, "ratio": found.ratio, "low": found.low, "high": found.high,
                }  # fmt: skip
                say(known.name, size, family, count, what, f"{found.ratio:.3f} ({found.low:.2f}-{found.high:.2f})")


def blocks(rows: list[Row]) -> list[str]:
    """The table and its sum."""
    ratios = [row["ratio"] for row in rows]
    slower = sum(ratio > BAR for ratio in ratios)
    lines = [
        (
            row["network"], row["family"], row["threads"], row["call"], milliseconds(row["seconds"]),
            f"{row['ratio']:.3f}× ({row['low']:.2f}–{row['high']:.2f})",
        )
        for row in rows
    ]  # fmt: skip
    return [
        "Time of this version over the other's: the median over rounds in which both were timed, with quartiles.",
        f"**Median over {len(rows)} rows: {statistics.median(ratios):.3f}×; {slower} rows above {BAR}×.**",
        table(("network", "family", ">threads", "call", ">ms", ">ratio"), lines),
    ]


def main() -> None:
    """Measure every network, and write after each."""
    options_parser = parser(__doc__)
    options_parser.add_argument("checkout", type=Path, help="folder of the version to compare with")
    options = options_parser.parse_args()
    before, rows = imported(options.checkout), list[Row]()
    settle()
    for known in NETWORKS:
        for size in known.batches if known.installed else ():
            if wanted(options, f"{known.name} batch {size}"):
                rows += measure(before, known, min(size, 4) if options.quick else size, options)
                write(options, "versions", "This version against another one", blocks(rows), rows)


if __name__ == "__main__":
    main()

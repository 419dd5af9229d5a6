"""What `honesty.py` measures, row by row, and what is made of the rows: tables, sentences, a picture."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from timing import table

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parent.parent / "docs" / "honesty.png"
FROZEN, INVERSE, ONE4ALL = "frozen", "inverse", "One4All"
UNDONE = "inverse of rotation and brightness"
FULL, BLIND = "Warp + LowRank(8) + Scale", "Warp(prior=False) + LowRank(8) + Scale"
ALL = 60_000
COUNTS = (100, 1_000, 10_000, ALL)
OFFS = (0.0, 5.0, 10.0, 20.0)
TUNED_LR = 3e-3
"""One4All's learning rate and ours, the default. Of One4All's, three others are in the table too."""

# What is judged, and what was drawn in training

ANGLES = range(0, 360, 15)
WHOLE = "whole circle"
ANGLES_TRAINED: dict[str, tuple[float, ...]] = {
    WHOLE: (),
    "every 30°": tuple(map(float, range(0, 360, 30))),
    "every 45°": tuple(map(float, range(0, 360, 45))),
    "every 90°": tuple(map(float, range(0, 360, 90))),
    "0–180°": tuple(map(float, range(0, 181))),
}

Cell = tuple[float, float, float]
"""Angle in degrees, blur in pixels, brightness."""
AXES = ((0.0, 60.0, 120.0, 180.0, 240.0, 300.0), (0.0, 1.0, 2.0), (0.0, 0.3, -0.3))
CELLS: dict[str, Cell] = {f"{a:g}/{b:g}/{c:g}": (a, b, c) for a, b, c in itertools.product(*AXES)}


def _changed(cell: Cell) -> int:
    return sum(value != 0 for value in cell)


def _diagonal(cell: Cell) -> int:
    return sum(axis.index(value) for axis, value in zip(AXES, cell, strict=True)) % 3


EVERY_CELL = "all 54"
CELLS_TRAINED: dict[str, tuple[Cell, ...]] = {
    EVERY_CELL: tuple(CELLS.values()),
    # Every value and every pair of values occurs in training, but not every triple.
    "two thirds of the 54": tuple(cell for cell in CELLS.values() if _diagonal(cell) != 2),
    "one change at a time": tuple(cell for cell in CELLS.values() if _changed(cell) < 2),
}

# Rows


@dataclass(frozen=True)
class Row:
    """A line of the file. `scores` has the accuracy at each setting, `seconds` are the processor's."""

    network: str
    kind: str
    trained_on: str
    images: int
    lr: float
    off: float
    trainable: int
    steps: int
    batch: int
    seed: int
    judged: int
    threads: int
    seconds: float
    scores: dict[str, float]
    command: str
    made: str

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two rows the same but for the seed and the error of the angle."""
        return (
            self.network, self.kind, self.trained_on, self.images, self.lr, self.steps, self.batch, self.judged,
            self.threads,
        )  # fmt: skip

    @property
    def mean(self) -> float:
        return sum(self.scores.values()) / len(self.scores)

    @property
    def worst(self) -> float:
        return min(self.scores.values())

    @property
    def clean(self) -> float:
        return self.scores["0" if self.kind == "angles" else "0/0/0"]


def read(file: Path) -> list[Row]:
    """The rows of the file, none where there is no file."""
    if not file.exists():
        return []
    kinds: dict[str, Any] = dict.fromkeys("images trainable steps batch seed judged threads".split(), int)
    kinds |= dict.fromkeys(("lr", "off", "seconds"), float)
    found = []
    with file.open(newline="", encoding="utf-8") as lines:
        for line in csv.DictReader(lines):
            values: dict[str, Any] = {f.name: kinds.get(f.name, str)(line[f.name]) for f in fields(Row)}
            pairs = (entry.rsplit(":", 1) for entry in line["scores"].split())
            values["scores"] = {key: float(score) for key, score in pairs}
            found.append(Row(**values))
    return found


def put(file: Path, content: bytes) -> None:
    """Written beside itself and then moved into place."""
    beside = file.with_name(f".{file.name}")
    beside.write_bytes(content)
    beside.replace(file)


# The report


class Found:
    """Rows of one budget, averaged over the seeds."""

    def __init__(self, rows: list[Row], options: argparse.Namespace) -> None:
        budgets = (0, 0, options.threads), (options.steps, options.batch, options.threads)
        judged = {"angles": options.images, "combinations": options.images // 2}
        self.rows = [
            row for row in rows if (row.steps, row.batch, row.threads) in budgets and row.judged == judged[row.kind]
        ]

    def get(
        self,
        network: str,
        trained_on: str = WHOLE,
        kind: str = "angles",
        images: int = ALL,
        off: float = 0.0,
        lr: float = TUNED_LR,
    ) -> Row | None:
        """One row, or None if it has not been run. The learning rate is One4All's."""
        same = [
            row
            for row in self.rows
            if (row.network, row.kind, row.images, row.off) == (network, kind, images, off)
            and (not row.steps or row.trained_on == trained_on)
            and (network != ONE4ALL or row.lr == lr)
        ]
        if not same:
            return None
        scores = {key: sum(row.scores[key] for row in same) / len(same) for key in same[0].scores}
        return replace(same[0], scores=scores, seconds=sum(row.seconds for row in same) / len(same))


MARGIN = 0.005
"""What is not read as a difference: two standard errors of an accuracy of 98.7 % on 2,000 images."""


def against(a: float, b: float, name: str) -> str:
    """How a compares with b."""
    if abs(a - b) < MARGIN:
        return f"as good as {name}"
    return f"{100 * abs(a - b):.1f} points {'better' if a > b else 'worse'} than {name}"


def mean(row: Row, keys: Collection[str]) -> float:
    return sum(row.scores[key] for key in keys) / len(keys)


def cells(row: Row) -> list[object]:
    """The columns that every row has."""
    scores = [f"{score:.4f}" for score in (row.mean, row.worst, row.clean)]
    return [f"{row.trainable:,}", *scores, f"{row.seconds:.0f}" if row.steps else "-"]


COLUMNS = (">trainable numbers", ">mean", ">worst", ">clean", ">training, s")


def split(found: Found, kind: str, sets: dict[str, set[str]], networks: Sequence[str], whole: str) -> list[str]:
    """Settings that training drew against those that it did not: a table and what follows from it."""
    lines: list[list[object]] = []
    said = []
    for name, drawn in sets.items():
        unseen: dict[str, float] = {}
        costs = []
        for network in networks:
            row, full = found.get(network, name, kind), found.get(network, whole, kind)
            if row is None or drawn >= row.scores.keys():
                continue
            there = [key for key in row.scores if key not in drawn]
            unseen[network] = mean(row, there)
            scores = mean(row, drawn), unseen[network], min(row.scores[key] for key in there)
            lines.append([name, network, f"{row.trainable:,}", *(f"{s:.4f}" for s in scores), "-", "-"])
            if row.steps:
                lines[-1][-1] = f"{row.seconds:.0f}"
            if row.steps and full is not None:
                lines[-1][-2] = f"{mean(full, there):.4f}"
                costs.append(f"{network} {100 * (mean(full, there) - unseen[network]):.1f}")
        if FULL in unseen:
            others = [against(unseen[FULL], score, other) for other, score in unseen.items() if other != FULL]
            words = f"- *{name}*: at the {kind} not drawn {FULL} is at {100 * unseen[FULL]:.1f} %, {', '.join(others)}."
            best = max(unseen, key=lambda network: unseen[network])
            better = f" **The better choice there is {best}.**" if unseen[best] - unseen[FULL] >= MARGIN else ""
            cost = f" What not drawing them costs, in points: {', '.join(costs)}." if costs else ""
            said.append(words + better + cost)
    header = (
        "trained on", "network", ">trainable numbers", ">mean, drawn", ">mean, not drawn", ">worst, not drawn",
        f">mean of these, trained on {whole}", ">training, s",
    )  # fmt: skip
    return [table(header, lines), "\n".join(said)]


def wrong(found: Found) -> list[str]:
    """θ given with an error."""
    lines: list[list[object]] = []
    said = []
    right, frozen, tuned = found.get(FULL), found.get(FROZEN), found.get(ONE4ALL)
    for off in OFFS:
        ours, inverse = found.get(FULL, off=off), found.get(INVERSE, off=off)
        if ours is None or inverse is None or right is None or frozen is None or tuned is None:
            continue
        four = (ours.mean, ours.worst, inverse.mean, inverse.worst, frozen.mean, tuned.mean)
        lines.append([f"±{off:g}°", *(f"{value:.4f}" for value in four)])
        others = f"{against(ours.mean, inverse.mean, INVERSE)}, {against(ours.mean, tuned.mean, ONE4ALL)}"
        said.append(f"- ±{off:g}°: {FULL} loses {100 * (right.mean - ours.mean):.1f} points; it is {others}.")
    header = ("error", f">{FULL}, mean", ">worst", ">inverse, mean", ">worst", ">frozen", ">One4All")
    return [table(header, lines), "\n".join(said)]


RANKS = [f"LowRank({r})" for r in (1, 2, 4, 8, 16)]
DIMS = [f"Subspace({d})" for d in (1, 2, 4, 8)]
WARPS = ["Warp, untrained", "Warp", "Warp + Scale", *(f"Warp + LowRank({r}) + Scale" for r in (2, 8, 16))]


def sizes(found: Found) -> list[str]:
    """Accuracy against trainable numbers."""
    rows = [found.get(name) for name in (FROZEN, INVERSE, *RANKS, *DIMS, *WARPS)]
    rates = sorted({row.lr for row in found.rows if row.network == ONE4ALL and row.kind == "angles"})
    tuned = [row for rate in rates if (row := found.get(ONE4ALL, lr=rate)) is not None]
    lines = [[row.network, *cells(row)] for row in rows if row is not None]
    lines += [[f"{ONE4ALL}, learning rate {row.lr:g}", *cells(row)] for row in tuned]
    said = []
    for family in (RANKS, DIMS, WARPS):
        there = [row for name in family if (row := found.get(name)) is not None]
        steps = [f"{b.network} is {against(b.mean, a.mean, a.network)}" for a, b in itertools.pairwise(there)]
        said += [f"- {'; '.join(steps)}."] if steps else []
    if tuned:
        best, usual = max(tuned, key=lambda row: row.mean), found.get(ONE4ALL) or tuned[0]
        rate = against(usual.mean, best.mean, f"with the best of these, {best.lr:g}")
        said.append(f"- In all other tables {ONE4ALL} has learning rate {usual.lr:g}, with which it is {rate}.")
    return [table(("network", *COLUMNS), lines), "\n".join(said)]


def images(found: Found) -> list[str]:
    """Accuracy against training images."""
    lines: list[list[object]] = []
    said = []
    for count in COUNTS:
        pair = [found.get(network, images=count) for network in (FULL, ONE4ALL)]
        lines += [[f"{count:,}", row.network, *cells(row)] for row in pair if row is not None]
        ours, tuned = pair
        if ours is not None and tuned is not None:
            clean = against(ours.clean, tuned.clean, "it")
            circle = against(ours.mean, tuned.mean, ONE4ALL)
            said.append(f"- {count:,} images: {FULL} is {circle} over the circle, and upright {clean}.")
    return [table((">training images", "network", *COLUMNS), lines), "\n".join(said)]


def enough(found: Found) -> list[str]:
    """The smallest of a family that reaches 99 % of its largest, of the whole sum, of the inverse."""
    lines: list[list[object]] = []
    for family in (RANKS, DIMS, WARPS):
        there = [row for name in family if (row := found.get(name)) is not None]
        if len(there) < 2:
            continue  # one alone reaches itself
        goals = there[-1], found.get(FULL), found.get(INVERSE)
        reached = [
            next((f"{r.network} ({r.trainable:,})" for r in there if goal and r.mean >= 0.99 * goal.mean), "none")
            for goal in goals
        ]
        lines.append([", ".join(row.network for row in there), *reached])
    return [
        table(("of", "99 % of the last of these (none smaller: itself)", f"99 % of {FULL}", "99 % of inverse"), lines)
    ]


def report(rows: list[Row], options: argparse.Namespace, left: Sequence[str]) -> None:
    """`honesty.md` and the picture, from the rows alone; `left` are the names of rows that have not been run."""
    found = Found(rows, options)
    trained = [row for row in found.rows if row.steps]
    if not trained:
        print("no trained row with these settings yet: no report")
        return
    networks = (FULL, BLIND, "LowRank(8)", "Warp, untrained", ONE4ALL, INVERSE, FROZEN)
    mixed = (FULL, BLIND, ONE4ALL, UNDONE, INVERSE, FROZEN)
    angles = {name: {str(a) for a in ANGLES if a in values} for name, values in ANGLES_TRAINED.items() if name != WHOLE}
    combinations = {name: {k for k, cell in CELLS.items() if cell in drawn} for name, drawn in CELLS_TRAINED.items()}
    text = [
        "# How far does it carry?",
        f"A third-party digit network on MNIST. Trained rows have {options.steps} steps of {options.batch} images; "
        f"all are judged on the first {options.images:,} test images, at {len(ANGLES)} angles 15° apart unless said "
        "otherwise. *Clean* is the accuracy at the anchor. Seconds of training are the processor's, one thread. Seeds, "
        f"averaged: {', '.join(sorted({str(row.seed) for row in trained}))}. Differences below half a point are not "
        "read as such; between seeds there may be larger ones. The budget is short, which favours what starts near the "
        "answer.",
        f"Not run yet, and missing below: {'; '.join(left)}." if left else "",
        "## Trained at some angles, judged at others",
        *split(found, "angles", angles, networks, WHOLE),
        "## The angle is given with an error",
        "Half of the images are told an angle that is too large, half one that is too small; all were trained with the "
        "right one, on the whole circle. The frozen network and One4All are not told any.",
        *wrong(found),
        "## Combinations that training has not seen",
        f"Turned (60° apart), then blurred (0, 1, 2 px), then made brighter or darker (0, ±0.3): {len(CELLS)} "
        f"combinations, {options.images // 2:,} images each. *Two thirds* draw every value and every pair of values, "
        "and leave out triples alone. A blur has no inverse; the two inverses undo the rest, or only the rotation.",
        *split(found, "combinations", combinations, mixed, EVERY_CELL),
        "## Trainable numbers",
        *sizes(found),
        "## Training images",
        "The same number of steps throughout, so few images are seen often.",
        *images(found),
        "## How large is large enough?",
        "The smallest of a family whose mean over the circle reaches 99 % of another's.",
        *enough(found),
        "![The same as a picture](../../docs/honesty.png)",
        f"`python benchmarks/honesty.py --steps {options.steps} --batch {options.batch} --images {options.images} "
        f"--threads {options.threads}`, {trained[-1].made}. Each row's command and accuracy at every setting: "
        "[honesty.csv](honesty.csv)",
    ]  # fmt: skip
    put(options.out / "honesty.md", ("\n\n".join(filter(None, text)) + "\n").encode())
    draw(found, PICTURE if options.out == RESULTS else options.out / PICTURE.name)


def draw(found: Found, file: Path) -> None:
    """Four panels; left out where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    looks = {FULL: ("C0", "o"), "LowRank(8)": ("C2", "^"), ONE4ALL: ("C3", "s"), INVERSE: ("C1", "x")}
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (circle, error), (numbers, data) = figure.subplots(2, 2)

    def line(axis: Any, pairs: Sequence[tuple[float, float | None]], name: str, look: str = "") -> None:
        points = [(x, 100 * y) for x, y in pairs if y is not None]
        colour, mark = looks.get(look or name, ("C4", "D"))
        if points:
            axis.plot(*zip(*points, strict=True), color=colour, marker=mark, markersize=4, linewidth=1.3, label=name)

    def score(*args: Any, **kwargs: Any) -> float | None:
        row = found.get(*args, **kwargs)
        return None if row is None else row.mean

    for name in looks:
        row = found.get(name, "every 90°")
        line(circle, [(a, row.scores[str(a)]) for a in ANGLES] if row else [], name)
    circle.set(
        title="trained at 0, 90, 180 and 270° only", xlabel="judged at, °", xticks=range(0, 361, 45), ylim=(0, 102)
    )
    for name in (FULL, INVERSE):
        line(error, [(off, score(name, off=off)) for off in OFFS], name)
    line(error, [(off, score(ONE4ALL)) for off in OFFS], ONE4ALL)
    error.set(title="the angle is given with an error", xlabel="error, °", xticks=OFFS)
    families = ("LowRank(r)", RANKS, "LowRank(8)"), ("Subspace(d)", DIMS, ""), ("Warp …", WARPS, FULL)
    for label, family, look in families:
        rows = [row for name in family if (row := found.get(name)) is not None and row.steps]
        line(numbers, [(row.trainable, row.mean) for row in rows], label, look)
    tuned = found.get(ONE4ALL)
    line(numbers, [(tuned.trainable, tuned.mean)] if tuned else [], ONE4ALL)
    numbers.set(title="trainable numbers", xscale="log")
    for name in (FULL, ONE4ALL):
        line(data, [(n, score(name, images=n)) for n in COUNTS], name)
    data.set(title="training images", xscale="log")
    for axis in (numbers, data):
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.set_minor_formatter("")
    for axis in (circle, error, numbers, data):
        axis.set_ylabel("accuracy, %")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    put(file, content.getvalue())

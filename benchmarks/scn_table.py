"""The protocol of Subspace-Configurable Networks (arXiv:2305.13536) on Fashion-MNIST, conditioned weights beside it.

    python benchmarks/scn_table.py --data FOLDER                          # IDX files of Fashion-MNIST, or of MNIST
    python benchmarks/scn_table.py --download                             # needs Debian: its dataset-fashion-mnist
    python benchmarks/scn_table.py --data FOLDER --plan mlp:rotation:0    # a part of it: network:family:seed
    python benchmarks/scn_page.py                                         # the page, from the finished rows alone

Every trained row takes the same number of steps, with Adam and a cosine schedule, each step on one batch under one
setting; so did the frozen base, on images as they are. The whole test set is then judged. A finished row is appended to
`benchmarks/results/scn_table.csv` and not run again; trained networks wait for their judging in `results/scn`. Learning
rates are chosen on training images that are kept apart, with `--held-out 10000 --rate …`: `results/scn_rates.csv`.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from scn_networks import NETWORKS, Setting, families, hyperlight_from
from scn_rows import Budget, Data, Job, Row, fit_plain, rows
from timing import interleave, say
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from digits import load_mnist_idx

RESULTS = Path(__file__).parent / "results"
NAME = "fashion-mnist"
KEY = ("data", "network", "family", "seed", "steps", "batch", "row")
COLUMNS = (
    *KEY, "mean", "worst", "clean", "five", "trainable", "bytes", "seconds", "cost", "settings", "images", "curve",
    "fixed", "command",
)  # fmt: skip
PLAN = [
    "mlp:rotation:0", "lenet:rotation:0", "mlp:scale:0", "mlp:translation:0", "mlp:brightness:0", "mlp:contrast:0",
    "mlp:sharpness:0", "convnet:rotation:0", "mlp:rotation:1", "mlp:rotation:2",
]  # fmt: skip
# Steps of a row and judged angles, unless said otherwise: convolutions take five to ten times an MLP's time.
STEPS: Mapping[str, int] = {"mlp": 4690, "lenet": 4690, "convnet": 1876}
ANGLES: Mapping[str, int] = {"mlp": 360, "lenet": 36, "convnet": 36}


# Data


def images(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images `(N, 1, 32, 32)`, enlarged as published and kept as bytes, and labels."""
    x, y = load_mnist_idx(folder, "train" if split == "train" else "test")
    large = F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
    return (large * 255).round().byte(), y


def download(folder: Path) -> Path:
    """Debian's package of Fashion-MNIST (MIT, the data included), unpacked in a folder."""
    inside = folder / "usr/share/datasets/fashion-mnist"
    if not inside.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], cwd=folder, check=True)
        package = next(folder.glob("dataset-fashion-mnist*.deb"))
        subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=folder, check=True)
    return inside


# The file of finished rows


def finished(path: Path) -> list[dict[str, str]]:
    """Rows that are in the file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def append(path: Path, row: Mapping[str, object]) -> None:
    """One more line. The file is replaced as a whole, so that a run that is ended leaves no half of one."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerow(row)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    beside = path.with_suffix(".part")
    beside.write_text(before + text.getvalue(), encoding="utf-8")
    beside.replace(path)


# Training and judging


def kept(path: Path, row: Row) -> float:
    """Train a row, or take what an earlier run has trained; gives its seconds."""
    if path.exists():
        found = torch.load(path, weights_only=True)
        for name, module in row.modules.items():
            module.load_state_dict(found["state"][name])
            module.eval()
        return float(found["seconds"])
    seconds = row.fit()
    beside = path.with_suffix(".part")
    torch.save({"state": {n: m.state_dict() for n, m in row.modules.items()}, "seconds": seconds}, beside)
    beside.replace(path)
    return seconds


def based(path: Path, job: Job) -> float:
    """Train the base on images as they are, or load it."""
    if path.exists():
        found = torch.load(path, weights_only=True)
        job.base.load_state_dict(found["state"])
        seconds = float(found["seconds"])
    else:
        seconds = fit_plain(job.base, job, job.family.clean, job.budget)
        torch.save({"state": job.base.state_dict(), "seconds": seconds}, path)
    job.base.eval().requires_grad_(False)
    return seconds


@torch.no_grad()
def judge(found: Mapping[str, Row], job: Job, count: int) -> dict[str, dict[Setting, float]]:
    """Accuracy of every row at every setting, on the same transformed test images."""
    family = job.family
    undo = family.transform.inverse()
    x, y = (t[:count] for t in job.data.test)
    scores: dict[str, dict[Setting, float]] = {name: {} for name in found}
    for setting in dict.fromkeys((*family.judged, *family.fixed, family.clean)):
        theta = family.theta(setting)
        seen = family.transform(x.float() / 255, **theta)
        undone = undo(seen, **theta) if undo is not None and any(row.undone for row in found.values()) else seen
        for name, row in found.items():
            if row.everywhere or setting in family.fixed:
                network, shown = row.at(setting), undone if row.undone else seen
                pairs = zip(shown.split(500), y.split(500), strict=True)
                right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in pairs)
                scores[name][setting] = right / len(y)
    return scores


@torch.no_grad()
def costs(found: Mapping[str, Row], job: Job) -> dict[str, float]:
    """Time of a call of 256 images under a θ that is new, in multiples of the frozen network's."""
    setting = job.family.fixed[1]
    x = job.family.transform(job.data.test[0][:256].float() / 255, **job.family.theta(setting))
    calls = {name: (lambda row=row: row.call(x, setting)) for name, row in found.items()}
    remembered, times = dict(job.memory), interleave(calls, 2.0)
    job.memory.update(remembered)
    return {name: timing.ratio for name, timing in times.items()}


def run(part: str, options: argparse.Namespace, data: Data, peer: bool) -> None:
    """One network, family and seed: train what is missing, judge it in one sweep, append its rows."""
    network, family, seed = part.split(":")
    steps = options.steps or STEPS[network]
    budget = Budget(steps, options.batch, int(seed))
    angles = options.angles or ANGLES[network]
    job = Job(network, families(angles)[family], data, budget, torch.nn.Identity(), rate=options.rate)
    job.base = job.fresh()
    key = dict(zip(KEY, (options.name, network, family, seed, str(steps), str(options.batch)), strict=False))
    there = {tuple(row[column] for column in KEY) for row in finished(options.out)}
    makers = rows(job, family, peer=peer)
    missing = [name for name in makers if (*key.values(), name) not in there and name in (options.rows or makers)]
    if not missing:
        return
    tag = f"{options.name.replace(' ', '_')}-{network}-%s-{seed}-{steps}x{options.batch}"
    options.keep.mkdir(parents=True, exist_ok=True)
    seconds = {"frozen": based(options.keep / f"{tag % 'base'}.pt", job)}
    found: dict[str, Row] = {"frozen": Row(job)}
    for name in missing:
        if name != "frozen":
            found[name] = makers[name](job)
            stem = "".join(c if c.isalnum() else "_" for c in name)
            seconds[name] = kept(options.keep / f"{tag % family}-{stem}.pt", found[name])
            say(f"{part} {name}: {found[name].trainable():,} numbers, {seconds[name]:.0f} s")
    scores, cost = judge(found, job, options.images), costs(found, job)
    command = f"{options.named}--plan {part} --steps {steps} --batch {options.batch} --angles {angles}"
    for name in missing:
        line = summary(scores[name], job)
        rest = {"row": name, "seconds": f"{seconds[name]:.1f}", "cost": f"{cost[name]:.3g}", "images": options.images}
        rest["command"] = f"python benchmarks/scn_table.py --data FOLDER {command} --images {options.images}"
        sizes = {"trainable": found[name].trainable(), "bytes": found[name].stored()}
        append(options.out, {**key, **rest, **sizes, **line})
        say(f"{part} {name}: mean {line['mean']}, worst {line['worst']}, clean {line['clean']}, five {line['five']}")


def summary(scores: Mapping[Setting, float], job: Job) -> dict[str, object]:
    """What the file says of a row's accuracies, in per cent; `curve` in hundredths of one, in the judged order."""
    family = job.family
    whole = [scores[setting] for setting in family.judged if setting in scores]
    complete = len(whole) == len(family.judged)
    return {
        "mean": _percent(statistics.fmean(whole)) if complete else "",
        "worst": _percent(min(whole)) if complete else "",
        "clean": _percent(scores[family.clean]),
        "five": _percent(statistics.fmean(scores[setting] for setting in family.fixed)),
        "settings": len(whole) if complete else len(scores),
        "curve": _hundredths(whole) if complete else "",
        "fixed": _hundredths([scores[setting] for setting in family.fixed]),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.3f}"


def _hundredths(shares: Sequence[float]) -> str:
    return " ".join(f"{10_000 * share:.0f}" for share in shares)


def main() -> None:
    """Work through the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the four IDX files, packed or not")
    parser.add_argument("--download", action="store_true", help="fetch Fashion-MNIST with apt-get; needs Debian")
    parser.add_argument("--name", default=NAME, help="of the data, in the file (default: %(default)s)")
    parser.add_argument("--plan", nargs="+", default=PLAN, help="network:family:seed … (default: the whole table)")
    parser.add_argument("--rows", nargs="*", help="rows by name, such as 'SCN D=3' (default: all)")
    parser.add_argument("--steps", type=int, help=f"of every trained row (default: {dict(STEPS)})")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default: %(default)s, as published)")
    parser.add_argument(
        "--rate", type=float, help="learning rate of every row, to choose one (default: each row's own)"
    )
    parser.add_argument("--held-out", type=int, default=0, help="judge on the last so many training images, kept apart")
    parser.add_argument("--angles", type=int, help=f"judged on the circle, a divisor of 360 (default: {dict(ANGLES)})")
    parser.add_argument("--images", type=int, default=10_000, help="test images (default: all 10,000)")
    parser.add_argument("--threads", type=int, default=1, help="torch's (default: %(default)s)")
    parser.add_argument("--keep", type=Path, default=Path("results/scn"), help="folder of trained networks")
    parser.add_argument("--out", type=Path, help="file of finished rows (default: scn_table.csv in results/, but "
                        "scn_rates.csv with --rate or --held-out)")  # fmt: skip
    parser.add_argument("--peers-env", type=Path, default=Path("build/peers"), help="where HyperLight is, if anywhere")
    options = parser.parse_args()
    for part in options.plan:
        network, family, seed = (*part.split(":"), "", "")[:3]
        if network not in NETWORKS or family not in families(360) or not seed.isdigit():
            sys.exit(f"--plan: expected network:family:seed of {[*NETWORKS]} and {[*families(360)]}, got {part!r}")
    if options.download:
        options.data = download(options.keep / "download")
    if options.data is None:
        sys.exit("give --data FOLDER with the four IDX files, or --download on Debian")
    torch.set_num_threads(options.threads)
    data = Data(images(options.data, "train"), images(options.data, "test"))
    options.named = "" if options.name == NAME else f"--name {options.name} "
    trial = {word: value for word, value in (("held-out", options.held_out), ("rate", options.rate)) if value}
    for word, value in trial.items():
        options.named += f"--{word} {value} "
        options.name += f" {word} {value}"
    if count := options.held_out:
        x, y = data.train
        data = Data((x[:-count], y[:-count]), (x[-count:], y[-count:]))
    options.out = options.out or RESULTS / ("scn_rates.csv" if trial else "scn_table.csv")
    if not (peer := hyperlight_from(options.peers_env)):
        say(f"HyperLight is neither installed nor in {options.peers_env}: its row is left out")
    for part in options.plan:
        run(part, options, data, peer)


if __name__ == "__main__":
    main()

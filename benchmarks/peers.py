"""The same job by other means: `vmap`, grouped convolutions by hand, HyperLight and PEFT's LoRA.

    python benchmarks/peers.py --peers-env DIR [--quick] [--threads 1 2] [--only PATTERN ...]

One θ per sample, on the same network and inputs and in one process. `vmap(functional_call)` and the grouped
convolutions run with our weights, so they must agree with us. HyperLight and PEFT are taken from PyPI into an
environment of their own in DIR; without it their rows are left out. See benchmarks/README.md.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from grouped import resnet18, small_cnn
from networks import NETWORKS, Network, angles, condition, step
from packages import PACKAGES, HyperLight, StackedLoRA, interpreter, missing
from routes import made
from timing import Call, Timing, interleave, milliseconds, parser, say, settle, table, threads, times, wanted, write
from torch import Tensor, nn
from torch.func import functional_call, vmap

OURS, OURS_LOW_RANK = "ours, full sum", "ours, low rank"
VMAP_BAR = ("ResNet-18 32²", 3.0)  # on which network vmap must take so many times our time
AGREES = 1e-4

Row = dict[str, Any]
Runs = dict[str, Callable[[], Tensor]]
ByHand = Callable[[nn.Module, Mapping[str, Tensor], Tensor], Tensor]
BY_HAND: dict[str, ByHand] = {"demo CNN": small_cnn, "ResNet-18": resnet18}


def vmapped(net: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """`vmap(functional_call)`: weights `(B, *S)`, x `(B, …)`."""

    def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return cast(Tensor, functional_call(net, weights, (x.unsqueeze(0),))).squeeze(0)

    return vmap(one)(dict(weights), x)


class Peers:
    """Every way that there is for one network and batch: what runs, what it trains, and what could not be run."""

    def __init__(self, found: Network, size: int) -> None:
        self.net = found.make()
        self.x, self.labels = found.inputs(size)
        self.theta = angles(size)
        self.model = condition(self.net, "full sum", self.x)
        self.low_rank = condition(self.net, "low rank", self.x)
        self.runs: Runs = {"frozen": partial(self.net, self.x)}
        self.trained: dict[str, nn.Module] = {"frozen": self.net}
        self.notes: list[str] = []
        self.agreement: dict[str, float] = {}
        self.ours()
        self.same_weights(next((way for name, way in BY_HAND.items() if found.name.startswith(name)), None))
        for name, add in (("HyperLight + vmap", self.hyperlight), ("PEFT LoRA + vmap", self.peft)):
            package = "hyperlight" if "HyperLight" in name else "peft"
            if package in missing():
                self.notes.append(f"{name}: not run, {package} is not installed (give --peers-env)")
                continue
            try:
                add(name)
            except Exception as error:  # whatever a peer cannot do is a finding
                text = " ".join(str(error).split())[:160] or traceback.extract_tb(error.__traceback__)[-1].line
                self.notes.append(f"{name}: does not run on this network: {type(error).__name__}: {text}")

    def add(self, name: str, run: Callable[[], Tensor], trained: nn.Module | None, like: Tensor) -> None:
        """A way to run, unless it raises; how far it is from what it should give, relative to the largest number."""
        with torch.no_grad():
            output = run()
        self.agreement[name] = float((output - like).abs().max() / like.abs().max())
        self.runs[name] = run
        if trained is not None:
            self.trained[name] = trained

    def ours(self) -> None:
        """The conditioned models themselves, against `bake` on the first sample."""
        for name, model in ((OURS, self.model), (OURS_LOW_RANK, self.low_rank)):
            run = partial(model, self.x, angle=self.theta)
            with torch.no_grad():
                output = run()
                plain = model.bake(angle=float(self.theta[0]))(self.x[:1])
            self.runs[name], self.trained[name] = run, model
            self.agreement[name] = float((output[:1] - plain).abs().max() / plain.abs().max())

    def same_weights(self, by_hand: ByHand | None) -> None:
        """`vmap` and, where it was written, the grouped network: with our weights, made or ready."""
        # bake tells strided kernels that have grown, and their padding.
        net = self.model.bake(angle=30.0).requires_grad_(False)
        with torch.no_grad():
            ready, ours = self.model.weights(angle=self.theta), self.runs[OURS]()
        copies = sum(weight.numel() * weight.element_size() for weight in ready.values())
        self.notes.append(f"a dense weight per sample is {copies / 2**20:,.0f} MiB here, for vmap and grouped alike")
        ways: dict[str, ByHand] = {"vmap": vmapped} | ({"grouped by hand": by_hand} if by_hand else {})
        for name, way in ways.items():

            def whole(way: ByHand = way) -> Tensor:
                return way(net, made(self.model, self.theta), self.x)

            self.add(f"{name}, weights made", whole, self.model, ours)
            self.add(f"{name}, weights ready", partial(way, net, ready, self.x), None, ours)

    def hyperlight(self, name: str) -> None:
        """HyperLight under vmap, against itself one θ at a time."""
        peer = HyperLight(self.net)
        with torch.no_grad():
            like = peer.one_by_one(self.x, self.theta)
        self.add(name, partial(peer, self.x, self.theta), peer, like)
        self.notes.append(f"{name}: {sum(p.numel() for p in peer.parameters()):,} trainable numbers")

    def peft(self, name: str) -> None:
        """PEFT's LoRA with one ready adapter per sample, against our low rank, whose weights it is given."""
        with torch.no_grad():
            weights = self.low_rank.weights(angle=self.theta)
            own = dict(self.net.named_parameters())
            peer = StackedLoRA(self.net, {key: value - own[key] for key, value in weights.items()})
            like = self.runs[OURS_LOW_RANK]()
        self.add(name, partial(peer, self.x), peer, like)


def measure(peers: Peers, thread_count: int, quick: bool, seconds: float | None) -> list[Row]:
    """Forwards, then training steps."""
    spent, least = seconds or (0.1 if quick else 3.0), 1 if quick else 3
    with threads(thread_count):
        with torch.no_grad():
            forwards = interleave(cast("dict[str, Call]", peers.runs), spent, least=least, patience=2.0)
        rows = judged("forward", forwards, peers.agreement)
        calls = {
            name: step(run, peers.trained[name].parameters(), peers.labels)
            for name, run in peers.runs.items()
            if name in peers.trained
        }
        steps = interleave(cast("dict[str, Call]", calls), spent, least=least, patience=2.0)
    return rows + judged("training step", steps, peers.agreement)


def judged(what: str, timings: Mapping[str, Timing], agreement: Mapping[str, float]) -> list[Row]:
    """Rows with each call's time against ours of the same weights."""
    rows = []
    for name, timing in timings.items():
        against = OURS_LOW_RANK if name.startswith(("PEFT", OURS_LOW_RANK)) else OURS
        rows.append(
            {
                "what": what,
                "call": name,
                "seconds": timing.seconds,
                "ratio": timing.ratio,
                "rounds": timing.rounds,
                "to_ours": timing.ratio / timings[against].ratio,
                "agreement": agreement.get(name),
            }
        )
    return rows


def verdicts(found: str, rows: list[Row]) -> list[str]:
    """The bars: never slower than the best peer, and vmap threefold where that is asked.

    Both are held twice: against peers that do the whole job, and against those whose weights are ready.
    """
    lines = []
    for count, what in dict.fromkeys((row["threads"], row["what"]) for row in rows):
        here = {row["call"]: row["to_ours"] for row in rows if (row["threads"], row["what"]) == (count, what)}
        others = {name: value for name, value in here.items() if name != "frozen" and not name.startswith("ours")}
        given = {name for name in others if name.endswith("ready") or name.startswith("PEFT")}
        whole = {name: value for name, value in others.items() if name not in given}
        ready = {name: value for name, value in others.items() if name in given}
        for job, group in (("θ to output", whole), ("weights ready", ready)):
            if not group:
                continue
            best = min(group, key=lambda name: group[name])
            line = f"{what}, {_threads(count)}, {job}: the best peer takes {times(group[best])} our time ({best}): "
            line += _met(group[best], 1.0)
            vmaps = [value for name, value in group.items() if name.startswith("vmap")]
            if found == VMAP_BAR[0] and vmaps:
                line += f"; vmap {times(vmaps[0])}, bar {VMAP_BAR[1]:.0f}×: {_met(vmaps[0], VMAP_BAR[1])}"
            lines.append(f"- {line}")
    return lines


def _met(value: float, bar: float) -> str:
    return "met" if value >= bar else "**not met**"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def blocks(rows: list[Row], notes: Mapping[str, list[str]]) -> list[str]:
    """One table per network with its bars and notes."""
    found = [
        "One θ per sample. *To ours* is the time over that of the conditioned model with the same weights (low rank "
        "for PEFT, the full sum for the others; HyperLight's weights are its own). *Ready* means that the weights are "
        "given and cost nothing, which favours the peer; PEFT's adapters always are. *Agrees* is the largest "
        "difference, over the largest output: of vmap, grouped and PEFT to the conditioned model, of HyperLight to "
        "itself one θ at a time, of ours to `bake`. The plain training step trains all weights.",
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        lines = []
        for row in mine:
            far = row["agreement"]
            agrees = "" if far is None else f"{far:.0e}" if far <= AGREES else f"**{far:.0e}**"
            frozen = row["call"] == "frozen"
            call = "plain" if frozen and row["what"] == "training step" else row["call"]
            to_ours = "" if frozen else times(row["to_ours"])
            what = (row["threads"], row["what"], call, f"{milliseconds(row['seconds'])} ms")
            lines.append((*what, times(row["ratio"]), to_ours, agrees))
        header = (">threads", "what", "call", ">median", ">to the first", ">to ours", ">agrees")
        remarks = [*verdicts(name, mine), *(f"- {note}" for note in notes[name])]
        found.append(f"## {name}, batch {mine[0]['batch']}\n\n{table(header, lines)}\n\n" + "\n".join(remarks))
    return found


def main() -> None:
    """Measure every network, and write after each."""
    found = parser(__doc__)
    found.add_argument("--peers-env", type=Path, help="folder of an environment with HyperLight and PEFT")
    options = found.parse_args()
    settle()
    if options.peers_env is not None:
        python = interpreter(options.peers_env)
        if python != sys.executable:
            os.execv(python, [python, *sys.argv])
    warnings.filterwarnings("ignore", category=UserWarning, module="peft|transformers|torch._functorch")
    rows: list[Row] = []
    notes: dict[str, list[str]] = {}
    for network in NETWORKS:
        if not network.installed or not wanted(options, network.name):
            continue
        size = min(network.batches[-1], 4 if options.quick else 64)
        say(f"{network.name}, batch {size}")
        peers = Peers(network, size)
        notes[network.name] = peers.notes
        for count in options.threads:
            measured = measure(peers, count, options.quick, options.seconds)
            rows += [{"network": network.name, "batch": size, "threads": count, **row} for row in measured]
        write(options, "peers", "Peers on the same networks", blocks(rows, notes), rows, _versions())
    say("\n\n".join(blocks(rows, notes)))


def _versions() -> str:
    """The peers' versions, for the table's last line."""
    return "" if missing() else ", " + ", ".join(package.replace("==", " ") for package in PACKAGES[:2])


if __name__ == "__main__":
    main()

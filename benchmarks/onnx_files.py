"""ONNX files with θ as an input: does ONNX Runtime answer as eager does, and what does θ cost there?

Every family on the demo CNN, ResNet-18 and EfficientNet-Lite0, one θ for the batch and one per sample, in the ordinary
form and with constant weights, at batch sizes and settings other than the example's. Times are in turn with the base's
own export, in one process. Written to `results/onnx_files.md`; what a family has no form for is told in its own words.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnxruntime
import timing
import torch
from torch import Tensor, nn

import weightmorph as wm
from weightmorph.deploy.export import PlainGraph
from weightmorph.errors import ExecutionError

NETWORKS = ("demo CNN 28²", "ResNet-18 32²", "EfficientNet-Lite0 64²")


class Bend(nn.Module):
    """A user's own transform: any smooth function of weight and code."""

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(0.01))

    def forward(self, weight: Tensor, code: Tensor) -> Tensor:
        shape = (*code.shape[:-1], *(1,) * weight.dim())
        return weight + self.amount * torch.sin(weight + code[..., :1].reshape(shape))


FAMILIES: dict[str, Callable[[], wm.WeightTransform]] = {
    "Warp": wm.Warp,
    "LowRank(8)": lambda: wm.LowRank(8),
    "Scale": wm.Scale,
    "Subspace(2)": lambda: wm.Subspace(2),
    "Lie": wm.Lie,
    "PerFilter(linear)": lambda: wm.PerFilter("linear"),
    "PerFilter(mlp)": lambda: wm.PerFilter("mlp"),
    "Custom": lambda: wm.Custom(Bend(), anchored=True),
    "Warp + LowRank(8) + Scale": lambda: wm.Warp() + wm.LowRank(8) + wm.Scale(),
}
FORMS = {"shared": False, "per sample": True}
MOVED = {"PerFilter(mlp)": 0.002}
"""How far from its start a transform is, if not 0.02. On ResNet-18 that would make this one's logits 1e12, and float32
in eager wrong in the first digit."""


def session(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measured(network: str, family: str, form: str, constant: bool, args: Any, folder: Path) -> dict[str, Any]:
    """One file: its worst error over batch sizes and settings, its size, the time of a call of four images."""
    chosen = networks.network(network)
    net = chosen.make().eval()
    x, _ = chosen.inputs(4)
    model = wm.condition(net, {"angle": wm.Angle("deg")}, FAMILIES[family](), example=x[:1])
    networks.shake(model, MOVED.get(family, 0.02))
    row: dict[str, Any] = {"network": network, "family": family, "form": form, "constant": constant}
    path, per_sample = folder / "model.onnx", FORMS[form]
    start = time.perf_counter()
    try:
        wm.export_onnx(model, path, x[:2], per_sample=per_sample, constant_weights=constant)
    except ExecutionError as error:
        return row | {"refused": str(error)}
    row["export"] = time.perf_counter() - start
    run = session(path, args.threads[0])
    name = run.get_inputs()[0].name
    row["error"] = 0.0
    for size in (4, 1):
        for first in (33.0, 0.0, 200.0):
            theta = torch.arange(size) * 40 + first if per_sample else torch.tensor(first)
            [got] = run.run(None, {name: x[:size].numpy(), "angle": theta.float().numpy()})
            with torch.no_grad():
                want = model(x[:size], angle=theta).numpy()
            row["error"] = max(row["error"], float((np.abs(got - want) / (1 + np.abs(want))).max()))
    plain = copy.deepcopy(net)
    PlainGraph(plain, x[:2]).save(plain.state_dict(), folder / "base.onnx", {})
    base = session(folder / "base.onnx", args.threads[0])
    feed = {name: x.numpy(), "angle": (theta_of(4) if per_sample else torch.tensor(33.0)).numpy()}
    calls: dict[str, timing.Call] = {
        "base": lambda: base.run(None, {base.get_inputs()[0].name: feed[name]}),
        "model": lambda: run.run(None, feed),
    }
    found = timing.interleave(calls, args.seconds or (0.2 if args.quick else 2.0))
    return row | {"bytes": path.stat().st_size, "base_bytes": (folder / "base.onnx").stat().st_size,
                  "ms": found["model"].seconds, "ratio": found["model"].ratio}  # fmt: skip


def theta_of(size: int) -> Tensor:
    return (torch.arange(size) * 40 + 33).float()


def main() -> None:
    args = timing.parser(__doc__, (1,)).parse_args()
    logging.disable(logging.WARNING)
    rows = []
    with timing.threads(args.threads[0]), tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS[:1] if args.quick else NETWORKS:
            for family in FAMILIES:
                for form in FORMS:
                    for constant in (False, True):
                        name = f"{network} {family} {form}{' constant' if constant else ''}"
                        if timing.wanted(args, name):
                            rows.append(measured(network, family, form, constant, args, Path(folder)))
                            timing.say(name, {k: v for k, v in rows[-1].items() if k in ("error", "ratio", "refused")})
    timing.write(args, "onnx_files", "ONNX files with θ as an input", blocks(rows), rows)


def blocks(rows: list[dict[str, Any]]) -> list[str]:
    """The tables."""
    good = [r for r in rows if "error" in r]
    text = [
        f"Worst error is max |ONNX Runtime - eager| / (1 + |eager|) over batches of 4 and 1 and three settings. "
        f"**{sum(r['error'] <= 1e-4 for r in good)} of {len(good)} files at most 1e-4.**"
    ]
    for network in dict.fromkeys(r["network"] for r in rows):
        body = [
            (
                r["family"], r["form"], "constant" if r["constant"] else "",
                *((f"{r['error']:.0e}", f"{r['export']:.0f} s", f"{r['bytes'] / r['base_bytes']:.2f}×",
                   timing.milliseconds(r["ms"]), timing.times(r["ratio"])) if "error" in r
                  else ("no such form", "", "", "", "")),
            )
            for r in rows if r["network"] == network
        ]  # fmt: skip
        header = (
            "family", "θ", "weights", ">worst error", ">to export", ">file / base's", ">ms, 4 images", ">time / base's"
        )  # fmt: skip
        text += [f"## {network}", timing.table(header, body)]
    return text


if __name__ == "__main__":
    main()

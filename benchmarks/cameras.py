"""Two hundred cameras: a network baked for each, the files that makes, and switching between them.

EfficientNet-Lite0 with its ImageNet weights, conditioned on a camera's tilt; the transform has left its start but was
not trained, for its values decide neither a size nor a time. Written to `results/cameras.md`:

- **baked**: one ONNX file per setting by `bake_many`; each is compared with eager on the same image, and timed in ONNX
  Runtime in turn with the original network's own export.
- **sizes**: a setting's delta, and the model that makes any setting, against the base's bytes.
- **switching**: a delta against loading another file, interleaved in one process on a warm file cache.
"""

from __future__ import annotations

import copy
import itertools
import logging
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnxruntime
import safetensors.torch
import timing
import torch
from torch import Tensor, nn

import weightmorph as wm
from weightmorph.deploy.export import PlainGraph

FAMILIES: dict[str, Callable[[], wm.WeightTransform]] = {
    "low rank 8": lambda: wm.LowRank(8),
    "low rank 8 + scale": lambda: wm.LowRank(8) + wm.Scale(),
    "warp + low rank 8 + scale": lambda: wm.Warp() + wm.LowRank(8) + wm.Scale(),
    "warp (grow=0) + low rank 8 + scale": lambda: wm.Warp(grow=0) + wm.LowRank(8) + wm.Scale(),
}
BAKED = ("low rank 8 + scale", "warp (grow=0) + low rank 8 + scale", "warp + low rank 8 + scale")
"""Of which 200 files are made; the last widens the strided layers' kernels, which costs what it costs."""
SWITCHED = ("low rank 8", "low rank 8 + scale", "warp + low rank 8 + scale")


def condition(net: nn.Module, family: str, x: Tensor) -> wm.Conditioned:
    model = wm.condition(net, {"tilt": wm.Angle("deg")}, FAMILIES[family](), example=x)
    return networks.shake(model, 0.02)


def settings(count: int) -> dict[str, dict[str, float]]:
    """Names and tilts, all different and none at the anchor."""
    return {f"camera-{i:03d}": {"tilt": round(-30 + 60 * (i + 0.5) / count, 4)} for i in range(count)}


def session(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runner(made: Any, x: Tensor) -> Callable[[], Any]:
    feed = {made.get_inputs()[0].name: x.numpy()}
    return lambda: made.run(None, feed)[0]


def difference(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    """At most 1e-4 where both a relative and an absolute tolerance of 1e-4 hold."""
    return float((np.abs(got - want) / (1 + np.abs(want))).max())


def baked(
    family: str, net: nn.Module, x: Tensor, count: int, rounds: int, threads: int, folder: Path
) -> dict[str, Any]:
    """Every camera's file: its error, and its time against the original's, round by round."""
    model = condition(net, family, x)
    plain = copy.deepcopy(net).eval()
    PlainGraph(plain, x).save(plain.state_dict(), folder / "original.onnx", {})
    original = runner(session(folder / "original.onnx", threads), x)
    timing.say(f"{family}: baking {count} settings")
    start = timing.time.perf_counter()
    made = wm.bake_many(model, settings(count), folder, form="onnx", example=x)
    seconds = timing.time.perf_counter() - start
    errors, ratios, again = [], [], []
    for name, theta in settings(count).items():
        run = runner(session(made.files[name], threads), x)
        with torch.no_grad():
            errors.append(difference(run(), model.bake(**theta)(x).numpy()))
        # A second session of the very same file says how far a ratio is from 1 with nothing changed.
        control = runner(session(folder / "original.onnx", threads), x)
        calls = {"original": original, name: run, "again": control}
        found = timing.interleave(calls, 0.0, least=rounds, most=rounds)
        ratios.append(found[name].ratio)
        again.append(found["again"].ratio)
    grown = sum(1 for s in model.slots.values() if tuple(model.at(tilt=20.0).get_parameter(s.name).shape) != s.shape)
    return {
        "family": family, "settings": count, "worst_error": max(errors), "ratio": statistics.median(ratios),
        "worst_ratio": max(ratios), "within": sum(r <= 1.02 for r in ratios), "grown": grown,
        "again": statistics.median(again), "again_within": sum(r <= 1.02 for r in again), "again_worst": max(again),
        "seconds_each": seconds / count, "bytes_each": statistics.mean(p.stat().st_size for p in made.files.values()),
    }  # fmt: skip


def sizes(family: str, net: nn.Module, x: Tensor, folder: Path) -> dict[str, Any]:
    """A setting's delta, and the model's checkpoint."""
    model = condition(net, family, x)
    wm.Delta.of(model, tilt=12.5).save(folder / "delta.safetensors")
    model.save(folder / "model.safetensors")
    sizes = {name: (folder / f"{name}.safetensors").stat().st_size for name in ("delta", "model")}
    return {"family": family, "base": sum(t.nbytes for t in net.state_dict().values()), **sizes}


def switching(family: str, net: nn.Module, x: Tensor, seconds: float, threads: int, folder: Path) -> dict[str, Any]:
    """From one camera to another and back: by files, and by deltas."""
    model = condition(net, family, x)
    tilts = (12.5, -20.0)
    names = [f"tilt={t:g}" for t in tilts]
    weights = wm.bake_many(model, {"tilt": tilts}, folder / "weights").files
    files = wm.bake_many(model, {"tilt": tilts}, folder / "deltas", form="delta").files
    graphs = wm.bake_many(model, {"tilt": tilts}, folder / "graphs", form="onnx", example=x).files
    for name, file in weights.items():
        torch.save(safetensors.torch.load_file(file), folder / f"{name}.pt")
    deltas = [wm.Delta.load(files[name]) for name in names]
    device = model.bake(tilt=tilts[0])  # grown kernels included, so that the files fit it
    applied = wm.apply_delta(copy.deepcopy(net).eval(), deltas[0])
    prepared = wm.apply_delta(copy.deepcopy(net).eval(), deltas[0])
    prepared.prepare(*deltas)
    turns = {key: itertools.cycle(range(2)) for key in ("safetensors", "torch", "onnx", "read", "apply", "prepared")}

    def name(key: str) -> str:
        return names[next(turns[key])]

    calls: dict[str, timing.Call] = {
        "another file: load_file and load_state_dict": lambda: device.load_state_dict(
            safetensors.torch.load_file(weights[name("safetensors")])
        ),
        "another file: torch.load and load_state_dict": lambda: device.load_state_dict(
            torch.load(folder / f"{name('torch')}.pt", weights_only=True)
        ),
        "another file: a new ONNX Runtime session": lambda: session(graphs[name("onnx")], threads),
        "delta: read its file and apply": lambda: applied.switch(wm.Delta.load(files[name("read")])),
        "delta: apply": lambda: applied.switch(deltas[next(turns["apply"])]),
        "delta: prepared before": lambda: prepared.switch(deltas[next(turns["prepared"])]),
    }
    found = timing.interleave(calls, seconds)
    with torch.no_grad():
        for handle in (applied, prepared):
            for delta, tilt in zip(deltas, tilts, strict=True):
                handle.switch(delta)
                assert torch.equal(handle.net(x), model.bake(tilt=tilt)(x)), "a switched network answers otherwise"
    rows = {key: {"seconds": t.seconds, "ratio": t.ratio, "rounds": t.rounds} for key, t in found.items()}
    return {"family": family, "rows": rows}


def main() -> None:
    options = timing.parser(__doc__, (1,))
    options.add_argument("--settings", type=int, help="how many cameras (default: 200; 4 with --quick)")
    args = options.parse_args()
    logging.disable(logging.WARNING)  # the exporter names operators of packages that are not installed
    threads, count = args.threads[0], args.settings or (4 if args.quick else 200)
    rounds = 5 if args.quick else 15
    side, most = (64, 1) if args.quick else (224, None)
    net = networks.network("EfficientNet-Lite0 64²").make().eval()
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    data: dict[str, Any] = {"baked": [], "sizes": [], "switching": []}
    with timing.threads(threads), tempfile.TemporaryDirectory() as name:
        for number, family in enumerate(f for f in BAKED[:most] if timing.wanted(args, f"baked {f}")):
            folder = Path(name) / str(number)
            folder.mkdir()
            data["baked"].append(baked(family, net, x, count, rounds, threads, folder))
            timing.say(data["baked"][-1])
        for family in (f for f in FAMILIES if timing.wanted(args, f"sizes {f}")):
            data["sizes"].append(sizes(family, net, x, Path(name)))
            timing.say(data["sizes"][-1])
        for family in (f for f in SWITCHED[:most] if timing.wanted(args, f"switching {f}")):
            folder = Path(name) / f"switching {len(data['switching'])}"
            folder.mkdir()
            seconds = args.seconds or (1 if args.quick else 20)
            data["switching"].append(switching(family, net, x, seconds, threads, folder))
            timing.say(data["switching"][-1])
    timing.write(args, "cameras", "A camera each: baked, small, switched", blocks(data, side), data)


def blocks(data: dict[str, Any], side: int) -> list[str]:
    """The tables."""
    text = [f"EfficientNet-Lite0, one image of {side}², ratios taken within a round."]
    if data["baked"]:
        rows = [
            (
                r["family"], r["settings"], f"{r['worst_error']:.1e}", "yes" if r["worst_error"] <= 1e-4 else "**no**",
                f"{r['ratio']:.3f}×", "yes" if r["ratio"] <= 1.02 else "**no**", f"{r['within']} of {r['settings']}",
                f"{r['worst_ratio']:.3f}×",
                f"{r['again']:.3f}×, {r['again_within']}, {r['again_worst']:.3f}×",
                r["grown"], f"{r['seconds_each']:.2f} s", f"{r['bytes_each'] / 1e6:.1f} MB",
            )
            for r in data["baked"]
        ]  # fmt: skip
        header = (
            "transform", ">settings", ">worst error against eager", "≤ 1e-4",
            ">time / original's ONNX, median over the settings", "≤ 1.02", ">settings ≤ 1.02", ">slowest",
            ">the original's file once more: median, ≤ 1.02, slowest",
            ">kernels that grew", ">to bake", ">a file",
        )  # fmt: skip
        text += ["## Baked ONNX files, in ONNX Runtime", timing.table(header, rows)]
        text += ["The original's file once more is a second session of that very file: so far from 1 is what is equal."]
    if data["sizes"]:
        share = lambda r, key: f"{r[key]:,} ({100 * r[key] / r['base']:.2f} %)"  # noqa: E731
        rows = [(r["family"], *(share(r, k) for k in ("delta", "model"))) for r in data["sizes"]]
        header = ("transform", ">a setting's delta", ">the model itself")
        text += [f"## Bytes, and share of the base's {data['sizes'][0]['base']:,}", timing.table(header, rows)]
    for r in data["switching"]:
        first = next(iter(r["rows"].values()))["ratio"]
        rows = [
            (key, timing.milliseconds(row["seconds"]), f"{first / row['ratio']:,.1f}×", row["rounds"])
            for key, row in r["rows"].items()
        ]
        header = ("how", ">ms", ">times as fast as loading another file", ">rounds")
        text += [f"## From one setting to another: {r['family']}", timing.table(header, rows)]
    return text


if __name__ == "__main__":
    main()

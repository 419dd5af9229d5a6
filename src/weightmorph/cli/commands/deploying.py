"""`weightmorph bake`, `weightmorph export` and `weightmorph serve`."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ... import serving
from ...deploy.baking import SUFFIX, bake_many
from ...deploy.delta import Delta
from ...deploy.export import export_onnx, export_program
from ...errors import ConfigError
from ...io import replacing
from ...model import Conditioned
from ..files import read_settings
from ..options import FromFunction, Job, Shape, check_range
from ..recipes import configuring
from ..results import destination, example_input, input_shape, loaded, quiet_export, write_config
from ..show import say

__all__ = ["BAKING", "EXPORTING", "SERVING", "Bake", "Export", "Serve", "run_bake", "run_export", "run_serve"]


@dataclass
class Bake:
    """Which settings, and where to.

    Args:
        at: one setting, by parameter, in its unit, e.g. --at.angle 30.
        settings: file with many settings: names to settings ({gate-7: {angle: 30}}) or a list of settings in YAML or
            JSON, or CSV whose first line names the parameters (and a column name, if the settings have names).
        each: many settings: so many values of each parameter, all combinations.
        input_shape: shape of one sample, for onnx; null takes that of the training data.
        to: file for one setting, folder for many; null for 'baked' beside the model.
    """

    at: dict[str, float | str] = field(default_factory=dict)
    settings: str | None = None
    each: int | None = None
    input_shape: Shape = None
    to: str | None = None


BAKING = FromFunction(bake_many, "form overwrite")


def run_bake(job: Job) -> int:
    """Make plain networks of constant weights, one for each setting."""
    options = job.options
    check_range(options, 1, "each")
    given = [name for name in ("at", "settings", "each") if options[name]]
    if len(given) != 1:
        raise ConfigError(f"bake: expected one of at, settings and each, got {' and '.join(given) or 'none'}")
    model, about = loaded(options)
    example = example_input(options.input_shape, about, 1, model.device) if options.form == "onnx" else None
    if options.at:
        with configuring("at"):
            model.space.prepare(options.at)
        file = destination(options.to, options, f"baked{SUFFIX[options.form]}")
        file.parent.mkdir(parents=True, exist_ok=True)
        remark = _one(model, options, file, example)
        write_config(job, file.with_name(f"{file.stem}.bake.yaml"))
        say(f"{file}: {', '.join(f'{name}={value}' for name, value in options.at.items())}{remark}")
        return 0
    folder = destination(options.to, options, "baked")
    with quiet_export():
        done = bake_many(model, _many(model, options), folder, example=example, **BAKING.arguments(options))
    write_config(job, folder / "bake.yaml")
    say(f"{done.index}: {len(done.files)} settings, {len(done.written)} written now")
    return 0


def _one(model: Conditioned, options: Any, file: Path, example: Any) -> str:
    """Write one setting to a file of its own; gives what has to be said about it."""
    if options.form == "delta":
        Delta.of(model, **options.at).save(file)
        return ""
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as beside, quiet_export():
        done = bake_many(model, {"baked": options.at}, beside, form=options.form, example=example)
        entry = json.loads(done.index.read_text("utf-8"))["settings"]["baked"]
        os.replace(done.files["baked"], file)
    wider = entry.get("widened", {})
    return f"; kernels have grown, set on the layers: {json.dumps(wider)}" if wider else ""


def _many(model: Conditioned, options: Any) -> dict[str, Any]:
    """Names to settings, or parameters to columns, each checked."""
    if options.each:
        return {name: values.tolist() for name, values in model.space.grid(options.each).items()}
    found = read_settings(Path(str(options.settings)))
    for name, row in found.items() if isinstance(found, dict) else enumerate(found, 1):
        with configuring(f"settings: {name}"):
            model.space.prepare(row)
    return found if isinstance(found, dict) else {name: [row[name] for row in found] for name in model.space}


@dataclass
class Export:
    """What is written.

    Args:
        format: onnx, or program (torch.export, *.pt2).
        input_shape: shape of one sample, e.g. [1, 28, 28]; null takes that of the training data.
        to: file to write, *.onnx or *.pt2; null for 'model.onnx' or 'model.pt2' beside the model.
    """

    format: Literal["onnx", "program"] = "onnx"
    input_shape: Shape = None
    to: str | None = None


EXPORTING = FromFunction(export_program, "per_sample dynamic_batch constant_weights")


def run_export(job: Job) -> int:
    """Write one ONNX file or torch program that takes θ as an input."""
    options = job.options
    model, about = loaded(options)
    x = example_input(options.input_shape, about, 2, model.device)
    if options.constant_weights and options.format != "onnx":
        raise ConfigError("constant_weights: only for the format onnx")
    file = destination(options.to, options, "model.onnx" if options.format == "onnx" else "model.pt2")
    file.parent.mkdir(parents=True, exist_ok=True)
    with quiet_export(), warnings.catch_warnings():
        # Of tensors that share memory, as the base's and the model's do, torch keeps the first, which is right.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        if options.format == "onnx":
            export_onnx(model, file, x, **EXPORTING.arguments(options))
        else:
            program = export_program(model, x, **EXPORTING.arguments(options))
            with replacing(file) as beside:
                torch.export.save(program, beside)
    write_config(job, file.with_name(f"{file.stem}.export.yaml"))
    kind = "one for each sample, (B,)" if options.per_sample else "one for the batch, ()"
    say(f"{file}: inputs x {tuple(x.shape[1:])} a sample, and {', '.join(model.space)}, {kind}")
    return 0


@dataclass
class Serve:
    """What is taken, at most.

    Args:
        input_shape: shape of one sample, e.g. [1, 28, 28], null for an axis left open; null takes that of the training
            data.
        input_dtype: of the input's numbers.
        max_batch: requests in one call of the network.
        max_wait: how long the first request of a batch waits for others, in ms.
        max_body: largest body of a request, in MiB.
        max_queue: requests that may wait.
        timeout: longest time to an answer, in s.
        grace: time that requests at hand get at the end, in s.
    """

    input_shape: Shape = None
    input_dtype: Literal["float32", "float64", "int64"] = "float32"
    max_batch: int = 64
    max_wait: float = 2.0
    max_body: float = 16.0
    max_queue: int = 1024
    timeout: float = 30.0
    grace: float = 10.0


SERVING = FromFunction(serving.run, "host port log_level")


def run_serve(job: Job) -> int:
    """Answer requests over HTTP, each with its own θ, until stopped."""
    options = job.options
    check_range(options, 0, "port", high=65535)
    limits = serving.Limits(
        batch=options.max_batch, wait=options.max_wait / 1000, body=int(options.max_body * 2**20),
        queue=options.max_queue, timeout=options.timeout, grace=options.grace,
    )  # fmt: skip
    model, about = loaded(options)
    inputs = serving.Inputs(input_shape(options.input_shape, about), options.input_dtype)

    def ready(address: str) -> None:
        say(f"{options.model} on {address}: POST {address}/predict; stop with Ctrl-C")

    serving.run(model, inputs, limits=limits, ready=ready, **SERVING.arguments(options))
    return 0

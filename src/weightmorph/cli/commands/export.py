"""`weightmorph export`."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from ...deploy.export import export_onnx, export_program
from ...errors import ConfigError
from ...storage import replaced
from ..options import Export, Job
from ..results import destination, example_input, loaded, quiet_export, write_config
from ..show import say

__all__ = ["run"]


def run(job: Job[Export]) -> int:
    """Write one graph with θ as an input."""
    options = job.options
    model, about = loaded(options)
    x = example_input(options.input_shape, about, 2, model.device)
    if options.constant_weights and options.format != "onnx":
        raise ConfigError("constant_weights: only for the format onnx")
    file = destination(options.to, options, "model.onnx" if options.format == "onnx" else "model.pt2")
    file.parent.mkdir(parents=True, exist_ok=True)
    per_sample, dynamic = options.per_sample, options.dynamic_batch
    with quiet_export():
        if options.format == "onnx":
            export_onnx(
                model, file, x, per_sample=per_sample, dynamic_batch=dynamic, constant_weights=options.constant_weights
            )
        else:
            _save(export_program(model, x, per_sample=per_sample, dynamic_batch=dynamic), file)
    write_config(job, file)
    kind = "one for each sample, (B,)" if options.per_sample else "one for the batch, ()"
    say(f"{file}: inputs x {tuple(x.shape[1:])} a sample, and {', '.join(model.space)}, {kind}")
    return 0


def _save(program: torch.export.ExportedProgram, file: Path) -> None:
    """Write a program, whole or not at all."""
    with replaced(file) as beside, warnings.catch_warnings():
        # Of tensors that share memory, as the base's and the model's do, torch keeps the first, which is right.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, beside)

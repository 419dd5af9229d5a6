"""`weightmorph export`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jsonargparse
import torch

from ...deploy.export import export_onnx, export_program
from ...errors import ConfigError
from ...storage import replaced
from ..options import FromFunction, Job, Network, Saved
from ..results import destination, example_input, loaded, quiet_export, write_config
from ..show import say

__all__ = ["add_options", "run"]


@dataclass
class Options:
    """What is written.

    Args:
        format: onnx, or program (torch.export, *.pt2).
        input_shape: shape of one sample, e.g. [1, 28, 28]; null takes that of the training data.
        to: file to write, *.onnx or *.pt2; null for 'model.onnx' or 'model.pt2' beside the model.
    """

    format: Literal["onnx", "program"] = "onnx"
    input_shape: list[int | None] | None = None
    to: str | None = None


GRAPH = FromFunction(export_program, "per_sample dynamic_batch constant_weights")


def add_options(parser: jsonargparse.ArgumentParser) -> None:
    """The options of this command."""
    for group in (Network, Saved, Options):
        parser.add_class_arguments(group)
    GRAPH.add_to(parser)


def run(job: Job) -> int:
    """Write one ONNX file or torch program that takes θ as an input."""
    options = job.options
    model, about = loaded(options)
    x = example_input(options.input_shape, about, 2, model.view.device)
    if options.constant_weights and options.format != "onnx":
        raise ConfigError("constant_weights: only for the format onnx")
    file = destination(options.to, options, "model.onnx" if options.format == "onnx" else "model.pt2")
    file.parent.mkdir(parents=True, exist_ok=True)
    with quiet_export():
        if options.format == "onnx":
            export_onnx(model, file, x, **GRAPH.arguments(options))
        else:
            _save(export_program(model, x, **GRAPH.arguments(options)), file)
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

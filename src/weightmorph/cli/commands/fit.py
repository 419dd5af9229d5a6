"""`weightmorph fit`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import torch

from ...errors import CheckpointError, ConfigError
from ...inputs import InputTransform
from ...model import Conditioned, condition
from ...training import fit
from ...training.run import agree
from .. import data as sources
from ..exits import TERMINATED
from ..options import Job, Network, Recipe, Training, add_trainer, naming_options, training
from ..recipes import configuring, input_transform, objective, parameters, weight_transform
from ..results import write_config
from ..show import say
from ..sources import network

__all__ = ["add_options", "run"]


@dataclass
class Options:
    """What is trained.

    Args:
        input_transform: what the world does to the input: Rotate, Zoom, Shear, Translate, Flip, Blur, Noise,
            Brightness, Contrast with their options, or your own by import path; a list for several in turn.
        transform: how the weights depend on it: Warp, LowRank, Scale, Subspace, Lie, PerFilter with their options,
            added.
        select: names or glob patterns of the tensors to transform; null for all that the transform can handle.
        out: folder for model.safetensors, fit.yaml and the checkpoint.
    """

    input_transform: Recipe = None
    transform: Recipe = "Warp + LowRank(8) + Scale"
    select: list[str] | str | None = None
    out: str = "run"


def add_options(parser: jsonargparse.ArgumentParser) -> None:
    """The options of this command."""
    for group in (Network, Training, Options):
        parser.add_class_arguments(group)
    add_trainer(parser)


def run(job: Job) -> int:
    """Train a transform of a frozen network's weights."""
    options = job.options
    model, data, turn, loss = built(options)
    out = Path(options.out)
    file = out / "model.safetensors"
    try:
        with naming_options(options):
            done = fit(model, data, turn, loss, seed=options.seed, checkpoint=out / "checkpoint", **training(options))
    except ConfigError:
        raise
    except BaseException as error:
        _write_config(job, out, file)  # of a run that goes on when it is called again
        if isinstance(error, SystemExit):  # so Lightning ends on SIGTERM, when the state is written
            print("weightmorph fit: terminated; call it again to go on", file=sys.stderr)
            return TERMINATED
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{error} (--trainer.resume false, or another --out)") from error
        raise
    _write_config(job, out, file)
    model.save(
        file,
        metrics={
            "input_shape": list(sources.example(data, "data").shape[1:]),
            "steps": done.steps,
            "training_seconds": round(done.seconds, 3),
            "loss": done.losses[-1] if done.losses else None,
        },
    )
    say(str(done))
    say(f"{file}; go on with: weightmorph evaluate --config {shlex.quote(str(out / 'fit.yaml'))}")
    return 0


def built(options: Any) -> tuple[Conditioned, Any, Any, Any]:
    """The model before training, the data, the input transform and the objective.

    Raises:
        ConfigError: if the configuration cannot be used.
    """
    space = None if options.parameters is None else parameters(options.parameters)
    turn = input_transform(options.input_transform, space)
    recipe = weight_transform(options.transform)
    loss = objective(options.objective, options.objective_options)
    read = sources.labelled if getattr(loss, "needs_labels", True) else sources.read
    data = read(options, "data")
    net = network(options)
    if space is None:
        if not isinstance(turn, InputTransform):
            raise ConfigError("parameters: a function of your own does not say what it depends on; name them")
        space = turn.parameters
    with configuring("parameters"):
        agree(space, turn)
    first = sources.example(data, "data")
    torch.manual_seed(options.seed)  # of the transform's first numbers
    try:
        with configuring("transform"):
            model = condition(net, space, recipe, select=options.select or None, example=first)
    except RuntimeError as error:  # the network's own, on an input that it was not made for
        raise ConfigError(f"data: the base cannot take an input of shape {tuple(first.shape)}: {error}") from error
    return model, data, turn, loss


def _write_config(job: Job, out: Path, file: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_config(job, out, model=str(file))

"""`weightmorph fit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, ConfigError
from ...inputs import InputTransform
from ...model import Conditioned, condition
from ...training import fit
from ...training.run import agree
from .. import data as sources
from ..exits import TERMINATED
from ..options import Fit, Job, Trainer
from ..recipes import configuring, input_transform, objective, parameters, weight_transform
from ..results import write_config
from ..show import say
from ..sources import network

__all__ = ["built", "run", "watched"]


def built(options: Fit) -> tuple[Conditioned, Any, Any, Any]:
    """The model before training, the data, the input transform and the objective.

    Raises:
        ConfigError: if the configuration cannot be used.
    """
    space = None if options.parameters is None else parameters(options.parameters)
    turn = input_transform(options.input_transform, space)
    recipe = weight_transform(options.transform)
    aim = objective(options.objective, options.objective_options)
    data = sources.load(options.data, options.data_options, options.data_take, "data")
    needs_labels = bool(getattr(aim, "needs_labels", True))
    data = sources.labelled(data, "data") if needs_labels else sources.unlabelled(data)
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
    return model, data, turn, aim


def run(job: Job[Fit]) -> int:
    """Train, and write the model with the configuration that gives it again."""
    options = job.options
    model, data, turn, aim = built(options)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "model.safetensors"
    write_config(job, out, model=str(file))
    trainer = options.trainer
    try:
        done = fit(
            model, data, turn, aim, steps=trainer.steps, epochs=trainer.epochs, batch_size=trainer.batch_size,
            settings=trainer.settings, lr=trainer.lr, weight_decay=trainer.weight_decay, schedule=trainer.schedule,
            seed=options.seed, checkpoint=out / "checkpoint", resume=trainer.resume, check_prior=trainer.check_prior,
            progress=watched(trainer), precision=trainer.precision, accelerator=trainer.accelerator,
            devices=trainer.devices, num_workers=trainer.num_workers, trainer=trainer.lightning,
            predict_parameter=trainer.predict_parameter,
        )  # fmt: skip
    except SystemExit:  # so Lightning ends on SIGTERM, when the state is written
        print("weightmorph fit: terminated; call it again to go on", file=sys.stderr)
        return TERMINATED
    except CheckpointError as error:
        raise CheckpointError(f"{error} (--trainer.resume false, or another --out)") from error
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
    say(f"{file}; go on with: weightmorph evaluate --config {out / 'fit.yaml'}")
    return 0


def watched(trainer: Trainer) -> bool:
    """Show a progress bar? Where nobody says, only on a terminal."""
    return sys.stderr.isatty() if trainer.progress is None else trainer.progress

"""`weightmorph fit` and `weightmorph compare`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...comparison import compare
from ...errors import CheckpointError, ConfigError
from ...evaluation import Contender, evaluate
from ...inputs import InputTransform
from ...model import Conditioned, condition
from ...training import fit
from ...training.run import agree
from .. import data as sources
from ..exits import TERMINATED
from ..options import FromFunction, Job, Recipe, check_range, fit_arguments, naming_options
from ..recipes import configuring, input_transform, objective, parameters, weight_transform
from ..results import loaded, write_config
from ..show import say
from ..sources import network
from .judging import invertible, show

__all__ = ["COMPARING", "JUDGING", "Compare", "Fit", "run_compare", "run_fit"]

TRANSFORM = "Warp + LowRank(8) + Scale"


@dataclass
class Fit:
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
    transform: Recipe = TRANSFORM
    select: list[str] | str | None = None
    out: str = "run"


def run_fit(job: Job) -> int:
    """Train a transform of a frozen network's weights."""
    options = job.options
    model, data, turn, loss = _built(options)
    out = Path(options.out)
    file = out / "model.safetensors"
    try:
        with naming_options(options):
            done = fit(
                model, data, turn, loss, seed=options.seed, checkpoint=out / "checkpoint", **fit_arguments(options)
            )
    except ConfigError:
        raise
    except BaseException as error:
        write_config(job, out / "fit.yaml", model=str(file))  # the same command goes on with the run
        if isinstance(error, SystemExit):  # so Lightning ends on SIGTERM, when the state is written
            print("weightmorph fit: terminated; call it again to go on", file=sys.stderr)
            return TERMINATED
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{error} (--trainer.resume false, or another --out)") from error
        raise
    config = write_config(job, out / "fit.yaml", model=str(file))
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
    say(f"{file}; go on with: weightmorph evaluate --config {shlex.quote(str(config))}")
    return 0


def _built(options: Any) -> tuple[Conditioned, Any, Any, Any]:
    """The model before training, the data, the input transform and the objective."""
    space = None if options.parameters is None else parameters(options.parameters)
    turn = input_transform(options.input_transform, space)
    recipe = weight_transform(options.transform)
    loss, data = _aim(options)
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


def _aim(options: Any) -> tuple[Any, Any]:
    """The objective, and the data with labels if it needs them."""
    loss = objective(options.objective, options.objective_options)
    read = sources.labelled if getattr(loss, "needs_labels", True) else sources.read
    return loss, read(options, "data")


@dataclass
class Compare:
    """What is compared where, and what is written.

    Args:
        one4one: at how many settings of each parameter to train a network of its own; 0 leaves the row out.
        grid: values of each parameter, all combinations; null for 36 of one, 9 of two, 5 of more.
        report: write comparison.html as well.
        out: folder for comparison.json, compare.yaml, comparison.html and the checkpoints. With a model, that one is
            taken as trained; without, transform says what to train.
    """

    one4one: int = 0
    grid: int | None = None
    report: bool = False
    out: str = "run"


COMPARING = FromFunction(compare, "one4all unknown")
JUDGING = FromFunction(evaluate, "batch_size rounds")


def run_compare(job: Job) -> int:
    """Train the alternatives with equal budgets, and judge all of them over a grid of θ."""
    options = job.options
    check_range(options, 1, "grid")
    check_range(options, 0, "one4one", "rounds")
    subject, recipe, turn = _subject(options)
    loss, train = _aim(options)
    test = sources.labelled(options, "test_data")
    each = fit_arguments(options)  # of each training, but for what `compare` takes itself or decides
    own = {name: each.pop(name) for name in ("steps", "epochs", "resume", "progress")}
    del each["check_prior"], each["predict_parameter"]
    out = Path(options.out)
    write_config(job, out / "compare.yaml")
    with naming_options(options):
        found = compare(
            subject, train, test, turn, transform=recipe, objective=loss, seed=options.seed,
            checkpoint=out / "comparison", training=each,
            judging={"grid": options.grid} | JUDGING.arguments(options), one4one=options.one4one,
            path=out / "comparison.html" if options.report else None, **own, **COMPARING.arguments(options),
        )  # fmt: skip
    if recipe is not None:
        found.model.save(out / "compared.safetensors")
    show(found.evaluation, out / "comparison.json")
    return 0


def _subject(options: Any) -> tuple[nn.Module | Contender, nn.Module | None, InputTransform]:
    """What is compared with the others: a model that is trained, or a network and how to transform its weights."""
    if options.model is not None:
        model, about = loaded(options)
        subject = Contender(model, seconds=about.metrics.get("training_seconds"))
        return subject, None, invertible(options, model.space)
    space = None if options.parameters is None else parameters(options.parameters)
    turn = invertible(options, space)
    if space is not None and dict(turn.parameters) != dict(space):
        raise ConfigError(
            f"parameters: expected those of the input transform, {dict(turn.parameters)}, got {dict(space)}"
        )
    return network(options), weight_transform(options.transform or TRANSFORM), turn

"""`weightmorph compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ...errors import ConfigError
from ...evaluation import Contender
from ...inputs import InputTransform
from .. import data as sources
from ..options import Compare, Job
from ..recipes import configuring, input_transform, objective, parameters, weight_transform
from ..results import loaded, write_config
from ..show import say, table
from ..sources import network
from .fit import watched

__all__ = ["run"]


def run(job: Job[Compare]) -> int:
    """Train, judge, show the table and the advice, and write them with the configuration."""
    from ...comparison import compare

    options, trainer = job.options, job.options.trainer
    for name, least in (("grid", 1), ("one4one", 0), ("rounds", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"{name}: expected {least} or more, got {value}")
    subject, recipe, turn = _subject(options)
    aim = objective(options.objective, options.objective_options)
    train = sources.load(options.data, options.data_options, options.data_take, "data")
    train = sources.labelled(train, "data") if getattr(aim, "needs_labels", True) else train
    test = sources.load(options.test_data, options.test_data_options, options.test_data_take, "test_data")
    test = sources.labelled(test, "test_data")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    write_config(job, out)
    found = compare(
        subject, train, test, turn, transform=recipe, objective=aim, steps=trainer.steps, epochs=trainer.epochs,
        one4all=options.one4all, one4one=options.one4one, unknown=options.unknown, checkpoint=out / "comparison",
        resume=trainer.resume, seed=options.seed, progress=watched(trainer), training=_training(options),
        judging={"grid": options.grid, "rounds": options.rounds, "batch_size": options.batch_size},
        path=out / "comparison.html" if options.report else None,
    )  # fmt: skip
    file = found.evaluation.save(out / "comparison.json")
    if recipe is not None:
        found.model.save(out / "compared.safetensors")
    head, *body = found.evaluation.cells()
    table(head, body)
    say("\n".join(found.evaluation.remarks()))
    say(found.advice)
    say(f"{file}")
    return 0


def _subject(options: Compare) -> tuple[nn.Module | Contender, nn.Module | None, InputTransform]:
    """What is compared with the others: a model that is trained, or a network and how to transform its weights."""
    space = None if options.parameters is None else parameters(options.parameters)
    subject: nn.Module | Contender
    recipe: nn.Module | None = None
    if options.model is not None:
        model, about = loaded(options)
        subject, space = Contender(model, seconds=about.metrics.get("training_seconds")), model.space
    else:
        subject, recipe = network(options), weight_transform(options.transform or "Warp + LowRank(8) + Scale")
    turn = input_transform(options.input_transform, space)
    if not isinstance(turn, InputTransform):
        raise ConfigError("input_transform: to compare, an InputTransform is needed, which knows its inverse")
    if space is not None and dict(turn.parameters) != dict(space):
        with configuring("parameters"):
            raise ConfigError(
                f"parameters: expected those of the input transform, {dict(turn.parameters)}, got {dict(space)}"
            )
    return subject, recipe, turn


def _training(options: Compare) -> dict[str, Any]:
    """What every training is told."""
    trainer = options.trainer
    names = "batch_size settings lr weight_decay schedule precision accelerator devices num_workers"
    return {name: getattr(trainer, name) for name in names.split()} | {"trainer": trainer.lightning}

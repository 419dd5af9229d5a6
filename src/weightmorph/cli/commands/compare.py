"""`weightmorph compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
from torch import nn

from ...comparison import compare
from ...errors import ConfigError
from ...evaluation import Contender, evaluate
from ...inputs import InputTransform
from .. import data as sources
from ..options import (
    FromFunction,
    Job,
    Network,
    Saved,
    Testing,
    Training,
    add_trainer,
    check_range,
    naming_options,
    training,
)  # fmt: skip
from ..recipes import input_transform, objective, parameters, weight_transform
from ..results import loaded, write_config
from ..show import say, table
from ..sources import network

__all__ = ["add_options", "run"]


@dataclass
class Options:
    """What is written.

    Args:
        report: write comparison.html as well.
        out: folder for comparison.json, compare.yaml, comparison.html and the checkpoints. With a model, that one is
            taken as trained; without, transform says what to train.
    """

    report: bool = False
    out: str = "run"


COMPARING = FromFunction(compare, "one4all one4one unknown")
JUDGING = FromFunction(evaluate, "grid batch_size rounds")
EACH = ("steps", "epochs", "resume", "progress")
"""What `compare` itself takes of `trainer`; it passes on the rest to each training …"""

NOT_EACH = ("check_prior", "predict_parameter")
"""… but for what is not one of all of them."""


def add_options(parser: jsonargparse.ArgumentParser) -> None:
    """The options of this command."""
    for group in (Network, Saved, Testing, Training, Options):
        parser.add_class_arguments(group)
    COMPARING.add_to(parser)
    JUDGING.add_to(parser)
    add_trainer(parser)


def run(job: Job) -> int:
    """Train the alternatives with equal budgets, and judge all of them over a grid of θ."""
    options = job.options
    check_range(options, 1, "grid")
    check_range(options, 0, "one4one", "rounds")
    subject, recipe, turn = _subject(options)
    loss = objective(options.objective, options.objective_options)
    train = (sources.labelled if getattr(loss, "needs_labels", True) else sources.read)(options, "data")
    test = sources.labelled(options, "test_data")
    budget = training(options)
    own = {name: budget.pop(name) for name in EACH}
    for name in NOT_EACH:
        del budget[name]
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    write_config(job, out)
    with naming_options(options):
        found = compare(
            subject, train, test, turn, transform=recipe, objective=loss, seed=options.seed,
            checkpoint=out / "comparison", training=budget, judging=JUDGING.arguments(options),
            path=out / "comparison.html" if options.report else None, **own, **COMPARING.arguments(options),
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


def _subject(options: Any) -> tuple[nn.Module | Contender, nn.Module | None, InputTransform]:
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
        raise ConfigError(
            f"parameters: expected those of the input transform, {dict(turn.parameters)}, got {dict(space)}"
        )
    return subject, recipe, turn

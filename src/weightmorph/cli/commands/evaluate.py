"""`weightmorph evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jsonargparse

from ...errors import ConfigError
from ...evaluation import Contender, evaluate
from ...inputs import InputTransform
from ...reporting import report
from .. import data as sources
from ..options import FromFunction, Job, Network, Saved, Testing, check_range
from ..recipes import configuring, input_transform
from ..results import loaded, write_config
from ..show import say, table

__all__ = ["add_options", "run"]


@dataclass
class Options:
    """What is written.

    Args:
        report: write report.html as well.
        out: folder for evaluation.json, evaluate.yaml and report.html.
    """

    report: bool = False
    out: str = "run"


JUDGING = FromFunction(evaluate, "grid baselines batch_size rounds")


def add_options(parser: jsonargparse.ArgumentParser) -> None:
    """The options of this command."""
    for group in (Network, Saved, Testing, Options):
        parser.add_class_arguments(group)
    JUDGING.add_to(parser)


def run(job: Job) -> int:
    """Judge a trained network over a grid of θ, beside the alternatives."""
    options = job.options
    check_range(options, 1, "grid")
    model, about = loaded(options)
    turn = input_transform(options.input_transform, model.space)
    if not isinstance(turn, InputTransform):
        raise ConfigError(
            "input_transform: to judge, an InputTransform is needed, which knows its inverse and its grid"
        )
    data = sources.labelled(options, "test_data")
    judged = Contender(model, seconds=about.metrics.get("training_seconds"))
    with configuring("evaluate"):
        found = evaluate(judged, data, turn, seed=options.seed, **JUDGING.arguments(options))
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    write_config(job, out)
    file = found.save(out / "evaluation.json")
    head, *body = found.cells()
    table(head, body)
    say("\n".join(found.remarks()))
    say(found.advice)
    if options.report:
        examples = data if isinstance(data, tuple) else None
        say(f"{report(found, out / 'report.html', model=model, examples=examples, input_transform=turn)}")
    say(f"{file}")
    return 0

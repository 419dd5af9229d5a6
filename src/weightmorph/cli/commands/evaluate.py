"""`weightmorph evaluate`."""

from __future__ import annotations

from pathlib import Path

from ...errors import ConfigError
from ...evaluation import Contender, evaluate
from ...inputs import InputTransform
from ...reporting import report
from .. import data as sources
from ..options import Evaluate, Job
from ..recipes import configuring, input_transform
from ..results import loaded, write_config
from ..show import say, table

__all__ = ["run"]


def run(job: Job[Evaluate]) -> int:
    """Judge, show the table and the advice, and write both as JSON."""
    options = job.options
    if options.grid is not None and options.grid < 1:
        raise ConfigError(f"grid: expected 1 or more values, got {options.grid}")
    model, about = loaded(options)
    turn = input_transform(options.input_transform, model.space)
    if not isinstance(turn, InputTransform):
        raise ConfigError(
            "input_transform: to judge, an InputTransform is needed, which knows its inverse and its grid"
        )
    data = sources.load(options.test_data, options.test_data_options, options.test_data_take, "test_data")
    data = sources.labelled(data, "test_data")
    with configuring("evaluate"):
        found = evaluate(
            Contender(model, seconds=about.metrics.get("training_seconds")), data, turn, options.grid,
            baselines=options.baselines, batch_size=options.batch_size, seed=options.seed, rounds=options.rounds,
        )  # fmt: skip
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

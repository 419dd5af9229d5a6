"""`weightmorph evaluate` and `weightmorph infer`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import ConfigError
from ...estimation import Inferred, infer
from ...evaluation import Contender, Evaluation, evaluate
from ...inputs import InputTransform
from ...io import write_atomically
from ...model import Conditioned
from ...parameters import Parameter
from ...reporting import report
from .. import data as sources
from ..options import FromFunction, Job, check_range
from ..recipes import configuring, input_transform
from ..results import destination, loaded, write_config
from ..show import say, table

__all__ = [
    "EVALUATING", "INFERRING", "Evaluate", "Infer", "invertible", "run_evaluate", "run_infer", "show",
]  # fmt: skip


@dataclass
class Evaluate:
    """Where, and what is written.

    Args:
        grid: values of each parameter, all combinations; null for 36 of one, 9 of two, 5 of more.
        report: write report.html as well.
        out: folder for evaluation.json, evaluate.yaml and report.html.
    """

    grid: int | None = None
    report: bool = False
    out: str = "run"


EVALUATING = FromFunction(evaluate, "baselines batch_size rounds")


def run_evaluate(job: Job) -> int:
    """Judge a trained network over a grid of θ, beside the alternatives."""
    options = job.options
    check_range(options, 1, "grid")
    model, about = loaded(options)
    turn = invertible(options, model.space)
    data = sources.labelled(options, "test_data")
    judged = Contender(model, seconds=about.metrics.get("training_seconds"))
    with configuring("evaluate"):
        found = evaluate(judged, data, turn, options.grid, seed=options.seed, **EVALUATING.arguments(options))
    out = Path(options.out)
    write_config(job, out / "evaluate.yaml")
    pages = []
    if options.report:
        examples = data if isinstance(data, tuple) else None
        pages.append(report(found, out / "report.html", model=model, examples=examples, input_transform=turn))
    show(found, *pages, out / "evaluation.json")
    return 0


def invertible(options: Any, space: Mapping[str, Parameter] | None) -> InputTransform:
    """The input transform, of the kind that networks can be judged with."""
    turn = input_transform(options.input_transform, space)
    if not isinstance(turn, InputTransform):
        raise ConfigError(
            "input_transform: to judge, an InputTransform is needed, which knows its inverse and its grid"
        )
    return turn


def show(found: Evaluation, *files: Path) -> None:
    """Save the figures to the last file, and print them with the advice and the files."""
    found.save(files[-1])
    head, *body = found.cells()
    table(head, body)
    say("\n".join([*found.remarks(), found.advice, *map(str, files)]))


@dataclass
class Infer:
    """What is inferred from what.

    Args:
        apply: a trial: transform the images by input_transform at this setting first, by parameter, in its unit; what
            is found is compared with it.
        known: values of parameters that are known, by name; the others are inferred.
        energy: what tells that θ is right: entropy (the network is sure), or agreement (of neighbouring θ).
        candidates: values of each parameter that are tried; null for 36 of one, fewer of several.
        batch_size: images in one call of the network.
        limit: images to read; null for all.
        to: table to write, *.csv; null for 'inferred.csv' beside the model.
    """

    apply: dict[str, float | str] = field(default_factory=dict)
    known: dict[str, float | str] = field(default_factory=dict)
    energy: Literal["entropy", "agreement"] = "entropy"
    candidates: int | None = None
    batch_size: int = 500
    limit: int | None = None
    to: str | None = None


INFERRING = FromFunction(infer, "method pool")


def run_infer(job: Job) -> int:
    """Estimate θ from data when nobody knows it, and write a line for each image."""
    options = job.options
    check_range(options, 1, "limit", "candidates", "batch_size")
    model, _ = loaded(options)
    data = sources.read(options, "test_data")
    x, labels = _stacked(data, options.limit)
    if options.apply:
        turn = input_transform(options.input_transform, model.space)
        with configuring("apply"):
            x = turn(x, **options.apply)
    with configuring("infer"):
        found = infer(
            model, x.to(model.device), objective=options.energy, known=options.known,
            candidates=options.candidates, batch_size=options.batch_size, **INFERRING.arguments(options),
        )  # fmt: skip
    outputs = getattr(found.outputs, "logits", found.outputs)
    classes = outputs.argmax(1).cpu() if isinstance(outputs, Tensor) and outputs.dim() == 2 else None
    images: dict[str, Any] = {"image": list(range(len(x)))}
    if isinstance(data, sources.Folder):
        images["file"] = data.names[: len(x)]
    file = destination(options.to, options, "inferred.csv")
    write_atomically(file, _csv(images | _columns(found, classes, labels, len(x))).encode())
    write_config(job, file.with_name(f"{file.stem}.infer.yaml"))
    say(str(found))
    for name, value in options.apply.items():
        say(_error(found, model, name, value))
    if classes is not None and labels is not None and labels.shape == classes.shape:
        share = float((classes == labels.cpu()).float().mean())
        say(f"{share:.1%} of {len(labels):,} labels are right at the estimates")
    say(f"{file}")
    return 0


def _stacked(data: Any, limit: int | None) -> tuple[Tensor, Tensor | None]:
    """All inputs as one tensor, and their labels if they have any."""
    if isinstance(data, Dataset):
        size = len(data)  # type: ignore[arg-type]  # those of the command line and of `fit` have one
        items = [data[index] for index in range(size if limit is None else min(limit, size))]
        pairs = [item if isinstance(item, tuple | list) else (item, None) for item in items]
        labels = [label for _, label in pairs if label is not None]
        try:
            x = torch.stack([torch.as_tensor(sample) for sample, *_ in pairs])
        except RuntimeError as error:
            raise ConfigError(
                f"test_data: the images are not of one size; give test_data_options.size: {error}"
            ) from error
        return x, torch.as_tensor(labels) if len(labels) == len(x) else None
    x, y = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    if not isinstance(x, Tensor) or not len(x):
        raise ConfigError("test_data: expected tensors (x, y) or x, or a Dataset, with an image at least")
    return x[:limit], None if y is None else y[:limit]


def _columns(found: Inferred, classes: Tensor | None, labels: Tensor | None, size: int) -> dict[str, list[Any]]:
    """For each image: estimates with their spread, how sure, what the network says."""
    columns: dict[str, Tensor] = {}
    for name in found.theta:
        columns |= {name: found.theta[name], f"{name}_spread": found.spread[name]}
    columns |= {"confidence": found.confidence, "abstain": found.abstain}
    if classes is not None:
        columns["predicted"] = classes
    if labels is not None and labels.dim() == 1:
        columns["label"] = labels
    return {name: column.expand(size).tolist() for name, column in columns.items()}


def _csv(columns: Mapping[str, list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
    return text.getvalue()


def _error(found: Inferred, model: Conditioned, name: str, value: float | str) -> str:
    """How far the estimates are from what was applied."""
    parameter = model.space[name]
    away = parameter.distance(found.theta[name].double().cpu(), float(parameter.tensor(name, value)))
    unit = f" {parameter.unit}" if parameter.unit else ""
    return f"{name} was {value}: {float(away.median()):.3g}{unit} away in the median"

"""`weightmorph infer`."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import ConfigError
from ...evaluation import write_atomically
from ...model import Conditioned
from ...parameters import Angle
from .. import data as sources
from ..options import Infer, Job
from ..recipes import configuring, input_transform
from ..results import destination, loaded, write_config
from ..show import say

if TYPE_CHECKING:
    from ...estimation import Inferred

__all__ = ["run"]


def run(job: Job[Infer]) -> int:
    """Estimate θ, say how sure that is, and write a line for each image."""
    from ...estimation import infer

    options = job.options
    for name in ("limit", "candidates", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}: expected 1 or more, got {value}")
    model, _ = loaded(options)
    data = sources.load(options.test_data, options.test_data_options, options.test_data_take, "test_data")
    x, y = _stacked(data, options.limit)
    if options.apply:
        turn = input_transform(options.input_transform, model.space)
        with configuring("apply"):
            x = turn(x, **options.apply)
    with configuring("infer"):
        found = infer(
            model, x.to(model.device), method=options.method, objective=options.energy, pool=options.pool,
            known=options.known, candidates=options.candidates, batch_size=options.batch_size,
        )  # fmt: skip
    file = destination(options.to, options, "inferred.csv")
    write_atomically(file, _csv(found, y, len(x)).encode())
    write_config(job, file)
    say(str(found))
    for line in _judged(found, model, options, y):
        say(line)
    say(f"{file}")
    return 0


def _stacked(data: Any, limit: int | None) -> tuple[Tensor, Tensor | None]:
    """All inputs as one tensor, and their labels if they have any."""
    if isinstance(data, Dataset):
        number = len(data) if limit is None else min(limit, len(data))  # type: ignore[arg-type]
        items = [data[index] for index in range(number)]
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


def _predicted(found: Inferred) -> Tensor | None:
    outputs = getattr(found.outputs, "logits", found.outputs)
    return outputs.argmax(1).cpu() if isinstance(outputs, Tensor) and outputs.dim() == 2 else None


def _csv(found: Inferred, labels: Tensor | None, size: int) -> str:
    """A line for each image: estimates with their spread, how sure, what the network says."""
    columns: dict[str, Any] = {"image": list(range(size))}
    for name in found.theta:
        columns[name], columns[f"{name}_spread"] = _each(found.theta[name], size), _each(found.spread[name], size)
    columns["confidence"], columns["abstain"] = _each(found.confidence, size), _each(found.abstain, size)
    predicted = _predicted(found)
    if predicted is not None:
        columns["predicted"] = predicted.tolist()
    if labels is not None and labels.dim() == 1:
        columns["label"] = labels.tolist()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
    return text.getvalue()


def _each(value: Tensor, size: int) -> list[Any]:
    return list(value.expand(size).tolist())


def _judged(found: Inferred, model: Conditioned, options: Infer, labels: Tensor | None) -> list[str]:
    """How far the estimates are from what was applied, and how many labels are right."""
    lines = []
    for name, value in options.apply.items():
        parameter, estimate = model.space[name], found.theta[name].double().cpu()
        away = (estimate - float(parameter.tensor(name, value))).abs()
        if isinstance(parameter, Angle):
            away = torch.minimum(away % parameter.turn, parameter.turn - away % parameter.turn)
        unit = f" {parameter.unit}" if parameter.unit else ""
        lines.append(f"{name} was {value}: {float(away.median()):.3g}{unit} away in the median")
    predicted = _predicted(found)
    if predicted is not None and labels is not None and labels.shape == predicted.shape:
        share = float((predicted == labels.cpu()).float().mean())
        lines.append(f"{share:.1%} of {len(labels):,} labels are right at the estimates")
    return lines

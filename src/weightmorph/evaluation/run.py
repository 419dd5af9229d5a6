"""`evaluate`: the scores of every alternative over a grid of θ."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ..errors import InputError
from ..inputs import InputTransform
from ..io import plain
from ..model import Conditioned
from ..modes import eval_mode
from ..parameters import ParameterSpace, Value
from ..storage import versions
from .contenders import Contender
from .data import batches
from .entries import BASELINES, Entry, check_transform, entries, inferred_entries, offset_entries
from .figures import Row
from .metric import Metric, accuracy
from .passes import Array, Costs, Passes, Scores
from .result import Evaluation

__all__ = ["evaluate"]

DEFAULT_GRID = (36, 9, 5)
"""Values of each parameter where the user does not say: of one, of two, of three or more."""


def evaluate(
    model: Conditioned | Contender,
    data: Any,
    input_transform: InputTransform,
    grid: int | Mapping[str, Value] | None = None,
    *,
    metric: Literal["accuracy"] | Metric = "accuracy",
    others: Mapping[str, nn.Module | Contender] | None = None,
    baselines: Sequence[str] = BASELINES,
    offsets: Mapping[str, float | Sequence[float]] | None = None,
    inferred: Literal["image"] | int | Sequence[Literal["image"] | int] = (),
    infer_options: Mapping[str, Any] | None = None,
    batch_size: int = 500,
    seed: int = 0,
    rounds: int = 15,
) -> Evaluation:
    r"""Judge a conditioned network over a grid of θ, beside the alternatives.

    For each setting θ of the grid and each image x with target y, with $s$ the metric:

    | row | score |
    |---|---|
    | `conditioned` | $s(f(T_\theta(x);\ W(\theta)),\ y)$ |
    | `frozen` | $s(f(T_\theta(x);\ W),\ y)$ |
    | `inverse` | $s(f(T_\theta^{-1}(T_\theta(x));\ W),\ y)$; absent, with the reason, where no inverse exists |
    | each of `others` | $s(h(T_\theta(x)),\ y)$ |
    | for each of `offsets`, δ | the mean of $s(f(T_\theta(x);\ W(\theta \pm \delta)),\ y)$: θ is wrong |
    | each of `inferred` | $s(f(T_\theta(x);\ W(\hat\theta(T_\theta(x)))),\ y)$: θ is estimated |

    The clean value is that of the untransformed images at the anchor, where the conditioned network is the frozen one.
    **The images must be ones that neither the base nor anything else here was trained on.** A network remembers its
    training images as they were, which favours the frozen and the inverse row most.

    Nothing is changed: no gradient is recorded, training flags are restored, and torch's global random numbers are not
    drawn (unless your loader does). The figures, apart from times, are repeatable.

    Args:
        model: the conditioned network; as a [`Contender`][weightmorph.evaluation.Contender] if the seconds of its
            training shall be shown.
        data: a pair of tensors `(x, y)`, a `Dataset` of such pairs, or a loader (any iterable that can be gone through
            again, in the same order) of batches of them. It is read once per setting.
        input_transform: $T$, with the model's parameters.
        grid: so many values of each parameter, in all combinations; or the settings themselves, a dict with one list
            per parameter, all of one length. Unless given, 36 values of one parameter, 9 each of two, 5 each of more.
        metric: `"accuracy"`, or a function of the network's output and the targets that gives one score per sample,
            `(B,)`; higher is better, so give an error its minus sign.
        others: further finished networks by name, such as one fine-tuned on transformed data.
        baselines: which of `"frozen"` and `"inverse"` to run.
        offsets: name to one or more distances, in the parameter's unit, by which the network is given a wrong θ,
            clamped to its range: `{"angle": [5, 10, 20]}`.
        inferred: `"image"`, a number of images that share one θ, or several of these: rows in which θ is found by
            [`infer`][weightmorph.infer]. They also show how far its estimates were from the truth.
        infer_options: further arguments of `infer`, e.g. `{"method": "head"}`.
        batch_size: of images in a call, where `data` is not a loader.
        seed: of the transform's random numbers, if it draws any; they start anew at each setting, so that settings can
            be compared.
        rounds: how often each network is timed on up to 64 images, in turns; 0 leaves the times out.

    Returns:
        the figures; `print(evaluation.table())`, `evaluation.advice`.

    Raises:
        InputError: if the data, the metric, a name or the transform's parameters do not fit.
        ParameterError: if the grid or the offsets do not fit the parameters.

    Example:
        >>> from weightmorph import Angle, Warp, condition
        >>> from weightmorph.inputs import Rotate
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 3))
        >>> model = condition(net, {"angle": Angle("deg")}, Warp())
        >>> found = evaluate(model, (torch.rand(20, 1, 9, 9), torch.arange(20) % 3), Rotate(), grid=4, rounds=0)
        >>> found.grid["angle"], [row.name for row in found.rows]
        ((0.0, 90.0, 180.0, 270.0), ['conditioned', 'frozen', 'inverse'])
        >>> found["conditioned"].clean == found["frozen"].clean
        True
    """
    ours = model if isinstance(model, Contender) else Contender(model)
    conditioned = ours.module
    if not isinstance(conditioned, Conditioned):
        raise InputError(f"evaluate: expected a conditioned network, got {type(conditioned).__name__}")
    space = conditioned.space
    check_transform(space, input_transform)
    points = _points(space, grid)
    listed, absent = entries(ours, conditioned, input_transform, others or {}, baselines)
    listed += offset_entries(ours, space, offsets or {})
    listed += inferred_entries(ours, conditioned, inferred, infer_options or {})
    score = accuracy if metric == "accuracy" else metric
    if not callable(score):
        raise InputError(f"metric: expected 'accuracy' or a function (output, target) -> scores (B,), got {metric!r}")
    passes = Passes(listed, batches(data, batch_size), input_transform, score, conditioned.device, seed)
    with torch.no_grad(), eval_mode(*(entry.contender.module for entry in listed if entry.role == "other")):
        scores = passes.over(points, space.anchor)
        costs = passes.costs(points[len(points) // 2], space, rounds)
    return Evaluation(
        parameters=plain(space.config()),
        grid={name: tuple(point[name] for point in points) for name in space},
        rows=_rows(listed, scores, costs),
        absent=absent,
        metric="accuracy" if metric == "accuracy" else _metric_name(metric),
        images=passes.images,
        seed=seed,
        errors=tuple(tuple(_standard_error(one - other) for other in scores.per_image) for one in scores.per_image),
        about=_about(conditioned, input_transform),
    )


def _rows(listed: Sequence[Entry], scores: Scores, costs: Sequence[Costs]) -> tuple[Row, ...]:
    return tuple(
        Row(
            name=entry.name,
            role=entry.role,
            values=tuple(values),
            clean=clean,
            standard_error=_standard_error(per_image),
            trainable=entry.contender.trained,
            seconds=entry.contender.seconds,
            stored=entry.contender.stored,
            needs_theta=entry.needs_theta,
            off=None if entry.errors is None else entry.errors.typical,
            abstained=None if entry.errors is None else entry.errors.abstained,
            cost=cost,
            cost_each=cost_each,
        )
        for entry, values, clean, per_image, (cost, cost_each) in zip(
            listed, scores.values, scores.clean, scores.per_image, costs, strict=True
        )
    )


def _metric_name(metric: Metric) -> str:
    """The function's name; a lambda has none that a reader could use."""
    name = str(getattr(metric, "__name__", type(metric).__name__))
    return "metric" if name == "<lambda>" else name


def _standard_error(scores: Array) -> float:
    return float(scores.std(ddof=1) / math.sqrt(len(scores)))


def _points(space: ParameterSpace, grid: int | Mapping[str, Value] | None) -> list[dict[str, float]]:
    """The settings, one dict of numbers each."""
    if grid is None:
        grid = DEFAULT_GRID[min(len(space), len(DEFAULT_GRID)) - 1]
    if isinstance(grid, bool) or (isinstance(grid, int) and grid < 1):
        raise InputError(f"grid: expected a positive number of values, or the settings, got {grid!r}")
    points = space.settings(grid)
    if not points:
        raise InputError("grid: expected at least one setting, got none")
    return points


def _about(model: Conditioned, transform: InputTransform) -> dict[str, str]:
    """The circumstances of the evaluation: versions, machine, base and transforms."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        **versions(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {model.device.type}",
        "threads": str(torch.get_num_threads()),
        "base": f"{model.spec.network}, {sum(p.numel() for p in model.frozen().parameters()):,} frozen numbers",
        "weight transform": " + ".join(part["type"] for part in model.recipe.get("parts", [model.recipe])),
        "input transform": repr(transform),
    }

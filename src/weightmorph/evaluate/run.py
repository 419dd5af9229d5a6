"""Running every alternative over the grid."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..conditioned import Conditioned
from ..errors import InputError, WeightmorphError, near
from ..inputs import Compose, InputTransform
from ..parameters import ParameterSpace, Value
from ..storage import versions
from .data import Pairs, batches
from .result import Evaluation, Role, Row

__all__ = ["Contender", "Metric", "accuracy", "evaluate"]

Metric = Callable[[Any, Tensor], Tensor]

BASELINES = ("frozen", "inverse")
DEFAULT_GRID = (36, 9, 5)
"""Values of each parameter where the user does not say: of one, of two, of three or more."""
TIMED = 64
"""Images in the batch on which the cost is measured."""


@dataclass(frozen=True)
class Contender:
    """A finished network with what its training took.

    Args:
        module: the network; a [`Conditioned`][weightmorph.Conditioned] one follows θ, any other one sees only the
            transformed input.
        trainable: numbers that were trained; unless given, those of the parameters that require a gradient now (of a
            conditioned network: its transform's), unknown if there are none.
        seconds: of training.

    Example:
        >>> Contender(nn.Linear(3, 2), seconds=12.0).trained
        8
    """

    module: nn.Module
    trainable: int | None = None
    seconds: float | None = None

    @property
    def trained(self) -> int | None:
        """Trained numbers as far as known."""
        if self.trainable is not None:
            return self.trainable
        conditioned = isinstance(self.module, Conditioned)
        return sum(p.numel() for p in self.module.parameters() if conditioned or p.requires_grad) or None


def accuracy(output: Any, target: Tensor) -> Tensor:
    """1 where the highest logit is the target's, 0 elsewhere; averaged per sample where there is one per position.

    Args:
        output: logits `(B, C, *positions)`, or an object that holds them as `.logits`.
        target: class indices `(B, *positions)`.

    Returns:
        scores `(B,)`.

    Raises:
        InputError: if the two do not fit.

    Example:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).tolist()
        [1.0, 0.0]
    """
    logits = getattr(output, "logits", output)
    if not (
        isinstance(logits, Tensor)
        and logits.dim() >= 2
        and logits.shape[:1] + logits.shape[2:] == target.shape
        and not target.is_floating_point()
    ):
        got = f"{tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"metric 'accuracy': expected logits (B, C, …) and class indices (B, …), got {got} "
            f"and {tuple(target.shape)} of {target.dtype}; give metric= a function (output, target) -> scores (B,)"
        )
    hits = (logits.argmax(1) == target).float()
    return hits.flatten(1).mean(1) if hits.dim() > 1 else hits


def evaluate(
    model: Conditioned | Contender,
    data: Any,
    input_transform: InputTransform,
    grid: int | Mapping[str, Value] | None = None,
    *,
    metric: Literal["accuracy"] | Metric = "accuracy",
    others: Mapping[str, nn.Module | Contender] | None = None,
    baselines: Sequence[str] = BASELINES,
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

    The clean value is that of the untransformed images at the anchor, where the conditioned network is the frozen one.
    **The images must be ones that neither the base nor anything else here was trained on.** A network has the images it
    saw by heart, and what it says of them upright flatters the frozen and the inverse row most.

    Nothing is changed: no gradient is recorded, training flags are as they were, and torch's global random numbers are
    not drawn (unless your loader does). The figures, apart from times, are repeatable.

    Args:
        model: the conditioned network; as a [`Contender`][weightmorph.evaluate.Contender] if the seconds of its
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
        batch_size: of images in a call, where `data` is not a loader.
        seed: of the transform's random numbers, if it draws any; they start anew at each setting, so that settings can
            be compared.
        rounds: how often each network is timed on up to 64 images, in turns; 0 leaves the times out.

    Returns:
        the figures; `print(evaluation.table())`, `evaluation.advice`.

    Raises:
        InputError: if the data, the metric, a name or the transform's parameters do not fit.
        ParameterError: if the grid does not fit the parameters.

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
    _check_transform(space, input_transform)
    points = _points(space, grid)
    entries, absent = _entries(ours, conditioned, input_transform, others or {}, baselines)
    score = accuracy if metric == "accuracy" else metric
    if not callable(score):
        raise InputError(f"metric: expected 'accuracy' or a function (output, target) -> scores (B,), got {metric!r}")
    passes = _Passes(entries, batches(data, batch_size), input_transform, score, conditioned.view.device, seed)

    with torch.no_grad(), _evaluating([entry.contender.module for entry in entries if entry.role == "other"]):
        clean = passes.run(space.anchor, transformed=False)
        values: list[list[float]] = [[] for _ in entries]
        totals = np.zeros((len(entries), passes.images))
        for theta in points:
            for number, scores in enumerate(passes.run(theta)):
                values[number].append(math.fsum(scores) / passes.images)
                totals[number] += scores
        per_image = totals / len(points)
        costs = passes.costs(points[len(points) // 2], space, rounds) if rounds else [(None, None)] * len(entries)

    rows = tuple(
        Row(
            name=entry.name,
            role=entry.role,
            values=tuple(curve),
            clean=math.fsum(at_anchor) / passes.images,
            standard_error=_standard_error(image),
            trainable=entry.contender.trained,
            seconds=entry.contender.seconds,
            cost=cost,
            cost_each=cost_each,
        )
        for entry, curve, at_anchor, image, (cost, cost_each) in zip(
            entries, values, clean, per_image, costs, strict=True
        )
    )
    return Evaluation(
        parameters=json.loads(json.dumps(space.config())),
        grid={name: tuple(point[name] for point in points) for name in space},
        rows=rows,
        absent=absent,
        metric="accuracy" if metric == "accuracy" else getattr(metric, "__name__", type(metric).__name__),
        images=passes.images,
        seed=seed,
        errors=tuple(tuple(_standard_error(one - other) for other in per_image) for one in per_image),
        about=_about(conditioned, input_transform),
    )


def _standard_error(scores: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(scores.std(ddof=1) / math.sqrt(len(scores)))


def _check_transform(space: ParameterSpace, transform: InputTransform) -> None:
    """The transform must speak of the same θ: its names, units and anchors."""
    if not isinstance(transform, InputTransform):
        raise InputError(
            f"input_transform: expected one of weightmorph.inputs, or a subclass of InputTransform, got {transform!r}"
        )
    theirs = transform.parameters
    for name in (*space, *theirs):
        if name not in theirs or name not in space:
            raise InputError(
                f"input_transform: expected the model's parameters {', '.join(space)}, got {', '.join(theirs)}; name "
                "them alike, e.g. Rotate(name='angle')"
            )
        for what in ("unit", "anchor", "names"):
            mine, other = getattr(space[name], what, None), getattr(theirs[name], what, None)
            if mine != other:
                raise InputError(
                    f"input_transform: parameter {name!r} has {what} {mine!r} in the model and {other!r} in the "
                    "transform; give both the same parameter, e.g. Rotate(parameter=model.space['angle'])"
                )


def _points(space: ParameterSpace, grid: int | Mapping[str, Value] | None) -> list[dict[str, float]]:
    """The settings, one dict of numbers each."""
    if grid is None:
        grid = DEFAULT_GRID[min(len(space), len(DEFAULT_GRID)) - 1]
    if isinstance(grid, bool) or (isinstance(grid, int) and grid < 1):
        raise InputError(f"grid: expected a positive number of values, or the settings, got {grid!r}")
    theta = space.grid(grid) if isinstance(grid, int) else space.prepare(grid, dtype=torch.float64)
    columns = {name: torch.atleast_1d(values).tolist() for name, values in theta.items()}
    points = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if not points:
        raise InputError("grid: expected at least one setting, got none")
    return points


@dataclass(frozen=True)
class _Entry:
    """One row in the making."""

    name: str
    role: Role
    contender: Contender

    def network(self, theta: Mapping[str, float]) -> nn.Module:
        """What runs at a setting, its weights made once."""
        module = self.contender.module
        return module.at(**theta) if isinstance(module, Conditioned) else module


def _entries(
    ours: Contender,
    conditioned: Conditioned,
    transform: InputTransform,
    others: Mapping[str, nn.Module | Contender],
    baselines: Sequence[str],
) -> tuple[list[_Entry], dict[str, str]]:
    """The rows, in order, and the baselines that cannot be run with the reason."""
    wanted = (baselines,) if isinstance(baselines, str) else tuple(baselines)
    for name in wanted:
        if name not in BASELINES:
            raise InputError(f"baselines: expected 'frozen' or 'inverse', got {name!r}{near(str(name), BASELINES)}")
    frozen = Contender(conditioned.frozen(), trainable=0, seconds=0.0)
    entries, absent = [_Entry("conditioned", "conditioned", ours)], {}
    if "frozen" in wanted:
        entries.append(_Entry("frozen", "frozen", frozen))
    if "inverse" in wanted:
        if transform.inverse() is None:
            parts = transform.transforms if isinstance(transform, Compose) else (transform,)
            stuck = ", ".join(type(part).__name__ for part in parts if part.inverse() is None)
            absent["inverse"] = f"what {stuck} does to an image cannot be undone"
        else:
            entries.append(_Entry("inverse", "inverse", frozen))
    for name, other in others.items():
        contender = other if isinstance(other, Contender) else Contender(other)
        if name in ("conditioned", *BASELINES) or not isinstance(name, str):
            raise InputError(f"others: {name!r} is not free; give the network another name")
        if not isinstance(contender.module, nn.Module):
            raise InputError(f"others: expected {name!r} to be a network or a Contender, got {other!r}")
        if isinstance(contender.module, Conditioned):
            _check_transform(contender.module.space, transform)
        entries.append(_Entry(name, "other", contender))
    return entries, absent


class _Passes:
    """Passes over the data: all rows at one setting."""

    def __init__(
        self,
        entries: Sequence[_Entry],
        data: Pairs,
        transform: InputTransform,
        metric: Metric,
        device: torch.device,
        seed: int,
    ) -> None:
        self.entries, self.data, self.metric = entries, data, metric
        self.transform, self.undo = transform, transform.inverse()
        self.device, self.seed = device, seed
        self.images = 0

    def run(self, theta: dict[str, Any], transformed: bool = True) -> list[list[float]]:
        """The scores of every row, image by image."""
        networks = [entry.network(theta) for entry in self.entries]
        generator = torch.Generator().manual_seed(self.seed)
        scores: list[list[float]] = [[] for _ in networks]
        for x, y in self.data():
            x, y = x.to(self.device), y.to(self.device)
            seen = self.transform(x, generator=generator, **theta) if transformed else x
            undone = self.undo(seen, **theta) if self.undo is not None else seen
            for entry, network, into in zip(self.entries, networks, scores, strict=True):
                output = network(undone if entry.role == "inverse" else seen)
                into.extend(self._checked(self.metric(output, y), len(x), entry, theta))
        self._count(len(scores[0]))
        return scores

    def _count(self, images: int) -> None:
        if images < 2:
            raise InputError(f"data: expected two images or more, for their spread is the noise, got {images}")
        if self.images not in (0, images):
            raise InputError(f"data: expected {self.images} images in each pass, got {images} in a later one")
        self.images = images

    @staticmethod
    def _checked(scores: Tensor, size: int, entry: _Entry, theta: Mapping[str, float]) -> list[float]:
        if not isinstance(scores, Tensor) or scores.shape != (size,):
            got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else repr(scores)
            raise InputError(f"metric: expected one score for each of {size} samples, of shape ({size},), got {got}")
        numbers: list[float] = scores.tolist()
        if not all(map(math.isfinite, numbers)):
            raise InputError(f"metric: a score of {entry.name!r} at {dict(theta)} is not finite")
        return numbers

    def costs(
        self, theta: dict[str, Any], space: ParameterSpace, rounds: int
    ) -> list[tuple[float | None, float | None]]:
        """Median seconds of a call, shared θ and one per image, relative to the frozen network's shared one."""
        x = next(self.data())[0][:TIMED].to(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        many = {name: values.to(self.device) for name, values in space.sample(len(x), generator).items()}
        conditioned = self.entries[0].contender.module
        assert isinstance(conditioned, Conditioned)
        frozen = conditioned.frozen()

        def undone(setting: dict[str, Any]) -> object:
            return frozen(self.undo(x, **setting) if self.undo is not None else x)

        calls: list[Callable[[], object]] = [partial(frozen, x)]
        which: list[tuple[int, int]] = []  # each row's two calls, which may be one
        for entry in self.entries:
            module, first = entry.contender.module, len(calls)
            if entry.role == "frozen":
                which.append((0, 0))
                continue
            if entry.role == "inverse":
                calls += [partial(undone, theta), partial(undone, many)]
            elif isinstance(module, Conditioned):
                calls += [partial(entry.network(theta), x), partial(module, x, **many)]
            else:
                calls.append(partial(module, x))
            which.append((first, len(calls) - 1))
        medians = [statistics.median(taken) if taken else None for taken in self._timed(calls, rounds)]
        unit = medians[0] or math.nan
        ratios = [None if median is None else median / unit for median in medians]
        return [(ratios[shared], ratios[each]) for shared, each in which]

    def _timed(self, calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
        """Seconds of each call, in turns, after one round to warm up; empty for one that cannot be made."""
        taken: list[list[float]] = [[] for _ in calls]
        refused: set[int] = set()
        for turn in range(rounds + 1):
            for number, call in enumerate(calls):
                if number in refused:
                    continue
                self._wait()
                start = time.perf_counter()
                try:
                    call()
                except WeightmorphError:  # such as a layer that cannot have one θ per sample
                    refused.add(number)
                    continue
                self._wait()
                if turn:
                    taken[number].append(time.perf_counter() - start)
        return taken

    def _wait(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()


@contextlib.contextmanager
def _evaluating(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Networks in eval mode, and every module's flag as it was afterwards."""
    modules = list(dict.fromkeys(module for network in networks for module in network.modules()))
    before = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, flag in zip(modules, before, strict=True):
            module.training = flag


def _about(model: Conditioned, transform: InputTransform) -> dict[str, str]:
    """How it was made."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        **versions(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {model.view.device.type}",
        "threads": str(torch.get_num_threads()),
        "base": f"{model.view.classes[0].__name__}, {model.view.total:,} frozen numbers",
        "weight transform": " + ".join(part["type"] for part in model.recipe.get("parts", [model.recipe])),
        "input transform": repr(transform),
    }

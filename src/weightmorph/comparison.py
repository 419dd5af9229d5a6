"""`compare`: the alternatives side by side, on a user's own network, data and parameter, in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import BaseError, InputError, TrainingError
from .estimator import Axis, estimator_of
from .evaluation import Contender, Evaluation, evaluate
from .evaluation.data import batches
from .inputs import InputTransform
from .model import Conditioned, condition
from .objectives import Objective
from .parameters import ParameterSpace, Value
from .reporting import report
from .training import Fit, fine_tune, fit
from .training.data import Data, Source
from .transforms import LowRank, Scale, Warp

__all__ = ["Comparison", "Nearest", "compare"]

OWN = frozenset(
    "progress steps epochs seed checkpoint resume objective predict_parameter parameters check_prior".split()
)
"""Arguments of `fit` and `fine_tune` that `compare` has itself, or that not both of them take."""

SHOWN = 8
"""Test images from which the report's strip is made."""


class Nearest(nn.Module):
    """One network for each of some settings; at another setting the nearest of them runs.

    Args:
        space: the parameters.
        settings: name to values, `(m,)` each.
        networks: one for each setting.

    Example:
        >>> from weightmorph import Angle
        >>> space = ParameterSpace({"angle": Angle("deg")})
        >>> one, other = nn.Identity(), nn.Flatten()
        >>> Nearest(space, {"angle": torch.tensor([0.0, 120.0])}, [one, other]).at(angle=350.0) is one
        True
    """

    def __init__(self, space: ParameterSpace, settings: Mapping[str, Tensor], networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.axes = {name: Axis(parameter, 3) for name, parameter in space.items()}
        self.places = {name: self.axes[name].coordinate(value.float()) for name, value in settings.items()}
        self.networks = nn.ModuleList(networks)

    def at(self, **theta: float) -> nn.Module:
        """The network of the nearest setting, distances being parts of each parameter's range."""
        total = torch.zeros(len(self.networks))
        for name, axis in self.axes.items():
            away = axis.difference(self.places[name], axis.coordinate(torch.tensor(float(theta[name]))))
            total += (away.abs() > 0.5).float() if axis.discrete else (away / axis.span) ** 2
        return self.networks[int(total.argmin())]

    def forward(self, x: Tensor, **theta: float) -> Any:
        """The nearest network's output."""
        return self.at(**theta)(x)


@dataclass(frozen=True)
class Comparison:
    """What [`compare`][weightmorph.compare] found. `print` it for the table and the advice.

    Attributes:
        evaluation: the figures of every row.
        model: the conditioned network, trained.
        networks: the other networks that were trained, by the name of their row.
        fits: what each training did, by the name of its row.
        page: the report's file, or None.
    """

    evaluation: Evaluation
    model: Conditioned = field(repr=False)
    networks: Mapping[str, nn.Module] = field(repr=False)
    fits: Mapping[str, Sequence[Fit[Any]]] = field(repr=False)
    page: Path | None = None

    @property
    def advice(self) -> str:
        """When to prefer which, in a sentence or two."""
        return self.evaluation.advice

    def table(self) -> str:
        """The rows as aligned text."""
        return self.evaluation.table()

    def __str__(self) -> str:
        return f"{self.table()}\n{self.advice}"


def compare(
    net: nn.Module | Contender,
    train: Data,
    test: Any,
    input_transform: InputTransform,
    *,
    transform: nn.Module | None = None,
    objective: str | Objective | Callable[[Any, Any], Tensor] = "supervised",
    steps: int | None = None,
    epochs: int | None = None,
    one4all: bool = True,
    one4one: int | Mapping[str, Value] = 0,
    others: Mapping[str, nn.Module | Contender] | None = None,
    unknown: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    seed: int = 0,
    progress: bool = True,
    training: Mapping[str, Any] | None = None,
    judging: Mapping[str, Any] | None = None,
    path: str | os.PathLike[str] | None = None,
    report_options: Mapping[str, Any] | None = None,
) -> Comparison:
    r"""Train what has to be trained, with equal budgets, and judge all of it over a grid of θ.

    | row | what it is | trained |
    |---|---|---|
    | `conditioned` | $f(x; g(W, \theta))$ | unless it comes trained |
    | `frozen` | $f(x; W)$ | |
    | `inverse` | the frozen network behind $T_\theta^{-1}$, where there is one | |
    | `One4All` | all weights fine-tuned on transformed inputs, one network for every θ | yes |
    | `One4One, nearest of m` | as many networks, each fine-tuned at one θ; the nearest runs | m times |
    | each of `others` | | |

    The columns are those of the table of Wang et al.: the mean over θ, the worst θ, the clean value, trained numbers,
    bytes to be kept beside the base, seconds of training (of all m networks together), and the time of a call relative
    to the frozen network. Every training takes the same number of steps, from the same seed.

    Args:
        net: the pre-trained network, which is left as it is; or a conditioned one (as a
            [`Contender`][weightmorph.Contender] with the seconds of its training), which is taken as trained.
        train: as for [`fit`][weightmorph.fit].
        test: as for [`evaluate`][weightmorph.evaluate]: images that nothing here was trained on, and targets.
        input_transform: what the world does to the input.
        transform: the weight transform; unless given, low rank and scale, with `Warp` where θ moves the image.
        objective: of every training.
        steps: of every training, or
        epochs: passes over `train`; 1000 steps where neither is given.
        one4all: train that row.
        one4one: at how many settings of each parameter to train a network of its own; or the settings, one list per
            parameter. 0 leaves the row out.
        others: further finished networks by name.
        unknown: also train a head that estimates θ, if the model has none, and show what is reached when nobody knows
            θ: for each image, and for 64 that share it.
        checkpoint: a folder, with one inside it for each training, from which a run that was interrupted goes on.
        resume: go on from there; False starts again.
        seed: of every training.
        progress: show progress bars.
        training: further arguments of every training: `lr`, `batch_size`, `settings`, `accelerator` …
        judging: further arguments of `evaluate`: `grid`, `metric`, `offsets`, `rounds` …
        path: where to write the report; None writes none.
        report_options: further arguments of [`report`][weightmorph.report]: `title`, `labels`, `notes`.

    Returns:
        figures, advice, and what was trained.

    Raises:
        BaseError: if `net` is no network.
        TrainingError: for data, a budget or options that cannot be trained with.
        InputError: for test data or options that cannot be judged with.
        MissingDependencyError: without Lightning, or for a report without matplotlib and Jinja2.
        KeyboardInterrupt: on Ctrl-C; with `checkpoint` the same call goes on from there.

    References:
        Wang, Saukh, He, Thiele, arXiv:2305.13536, for the rows One4All, One4One and Inverse.

    Example:
        >>> from weightmorph.inputs import Brightness
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
        >>> data = torch.rand(32, 1, 8, 8), torch.arange(32) % 3
        >>> judging = {"grid": 3, "rounds": 0}
        >>> found = compare(net, data, data, Brightness(), steps=2, one4one=2, progress=False, judging=judging)
        >>> [row.name for row in found.evaluation.rows]
        ['conditioned', 'frozen', 'inverse', 'One4All', 'One4One, nearest of 2']
    """
    base = net.module if isinstance(net, Contender) else net
    if not isinstance(base, nn.Module):
        raise BaseError(f"compare: expected a network or a Contender with one, got {type(base).__name__}")
    if not isinstance(input_transform, InputTransform):
        raise InputError(
            f"compare: expected one of weightmorph.inputs, or a subclass of InputTransform, got {input_transform!r}"
        )
    more = _free(training or {})
    folder = None if checkpoint is None else Path(checkpoint)
    shared: dict[str, Any] = {"steps": steps, "epochs": epochs, "seed": seed, "progress": progress, "resume": resume}
    shared |= more

    def kept(name: str) -> Path | None:
        return None if folder is None else folder / name

    fits: dict[str, Sequence[Fit[Any]]] = {}
    mine: dict[str, Any]
    if isinstance(base, Conditioned):
        if transform is not None:
            raise TrainingError(
                "transform: the network is conditioned already; give the plain network, or no transform"
            )
        model, seconds = base, net.seconds if isinstance(net, Contender) else None
        if unknown and estimator_of(model) is None:
            mine = {"predict_parameter": "only", "checkpoint": kept("head")}
            fits["head"] = [fit(model, train, input_transform, objective, **mine, **shared)]
    else:
        example = next(iter(Source(train, 1, seed, labels=False).epoch(0)))[0][:1]
        recipe = transform if transform is not None else _default(input_transform.parameters)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = condition(base, input_transform.parameters, recipe, example=example)
        done = fit(
            model,
            train,
            input_transform,
            objective,
            predict_parameter=unknown,
            checkpoint=kept("conditioned"),
            **shared,
        )
        fits["conditioned"], seconds = [done], done.seconds

    plain = model.bake(**model.space.anchor) if isinstance(base, Conditioned) else base
    networks: dict[str, nn.Module] = {}
    contenders: dict[str, nn.Module | Contender] = {}
    whole = stored(plain)

    def tuned(name: str, turn: Callable[..., Tensor]) -> Fit[nn.Module]:
        return fine_tune(plain, train, turn, objective, parameters=model.space, checkpoint=kept(name), **shared)

    if one4all:
        fits["One4All"] = [found] = [tuned("one4all", input_transform)]
        networks["One4All"] = found.model
        contenders["One4All"] = Contender(found.model, found.trainable, found.seconds, whole)
    if one4one != 0:
        settings = _settings(model.space, one4one)
        each = [tuned(f"one4one-{i}", _fixed(input_transform, theta)) for i, theta in enumerate(_rows(settings))]
        title = f"One4One, nearest of {len(each)}"
        fits[title] = each
        networks[title] = Nearest(model.space, settings, [one.model for one in each])
        numbers, spent = sum(one.trainable for one in each), sum(one.seconds for one in each)
        contenders[title] = Contender(networks[title], numbers, spent, whole * len(each))
    options = {"inferred": ("image", 64) if unknown else ()} | dict(judging or {})
    ours = Contender(model, seconds=seconds, stored=stored(model.transform))
    evaluation = evaluate(ours, test, input_transform, others={**contenders, **(others or {})}, **options)
    page = None
    if path is not None:
        first = next(batches(test, SHOWN)())
        shown: dict[str, Any] = {"examples": (first[0][:SHOWN], first[1][:SHOWN])} if first[0].dim() == 4 else {}
        page = report(evaluation, path, model=model, input_transform=input_transform, **shown, **(report_options or {}))
    return Comparison(evaluation, model, networks, fits, page)


def stored(module: nn.Module) -> int:
    """Bytes of a module's tensors, each counted once.

    Example:
        >>> stored(nn.Linear(3, 2))
        32
    """
    tensors = {
        t.data_ptr(): t.numel() * t.element_size() for t in module.state_dict().values() if isinstance(t, Tensor)
    }
    return sum(tensors.values())


def _free(training: Mapping[str, Any]) -> dict[str, Any]:
    taken = sorted(OWN & set(training))
    if taken:
        raise TrainingError(f"training={{{taken[0]!r}: …}}: give {taken[0]}= to compare itself, which passes it on")
    return dict(training)


def _default(space: ParameterSpace) -> nn.Module:
    """Low rank and scale, and the geometric prior where there is one."""
    return Warp() + LowRank(8) + Scale() if space.affine_names else LowRank(8) + Scale()


def _settings(space: ParameterSpace, wanted: int | Mapping[str, Value]) -> dict[str, Tensor]:
    if isinstance(wanted, Mapping):
        return {name: torch.atleast_1d(value) for name, value in space.prepare(wanted).items()}
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise InputError(f"one4one: expected how many settings of each parameter, or the settings, got {wanted!r}")
    return space.grid(wanted)


def _rows(settings: Mapping[str, Tensor]) -> list[dict[str, float]]:
    columns = {name: value.tolist() for name, value in settings.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _fixed(transform: InputTransform, theta: Mapping[str, float]) -> Callable[..., Tensor]:
    """The transform at one setting, whatever is drawn."""

    def at(x: Tensor, **drawn: Any) -> Tensor:
        return transform(x, **theta)

    return at

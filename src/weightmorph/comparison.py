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

RESERVED = frozenset(
    "progress steps epochs seed checkpoint resume objective predict_parameter parameters check_prior".split()
)
"""Arguments of `fit` and `fine_tune` that `compare` has itself, or that only one of them takes."""

SHOWN = 512
"""Test images among which the report looks for different targets to show."""


class Nearest(nn.Module):
    """Networks for some settings, of which the nearest is called at any other setting.

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
    """The alternatives side by side, with all that was trained. `print` it for the table and the advice.

    [`compare`][weightmorph.compare] gives one.

    Attributes:
        evaluation: the figures of every row.
        model: the conditioned network, trained.
        networks: the other networks that were trained, by the name of their row.
        fits: the account of each training, by the name of its row.
        page: the report's file, or None.

    Example:
        >>> from weightmorph.inputs import Brightness
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 3))
        >>> data = torch.rand(8, 1, 8, 8), torch.arange(8) % 3
        >>> judging = {"grid": 2, "rounds": 0}
        >>> found = compare(net, data, data, Brightness(), steps=1, progress=False, judging=judging)
        >>> list(found.networks), found.fits["One4All"][0].steps, str(found).endswith(found.advice)
        (['One4All'], 1, True)
    """

    evaluation: Evaluation
    model: Conditioned = field(repr=False)
    networks: Mapping[str, nn.Module] = field(repr=False)
    fits: Mapping[str, Sequence[Fit[Any]]] = field(repr=False)
    page: Path | None = None

    @property
    def advice(self) -> str:
        """Which alternative to prefer, and why, in a sentence or two."""
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
    r"""Train a conditioned network and its rivals with equal budgets, and judge them over a grid of θ.

    | row | what it is | trained |
    |---|---|---|
    | `conditioned` | $f(x; g(W, \theta))$ | unless it comes trained |
    | `frozen` | $f(x; W)$ | |
    | `inverse` | the frozen network behind $T_\theta^{-1}$, where there is one | |
    | `One4All` | all weights fine-tuned on transformed inputs, one network for every θ | yes |
    | `One4One, nearest of m` | as many networks, each fine-tuned at one θ; the nearest is called | m times |
    | each of `others` | | |

    The columns are those of the table of Wang et al.: the mean over θ, the worst θ, the clean value, trained numbers,
    bytes to be kept beside the base, seconds of training (of all m networks), and the time of a call relative
    to the frozen network. Every training takes the same number of steps, from the same seed.

    Args:
        net: the pre-trained network, which is not changed; or a conditioned one (as a
            [`Contender`][weightmorph.Contender] with the seconds of its training), which is taken as trained.
        train: as for [`fit`][weightmorph.fit].
        test: as for [`evaluate`][weightmorph.evaluate]: images that no network here was trained on, and targets.
        input_transform: what the world does to the input.
        transform: the weight transform; unless given, low rank and scale, with `Warp` where θ moves the image.
        objective: of every training.
        steps: of every training, or
        epochs: passes over `train`; 1000 steps where neither is given.
        one4all: train that row.
        one4one: at how many settings of each parameter to train a network of its own; or the settings, one list per
            parameter. 0 leaves the row out.
        others: further trained networks by name.
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
        figures, advice, and the trained networks.

    Raises:
        BaseError: if `net` is not a network.
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
    if isinstance(base, Conditioned) and transform is not None:
        raise TrainingError("transform: the network is conditioned already; give the plain network, or no transform")
    options = {"steps": steps, "epochs": epochs, "seed": seed, "progress": progress, "resume": resume}
    options |= _unreserved(training or {})
    trainer = _Trainer(train, input_transform, objective, None if checkpoint is None else Path(checkpoint), options)
    if isinstance(base, Conditioned):
        model, seconds = base, net.seconds if isinstance(net, Contender) else None
        fits = trainer.head(model) if unknown and estimator_of(model) is None else {}
        plain = model.bake(**model.space.anchor)
    else:
        model = trainer.conditioned(base, transform, seed)
        fits = trainer.fit("conditioned", model, predict_parameter=unknown)
        seconds, plain = fits["conditioned"][0].seconds, base
    rivals = [trainer.one4all(plain, model.space)] if one4all else []
    if one4one != 0:
        rivals.append(trainer.one4one(plain, model.space, _settings(model.space, one4one)))
    evaluation = evaluate(
        Contender(model, seconds=seconds, stored=stored(model.transform)),
        test,
        input_transform,
        others={rival.name: rival.contender for rival in rivals} | dict(others or {}),
        **{"inferred": ("image", 64) if unknown else ()} | dict(judging or {}),
    )
    page = None
    if path is not None:
        shown = _examples(test) | dict(report_options or {})
        page = report(evaluation, path, model=model, input_transform=input_transform, **shown)
    networks = {rival.name: rival.contender.module for rival in rivals}
    return Comparison(evaluation, model, networks, fits | {rival.name: rival.fits for rival in rivals}, page)


@dataclass(frozen=True)
class _Rival:
    """A row whose network `compare` trained."""

    name: str
    contender: Contender
    fits: Sequence[Fit[nn.Module]]


@dataclass(frozen=True)
class _Trainer:
    """Everything that the trainings of one comparison share.

    Attributes:
        data: to train on.
        input_transform: of the training inputs.
        objective: of every training.
        folder: of the checkpoints, one folder inside it for each training; None saves none.
        options: further arguments of `fit` and `fine_tune`.
    """

    data: Data
    input_transform: InputTransform
    objective: Any
    folder: Path | None
    options: Mapping[str, Any]

    def checkpoint(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name

    def conditioned(self, net: nn.Module, transform: nn.Module | None, seed: int) -> Conditioned:
        """The network with an untrained transform."""
        space = self.input_transform.parameters
        example = next(iter(Source(self.data, 1, seed, labels=False).epoch(0)))[0][:1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return condition(net, space, _default(space) if transform is None else transform, example=example)

    def fit(self, name: str, model: Conditioned, **more: Any) -> dict[str, Sequence[Fit[Any]]]:
        """Train the transform, its head, or both."""
        more["checkpoint"] = self.checkpoint(name)
        return {name: [fit(model, self.data, self.input_transform, self.objective, **more, **self.options)]}

    def head(self, model: Conditioned) -> dict[str, Sequence[Fit[Any]]]:
        """Train a head that estimates θ, and nothing else."""
        return self.fit("head", model, predict_parameter="only")

    def fine_tune(
        self, name: str, net: nn.Module, space: ParameterSpace, input_transform: Callable[..., Tensor]
    ) -> Fit[nn.Module]:
        """Train a copy of the plain network."""
        folder = self.checkpoint(name)
        return fine_tune(
            net, self.data, input_transform, self.objective, parameters=space, checkpoint=folder, **self.options
        )

    def one4all(self, net: nn.Module, space: ParameterSpace) -> _Rival:
        """One network for every θ."""
        done = self.fine_tune("one4all", net, space, self.input_transform)
        return _Rival("One4All", Contender(done.model, done.trainable, done.seconds, stored(net)), [done])

    def one4one(self, net: nn.Module, space: ParameterSpace, settings: Sequence[Mapping[str, float]]) -> _Rival:
        """One network for each setting, of which the nearest is called."""
        fits = [
            self.fine_tune(f"one4one-{number}", net, space, _fixed(self.input_transform, theta))
            for number, theta in enumerate(settings)
        ]
        columns = {name: torch.tensor([theta[name] for theta in settings]) for name in space}
        nearest = Nearest(space, columns, [done.model for done in fits])
        trainable, seconds = sum(done.trainable for done in fits), sum(done.seconds for done in fits)
        contender = Contender(nearest, trainable, seconds, stored(net) * len(fits))
        return _Rival(f"One4One, nearest of {len(fits)}", contender, fits)


def _examples(test: Any) -> dict[str, Any]:
    """The first test images with their targets, for the report; nothing where the inputs are not images."""
    x, y = next(batches(test, SHOWN)())
    return {"examples": (x[:SHOWN], y[:SHOWN])} if x.dim() == 4 else {}


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


def _unreserved(training: Mapping[str, Any]) -> dict[str, Any]:
    """Further arguments of the trainings, without any that `compare` takes itself."""
    taken = sorted(RESERVED & set(training))
    if taken:
        raise TrainingError(f"training={{{taken[0]!r}: …}}: give {taken[0]}= to compare itself, which passes it on")
    return dict(training)


def _default(space: ParameterSpace) -> nn.Module:
    """Low rank and scale, and the geometric prior where there is one."""
    return Warp() + LowRank(8) + Scale() if space.affine_names else LowRank(8) + Scale()


def _settings(space: ParameterSpace, wanted: int | Mapping[str, Value]) -> list[dict[str, float]]:
    if not isinstance(wanted, Mapping) and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1):
        raise InputError(f"one4one: expected how many settings of each parameter, or the settings, got {wanted!r}")
    return space.settings(wanted)


def _fixed(transform: InputTransform, theta: Mapping[str, float]) -> Callable[..., Tensor]:
    """The transform at one setting, whatever is drawn."""

    def at(x: Tensor, **drawn: Any) -> Tensor:
        return transform(x, **theta)

    return at

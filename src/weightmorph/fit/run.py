"""`fit` and `fine_tune`: what a user calls."""

from __future__ import annotations

import copy
import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..conditioned import Conditioned
from ..errors import BaseError, ParameterError, TrainingError, near, require
from ..inputs import InputTransform
from ..objectives import Objective, resolve
from ..parameters import Parameter, ParameterSpace
from .data import Data, Source, preserved_rng
from .plan import Plan, Schedule, total_steps
from .prior import PriorCheck, check_first
from .state import State, read

__all__ = ["Fit", "fine_tune", "fit"]

Model = TypeVar("Model", bound=nn.Module)

OWN = {
    "accelerator", "devices", "logger", "precision",
    "accumulate_grad_batches", "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "fast_dev_run",
    "limit_train_batches", "max_epochs", "max_steps", "min_epochs", "min_steps", "overfit_batches",
    "reload_dataloaders_every_n_epochs", "use_distributed_sampler",
}  # fmt: skip
"""Arguments of Lightning's Trainer that `fit` sets itself."""

PRECISIONS = (None, "bf16-mixed", "16-mixed", "32-true", "bf16", "16", "32", 16, 32)
"""Those of Lightning's precisions under which the model stays in its own type."""


@dataclass(frozen=True)
class Fit(Generic[Model]):
    """What a run did. `print` it for a readable account.

    Attributes:
        model: what was trained: the very model that was given to `fit`, or the copy that `fine_tune` made.
        losses: of every step.
        seconds: wall time of the training, the prior check and runs before a resumption included.
        steps: steps done.
        trainable: how many numbers were trained.
        prior: what the prior check found and chose, or None if there was none.
        resumed: the step from which this call went on, or 0.
        about: the settings, in words.
    """

    model: Model
    losses: list[float] = field(repr=False)
    seconds: float
    steps: int
    trainable: int
    prior: PriorCheck | None = None
    resumed: int = 0
    about: str = ""

    def __str__(self) -> str:
        more = f", resumed at step {self.resumed}" if self.resumed else ""
        lines = [
            f"{type(self.model).__name__}: {self.trainable:,} numbers trained for {self.steps:,} steps in "
            f"{self.seconds:.1f} s{more}",
            f"  {self.about}",
        ]
        if self.losses:
            tenth = max(1, len(self.losses) // 10)
            first, last = (sum(part) / tenth for part in (self.losses[:tenth], self.losses[-tenth:]))
            lines.append(f"  loss {first:.4g} at the start, {last:.4g} at the end (means over {tenth} steps)")
        if self.prior is not None:
            lines.append(str(self.prior))
        return "\n".join(lines)


def fit(
    model: Conditioned,
    data: Data,
    input_transform: Callable[..., Tensor],
    objective: str | Objective | Callable[[Any, Any], Tensor] = "supervised",
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    settings: int | None = 8,
    lr: float = 3e-3,
    weight_decay: float = 0.01,
    schedule: Schedule = "cosine",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    check_prior: bool = True,
    progress: bool = True,
    logger: Any = None,
    precision: Any = None,
    accelerator: str = "auto",
    devices: Any = "auto",
    num_workers: int = 0,
    trainer: Mapping[str, Any] | None = None,
) -> Fit[Conditioned]:
    r"""Train a conditioned model's transform: the world turns the input by $T_\theta$, the weights follow.

    $$\min_g\ \mathbb E_{x, \theta}\ L\big(f(T_\theta(x);\, g(W, \theta)),\ y,\ f(x; W)\big)$$

    Every step draws values of θ from the model's space and deals them to the images of a batch. The optimiser is AdamW.
    The model is trained in place, on the device that Lightning picks, and comes back to its own; the base is not
    touched. Order of the data, θ and all other random numbers follow from `seed` and the number of the step: on one
    machine the same call gives the same transform, bit for bit on a CPU, interrupted or not. The global generators are
    left as they were.

    Before the first step, if the transform has a [`Warp`][weightmorph.Warp] with an analytic prior, the prior is
    compared with the frozen weights on two batches, and kept where it is better; see
    [`PriorCheck`][weightmorph.fit.PriorCheck].

    Args:
        model: the conditioned model.
        data: `(x, y)` tensors; x alone where the objective needs no labels; or a Dataset or DataLoader that gives
            either. x is `(N, …)`. An incomplete last batch is left out, except of a DataLoader's.
        input_transform: an [`InputTransform`][weightmorph.inputs.InputTransform] or any function `(x, **theta) -> x`,
            called with one value per image, `(B,)`, or with `settings=1` one for all, `()`.
        objective: `"supervised"` (cross entropy), `"distillation"` (no labels), an
            [`Objective`][weightmorph.objectives.Objective], or a loss `(output, target) -> scalar`.
        epochs: passes over the data, or
        steps: batches; 1000 where neither is given. With 0 only the prior check is done.
        batch_size: images in a step, over all devices together. A DataLoader has its own.
        settings: distinct values of θ in a step, each for an equal share of the images: few of them are quicker, since
            the weights of each are made once. None draws one per image. 1 is for networks that cannot take one θ per
            sample.
        lr: learning rate, at the start.
        weight_decay: AdamW's, pulling the learned part towards zero: towards the prior.
        schedule: `"cosine"` (to zero), `"constant"`, or a function of the share done (0 to 1) that gives a factor.
        seed: what all random numbers follow from.
        checkpoint: a folder; the state is saved there as tensors and JSON, at intervals, at the end, on Ctrl-C and on
            SIGTERM.
        resume: go on from the folder's checkpoint if there is one; False starts again and writes over it. The number of
            steps may have been raised in between; everything else must be as it was.
        check_prior: compare the prior with the frozen weights first; False trusts it.
        progress: show Lightning's progress bar.
        logger: a Lightning logger, several, or True for Lightning's default one; None writes nothing.
        precision: as Lightning's Trainer takes it: `"bf16-mixed"`, `"16-mixed"`; unless given, the model's own. Those
            that would convert the model itself (`"bf16-true"`) are refused, for they would round the base's weights.
        accelerator: as Lightning's Trainer takes it.
        devices: as Lightning's Trainer takes it.
        num_workers: processes that read a Dataset.
        trainer: further arguments of Lightning's Trainer, e.g. `{"gradient_clip_val": 1.0}`.

    Returns:
        losses, seconds, steps and what the prior check found.

    Raises:
        TrainingError: for data, an objective or a budget that cannot be trained with; if the loss is not finite.
        ParameterError: if the input transform's parameters are not the model's, or have another unit.
        NoGradientError: if a part of the transform gets no gradient.
        CheckpointError: if the folder holds another run's checkpoint.
        MissingDependencyError: without Lightning (`pip install 'weightmorph[train]'`).
        KeyboardInterrupt: on Ctrl-C, after the step at hand; the checkpoint holds what was done.

    Warns:
        ConditioningWarning: if the analytic prior fits clearly better with the opposite sense, or in another unit.

    Example:
        >>> import weightmorph as wm
        >>> from weightmorph.inputs import Brightness
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 3))
        >>> model = wm.condition(net, Brightness().parameters, wm.LowRank(2))
        >>> done = fit(model, torch.rand(64, 1, 8, 8), Brightness(), "distillation", steps=2, progress=False)
        >>> done.steps, len(done.losses)
        (2, 2)
    """
    if not isinstance(model, Conditioned):
        raise TrainingError(
            f"fit: expected a conditioned model, made by condition(net, …), got {type(model).__name__}; a plain "
            "network is trained by fine_tune"
        )
    agree(model.space, input_transform)
    plan = _plan(
        model, model.space, data, input_transform, objective, epochs, steps, batch_size, settings, lr, weight_decay,
        schedule, seed, checkpoint, num_workers,
    )  # fmt: skip
    plan.check_prior = check_prior
    options = _options(progress, logger, precision, accelerator, devices, trainer)
    with _left_as_it_was(model, model.view.device):
        return _train(model, plan, resume, options)


def fine_tune(
    net: nn.Module,
    data: Data,
    input_transform: Callable[..., Tensor],
    objective: str | Objective | Callable[[Any, Any], Tensor] = "supervised",
    *,
    parameters: Mapping[str, Parameter] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    settings: int | None = 8,
    lr: float = 3e-3,
    weight_decay: float = 0.01,
    schedule: Schedule = "cosine",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    logger: Any = None,
    precision: Any = None,
    accelerator: str = "auto",
    devices: Any = "auto",
    num_workers: int = 0,
    trainer: Mapping[str, Any] | None = None,
) -> Fit[nn.Module]:
    """Train a copy of a plain network on transformed inputs: the baseline called One4All.

    All weights are trained, on the data, the settings of θ, the batches and the number of steps that
    [`fit`][weightmorph.fit.fit] would use with the same arguments; the network is not told θ. BatchNorm runs in train
    mode, as is usual, and its running statistics move with the transformed images.

    Args:
        net: the network; a copy of it is trained, it is left alone.
        parameters: the space that θ is drawn from; unless given, the input transform's.
        data: as all the others, see [`fit`][weightmorph.fit.fit].

    Returns:
        losses, seconds and steps; `.model` is the trained network, in eval mode.

    Raises:
        BaseError: if `net` is conditioned, or no module.
        TrainingError, ParameterError, CheckpointError, MissingDependencyError, KeyboardInterrupt: as `fit` does.

    Example:
        >>> from weightmorph.inputs import Brightness
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        >>> data = torch.rand(64, 1, 8, 8), torch.randint(3, (64,))
        >>> fine_tune(net, data, Brightness(), steps=2, progress=False).model.training
        False
    """
    if not isinstance(net, nn.Module) or isinstance(net, Conditioned):
        raise BaseError(f"fine_tune: expected the plain network, got {type(net).__name__}")
    if parameters is None:
        if not isinstance(input_transform, InputTransform):
            raise ParameterError(
                "fine_tune: a function does not say where its θ lies; give parameters=, e.g. {'angle': Angle('deg')}"
            )
        parameters = input_transform.parameters
    space = parameters if isinstance(parameters, ParameterSpace) else ParameterSpace(parameters)
    agree(space, input_transform)
    trained = copy.deepcopy(net)
    plan = _plan(
        trained, space, data, input_transform, objective, epochs, steps, batch_size, settings, lr, weight_decay,
        schedule, seed, checkpoint, num_workers,
    )  # fmt: skip
    if plan.objective.needs_frozen:
        plan.reference = copy.deepcopy(net).eval()
    options = _options(progress, logger, precision, accelerator, devices, trainer)
    flags = [p.requires_grad for p in trained.parameters()]
    for parameter in trained.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    device = next((p.device for p in trained.parameters()), torch.device("cpu"))
    with _left_as_it_was(trained, device):
        done = _train(trained, plan, resume, options)
    for parameter, flag in zip(trained.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    return replace(done, model=trained.eval())


def _plan(
    module: nn.Module,
    space: ParameterSpace,
    data: Data,
    input_transform: Callable[..., Tensor],
    objective: str | Objective | Callable[[Any, Any], Tensor],
    epochs: int | None,
    steps: int | None,
    batch_size: int,
    settings: int | None,
    lr: float,
    weight_decay: float,
    schedule: Schedule,
    seed: int,
    checkpoint: str | Path | None,
    num_workers: int,
) -> Plan:
    """The arguments, checked."""
    for name, value in (("batch_size", batch_size), ("settings", 1 if settings is None else settings)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise TrainingError(f"{name}: expected a whole number, 1 or more, got {value!r}")
    if not lr > 0 or not weight_decay >= 0:
        raise TrainingError(f"expected lr > 0 and weight_decay >= 0, got lr={lr!r} and weight_decay={weight_decay!r}")
    if not callable(schedule) and schedule not in ("cosine", "constant"):
        raise TrainingError(
            f"schedule: expected 'cosine', 'constant' or a function of the share done, got {schedule!r}"
        )
    chosen = resolve(objective)
    source = Source(data, batch_size, seed, chosen.needs_labels, num_workers)
    total = total_steps(source, epochs, steps)
    folder = None if checkpoint is None else Path(checkpoint)
    return Plan(
        module, space, input_transform, chosen, source, total, settings, lr, weight_decay, schedule, seed, folder,
        check_prior=False,
    )  # fmt: skip


def _options(
    progress: bool, logger: Any, precision: Any, accelerator: str, devices: Any, trainer: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Arguments of Lightning's Trainer."""
    if precision not in PRECISIONS:
        raise TrainingError(
            f"precision: expected one of {', '.join(map(repr, PRECISIONS[1:]))}, or None, got {precision!r}; to train "
            "in another type convert the network, e.g. condition(net.double(), …)"
        )
    more = dict(trainer or {})
    taken = sorted(OWN & set(more))
    if taken:
        raise TrainingError(
            f"trainer={{{taken[0]!r}: …}} is set by fit itself: use its own arguments (steps, epochs, checkpoint, "
            "progress, logger, precision, accelerator, devices)"
        )
    return more | {
        "enable_progress_bar": progress, "logger": False if logger is None else logger, "precision": precision,
        "accelerator": accelerator, "devices": devices,
    }  # fmt: skip


def _train(model: Model, plan: Plan, resume: bool, options: dict[str, Any]) -> Fit[Model]:
    """Carry out a plan: what `fit` and `fine_tune` share."""
    trainable = sum(p.numel() for p in plan.trained())
    if not trainable and plan.total:
        raise TrainingError(
            "there is nothing to train: the transform has no trainable number. Use the model as it is; fit(…, steps=0) "
            "runs the prior check alone"
        )
    state = read(plan.folder, plan.record()) if plan.folder is not None and resume else None
    if state is not None and state.step > plan.total:
        raise TrainingError(
            f"steps: the checkpoint in {plan.folder} has {state.step} steps already, more than the {plan.total} asked "
            "for; resume=False starts again"
        )
    prior = None if state is None else PriorCheck.of(state.notes["prior"])
    start = 0 if state is None else state.step
    began = time.perf_counter()
    with preserved_rng(), torch.enable_grad():
        if start < plan.total:
            losses, seconds, prior = _run(plan, state, prior, options)
        else:
            if state is None:
                prior = check_first(plan) if plan.check_prior else None
            else:
                state.restore(model, None)
            losses = [] if state is None else state.losses.tolist()
            seconds = time.perf_counter() - began if state is None else state.seconds
    return Fit(model, losses, seconds, len(losses), trainable, prior, start, _about(plan))


def _run(
    plan: Plan, state: State | None, prior: PriorCheck | None, options: dict[str, Any]
) -> tuple[list[float], float, PriorCheck | None]:
    """Train, on Lightning."""
    _import_lightning()
    from .loop import run

    return run(plan, state, prior, options)


def _import_lightning() -> None:
    """Import it without the change that it makes to how every warning is printed."""
    before = warnings.formatwarning
    try:
        require("lightning", "train", "fit")
    finally:
        warnings.formatwarning = before


@contextmanager
def _left_as_it_was(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Train mode within; flags, device and gradients as before afterwards."""
    flags = {part: part.training for part in module.modules()}
    module.train()
    try:
        yield
    finally:
        for part, flag in flags.items():
            part.training = flag
        for parameter in module.parameters():
            parameter.grad = None
        module.to(device)


def agree(space: ParameterSpace, input_transform: Callable[..., Tensor]) -> None:
    """Do an input transform and a model speak of the same parameters, in the same unit?

    Raises:
        ParameterError: naming both, and what to do.
    """
    if not callable(input_transform):
        raise TrainingError(
            f"input_transform: expected an input transform such as inputs.Rotate(), or a function (x, **theta) -> x, "
            f"got {input_transform!r}"
        )
    name = getattr(input_transform, "__name__", type(input_transform).__name__)
    required, known, open_ended = _keywords(input_transform)
    unknown = [p for p in space if p not in known] if not open_ended else []
    if unknown:
        raise ParameterError(
            f"the model is conditioned on {', '.join(space)}, but the input transform {name} takes "
            f"{', '.join(known) or 'no parameter'}: it does not know {unknown[0]!r}{near(unknown[0], known)}. Name the "
            f"transform's parameter alike (e.g. Rotate(name={unknown[0]!r})), add a transform with "
            f"inputs.Compose([…]), or condition the model on {', '.join(known) or 'fewer parameters'} alone"
        )
    left = [p for p in required if p not in space]
    if left:
        raise ParameterError(
            f"the input transform {name} takes {', '.join(required)}, but the model is conditioned on "
            f"{', '.join(space)}: nothing says what {left[0]!r} is. Add it to the parameters given to condition(), or "
            f"fix it with functools.partial(transform, {left[0]}=…)"
        )
    if isinstance(input_transform, InputTransform):
        for parameter, mine in space.items():
            _agree_on(parameter, mine, input_transform.parameters[parameter], name)


def _agree_on(name: str, mine: Parameter, theirs: Parameter, transform: str) -> None:
    one = "declare it once, and give both the same: condition(net, transform.parameters, …)"
    units = _unit(mine), _unit(theirs)
    if None not in units and units[0] != units[1]:
        raise ParameterError(
            f"parameter {name!r} is in {units[0]} for the model and in {units[1]} for the input transform {transform}; "
            f"{one}"
        )
    if mine.anchor_value != theirs.anchor_value:
        raise ParameterError(
            f"parameter {name!r} has its anchor at {mine.anchor!r} for the model, where the network is right as it "
            f"stands, and at {theirs.anchor!r} for the input transform {transform}, where the input is as it was; {one}"
        )


def _keywords(function: Callable[..., Tensor]) -> tuple[list[str], list[str], bool]:
    """The parameters that an input transform needs, those it knows, and whether it takes any others."""
    if isinstance(function, InputTransform):
        names = list(function.parameters)
        return names, names, False
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return [], [], True
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next((p for p in found if p.kind in positional), None)
    named = [p for p in found if p is not first and p.kind in kinds]
    needed = [p.name for p in named if p.default is inspect.Parameter.empty]
    return needed, [p.name for p in named], any(p.kind == inspect.Parameter.VAR_KEYWORD for p in found)


def _unit(parameter: Parameter) -> str | None:
    """In what a parameter is measured; a rotation without a unit is one in radians."""
    return parameter.unit or ("rad" if parameter.affine == "rotation" else None)


def _about(plan: Plan) -> str:
    size = plan.source.batch_size
    batches = "batches as they come" if size is None else f"batches of {size}"
    dealt = "one setting per image" if plan.settings is None else f"{plan.settings} settings of {', '.join(plan.space)}"
    schedule = plan.schedule if isinstance(plan.schedule, str) else "a schedule of your own"
    return f"{plan.objective!r}; {batches}, {dealt}; AdamW {plan.lr:g}, {schedule}; seed {plan.seed}"

"""`fit` and `fine_tune`: what a user calls."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BaseError, ParameterError, TrainingError, require
from ..inputs import InputTransform
from ..model import Conditioned
from ..objectives import Objective
from ..parameters import Parameter, ParameterSpace
from .agree import agree
from .data import Data, preserved_rng
from .options import trainer_options
from .plan import Plan, Predict, Schedule, settle
from .predict import attach_first
from .prior import check_first
from .result import Fit, Model, Outcome
from .state import State, read

__all__ = ["agree", "fine_tune", "fit"]


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
    predict_parameter: Predict = False,
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
    [`PriorCheck`][weightmorph.training.PriorCheck].

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
        predict_parameter: also train a head that estimates θ from the frozen base's early features, on the same images,
            each transformed anew with a θ of its own: `model.estimator`, for `model(x, angle="infer")` and
            [`infer`][weightmorph.infer]. It shares nothing with the transform, which is trained as it would be
            without it. `"only"` trains the head and leaves the transform, which may be trained already, as it is. The
            head is made with defaults unless [`attach`][weightmorph.estimation.attach] gave the model one before.
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
    if predict_parameter not in (False, True, "only"):
        raise TrainingError(f"predict_parameter: expected True, False or 'only', got {predict_parameter!r}")
    agree(model.space, input_transform)
    plan = settle(
        model, model.space, data, input_transform, objective, epochs, steps, batch_size, settings, lr, weight_decay,
        schedule, seed, checkpoint, num_workers,
    )  # fmt: skip
    plan.predict = predict_parameter
    plan.check_prior = check_prior and predict_parameter != "only"
    options = trainer_options(progress, logger, precision, accelerator, devices, trainer)
    if predict_parameter and plan.estimator is None:
        attach_first(plan)
    with _left_as_it_was(model, model.device), _frozen_but(plan.trained(), model):
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
    [`fit`][weightmorph.fit] would use with the same arguments; the network is not told θ. BatchNorm runs in train
    mode, as is usual, and its running statistics move with the transformed images.

    Args:
        net: the network; a copy of it is trained, it is left alone.
        parameters: the space that θ is drawn from; unless given, the input transform's.
        data: as all the others, see [`fit`][weightmorph.fit].

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
    plan = settle(
        trained, space, data, input_transform, objective, epochs, steps, batch_size, settings, lr, weight_decay,
        schedule, seed, checkpoint, num_workers,
    )  # fmt: skip
    if plan.objective.needs_frozen:
        plan.reference = copy.deepcopy(net).eval()
    options = trainer_options(progress, logger, precision, accelerator, devices, trainer)
    flags = [p.requires_grad for p in trained.parameters()]
    for parameter in trained.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    device = next((p.device for p in trained.parameters()), torch.device("cpu"))
    with _left_as_it_was(trained, device):
        done = _train(trained, plan, resume, options)
    for parameter, flag in zip(trained.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    return replace(done, model=trained.eval())


def _train(model: Model, plan: Plan, resume: bool, options: dict[str, Any]) -> Fit[Model]:
    """Carry out a plan: what `fit` and `fine_tune` share."""
    trainable = sum(p.numel() for p in plan.trained())
    if not trainable and plan.total:
        raise TrainingError(
            "there is nothing to train: the transform has no trainable number. Use the model as it is; fit(…, steps=0) "
            "runs the prior check alone, and fit(…, predict_parameter='only') trains a head that estimates θ"
        )
    state = read(plan.folder, plan.record()) if plan.folder is not None and resume else None
    if state is not None and state.step > plan.total:
        raise TrainingError(
            f"steps: the checkpoint in {plan.folder} has {state.step} steps already, more than the {plan.total} asked "
            "for; resume=False starts again"
        )
    start = 0 if state is None else state.step
    began = time.perf_counter()
    with preserved_rng(), torch.enable_grad():
        if start < plan.total:
            done = _run(plan, state, options)
        elif state is None:
            prior = check_first(plan) if plan.check_prior else None
            done = Outcome([], [], time.perf_counter() - began, prior)
        else:
            state.restore(model, None)
            done = Outcome.of(state)
    return Fit(
        model, done.losses, done.seconds, len(done.losses), trainable, done.prior, start, _about(plan), done.told
    )


def _run(plan: Plan, state: State | None, options: dict[str, Any]) -> Outcome:
    """Train, on Lightning."""
    _import_lightning()
    from .loop import run

    return run(plan, state, options)


def _import_lightning() -> None:
    """Import it without the change that it makes to how every warning is printed."""
    before = warnings.formatwarning
    try:
        require("lightning", "train", "fit")
    finally:
        warnings.formatwarning = before


@contextmanager
def _frozen_but(trained: list[nn.Parameter], model: nn.Module) -> Iterator[None]:
    """Nothing else of the model takes a gradient: DDP waits for every parameter that says it does."""
    kept = {id(parameter) for parameter in trained}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


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


def _about(plan: Plan) -> str:
    size = plan.source.batch_size
    batches = "batches as they come" if size is None else f"batches of {size}"
    head = {True: "; with a head that estimates θ", "only": "; only a head that estimates θ"}.get(plan.predict, "")
    dealt = "one setting per image" if plan.settings is None else f"{plan.settings} settings of {', '.join(plan.space)}"
    schedule = plan.schedule if isinstance(plan.schedule, str) else "a schedule of your own"
    return f"{plan.objective!r}; {batches}, {dealt}; AdamW {plan.lr:g}, {schedule}; seed {plan.seed}{head}"

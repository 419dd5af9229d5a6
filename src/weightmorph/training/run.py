"""`fit` and `fine_tune`: check the arguments, settle a plan, and carry it out."""

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
from ..modes import preserved_modes
from ..objectives import Objective
from ..parameters import Parameter, ParameterSpace
from .agreement import agree
from .data import Data, preserved_rng
from .estimate import attach_default
from .options import Options, Predict, Schedule
from .plan import Plan
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
    r"""Train a conditioned model's transform so that the network works on inputs transformed by $T_\theta$.

    $$\min_g\ \mathbb E_{x, \theta}\ L\big(f(T_\theta(x);\, g(W, \theta)),\ y,\ f(x; W)\big)$$

    Every step draws values of θ from the model's space and assigns them to the images of a batch. The optimiser is
    AdamW. The model is trained in place, on the device that Lightning picks, and is moved back to its own device at the
    end. The base is never changed. The order of the data, θ and all other random numbers follow from `seed` and the
    number of the step: on one machine the same call gives the same transform (bit for bit on a CPU), interrupted or
    not. The global random generators are restored.

    If the transform has a [`Warp`][weightmorph.Warp] with an analytic prior, the prior is compared with the frozen
    weights on two batches before the first step, and used only where it is better; see
    [`PriorCheck`][weightmorph.training.PriorCheck].

    Args:
        model: the conditioned model.
        data: tensors `(x, y)`; x alone if the objective needs no labels; or a Dataset or DataLoader that gives either.
            x is `(N, …)`. An incomplete last batch is skipped, except with a DataLoader.
        input_transform: an [`InputTransform`][weightmorph.inputs.InputTransform] or any function `(x, **theta) -> x`,
            called with one value per image, `(B,)`, or with `settings=1` one for all, `()`.
        objective: `"supervised"` (cross entropy), `"distillation"` (no labels), an
            [`Objective`][weightmorph.objectives.Objective], or a loss `(output, target) -> scalar`.
        epochs: passes over the data, or
        steps: number of batches; 1000 if neither is given. 0 does the prior check alone.
        batch_size: images in a step, over all devices together. A DataLoader has its own batch size.
        settings: number of distinct values of θ in a step, each for an equal share of the images. Fewer values are
            faster, because the weights of each value are computed once. None draws one value per image; 1 is for
            networks that cannot take one θ per sample.
        lr: learning rate at the start.
        weight_decay: weight decay of AdamW, which pulls the learned part towards zero, that is, towards the prior.
        schedule: `"cosine"` (to zero), `"constant"`, or a function of the progress (0 to 1) that gives a factor.
        seed: seed of all random numbers.
        checkpoint: a folder in which the state is saved as tensors and JSON: at intervals, at the end, on Ctrl-C and on
            SIGTERM.
        resume: continue from the folder's checkpoint if there is one; False starts again and writes over it. The number
            of steps may have been raised since; all else must be unchanged.
        check_prior: compare the prior with the frozen weights first; False uses it unchecked.
        predict_parameter: also train a head that estimates θ from the frozen base's early features, on the same images,
            each transformed again with its own θ. The head is `model.estimator`, for `model(x, angle="infer")` and
            [`infer`][weightmorph.infer]. It shares nothing with the transform, whose training does not change.
            `"only"` trains the head and leaves the transform unchanged. A model without a head gets a default one; call
            [`attach`][weightmorph.estimation.attach] before for another.
        progress: show Lightning's progress bar.
        logger: a Lightning logger, several, or True for Lightning's default logger; None writes nothing.
        precision: precision of Lightning's Trainer: `"bf16-mixed"`, `"16-mixed"`; unless given, the model's own.
            Precisions that convert the model itself (`"bf16-true"`) are refused, because they would round the base's
            weights.
        accelerator: as Lightning's Trainer takes it.
        devices: as Lightning's Trainer takes it.
        num_workers: number of processes that read a Dataset.
        trainer: further arguments of Lightning's Trainer, e.g. `{"gradient_clip_val": 1.0}`.

    Returns:
        losses, seconds, steps and the result of the prior check.

    Raises:
        TrainingError: for data, an objective or an option that cannot be trained with (the message names it), or if the
            loss is not finite.
        ParameterError: if the input transform's parameters are not the model's, or have another unit.
        NoGradientError: if a part of the transform gets no gradient.
        CheckpointError: if the folder holds another run's checkpoint.
        MissingDependencyError: without Lightning (`pip install 'weightmorph[train]'`).
        KeyboardInterrupt: on Ctrl-C, at the end of the current step; the checkpoint holds the steps so far.

    Warns:
        ConditioningWarning: if the analytic prior fits clearly better with the opposite sense, or in another unit.

    Example:
        >>> import weightmorph as wm
        >>> from torch import nn
        >>> from weightmorph.inputs import Brightness
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 3))
        >>> model = wm.condition(net, Brightness().parameters, wm.LowRank(2))
        >>> done = fit(model, torch.rand(64, 1, 8, 8), Brightness(), "distillation", steps=2, progress=False)
        >>> done.steps, len(done.losses)
        (2, 2)
    """
    options = Options.among(locals())
    if not isinstance(model, Conditioned):
        raise TrainingError(
            f"fit: expected a conditioned model, made by condition(net, …), got {type(model).__name__}; a plain "
            "network is trained by fine_tune"
        )
    agree(model.space, input_transform)
    plan = Plan.settle(model, model.space, data, input_transform, objective, options)
    if options.predict_parameter and plan.estimator is None:
        attach_default(plan)
    with _train_mode(model, model.device), _frozen_except(plan.trained(), model):
        return _carry_out(model, plan)


def fine_tune(
    net: nn.Module,
    data: Data,
    input_transform: Callable[..., Tensor],
    objective: str | Objective | Callable[[Any, Any], Tensor] = "supervised",
    *,
    parameters: Mapping[str, Parameter] | None = None,
    **options: Any,
) -> Fit[nn.Module]:
    r"""Train a copy of a plain network on transformed inputs: the baseline called One4All.

    $$\min_W\ \mathbb E_{x, \theta}\ L\big(f(T_\theta(x);\, W),\ y,\ f(x; W_0)\big)$$

    All weights are trained, on the data, the settings of θ, the batches and the number of steps that
    [`fit`][weightmorph.fit] would use with the same arguments. The network does not get θ. BatchNorm runs in train
    mode, as usual, and its running statistics follow the transformed images.

    Args:
        net: the network. A copy of it is trained; the network itself is not changed.
        data: as for [`fit`][weightmorph.fit], and so are `input_transform` and `objective`.
        parameters: the space from which θ is drawn; unless given, that of the input transform.
        options: the other arguments of [`fit`][weightmorph.fit], such as `steps` and `lr`, with the same defaults; but
            not `check_prior` and `predict_parameter`, which need a conditioned model.

    Returns:
        losses, seconds and steps; `.model` is the trained network, in eval mode.

    Raises:
        BaseError: if `net` is conditioned, or no module.
        TypeError: for an option that does not exist.
        TrainingError, ParameterError, CheckpointError, MissingDependencyError, KeyboardInterrupt: as `fit` does.

    Example:
        >>> from torch import nn
        >>> from weightmorph.inputs import Brightness
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        >>> data = torch.rand(64, 1, 8, 8), torch.randint(3, (64,))
        >>> fine_tune(net, data, Brightness(), steps=2, progress=False).model.training
        False
    """
    chosen = Options.for_fine_tune(options)
    if not isinstance(net, nn.Module) or isinstance(net, Conditioned):
        raise BaseError(f"fine_tune: expected the plain network, got {type(net).__name__}")
    if parameters is None:
        if not isinstance(input_transform, InputTransform):
            raise ParameterError(
                "fine_tune: a function does not declare the range of θ; give parameters=, e.g. {'angle': Angle('deg')}"
            )
        parameters = input_transform.parameters
    space = parameters if isinstance(parameters, ParameterSpace) else ParameterSpace(parameters)
    agree(space, input_transform)
    trained = copy.deepcopy(net)
    plan = Plan.settle(trained, space, data, input_transform, objective, chosen)
    if plan.objective.needs_frozen:
        plan = replace(plan, reference=copy.deepcopy(net).eval())
    flags = [p.requires_grad for p in trained.parameters()]
    for parameter in trained.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    device = next((p.device for p in trained.parameters()), torch.device("cpu"))
    with _train_mode(trained, device):
        done = _carry_out(trained, plan)
    for parameter, flag in zip(trained.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    return replace(done, model=trained.eval())


def _carry_out(model: Model, plan: Plan) -> Fit[Model]:
    """Carry out a plan, from its checkpoint if there is one."""
    trainable = sum(p.numel() for p in plan.trained())
    if not trainable and plan.total:
        raise TrainingError(
            "there is nothing to train: the transform has no trainable number. Use the model as it is; fit(…, steps=0) "
            "runs the prior check alone, and fit(…, predict_parameter='only') trains a head that estimates θ"
        )
    state = read(plan.folder, plan.record()) if plan.folder is not None and plan.options.resume else None
    start = 0 if state is None else state.step
    if start > plan.total:
        raise TrainingError(
            f"steps: the checkpoint in {plan.folder} has {start} steps already, more than the {plan.total} asked "
            "for; resume=False starts again"
        )
    began = time.perf_counter()
    with preserved_rng(), torch.enable_grad():
        if start < plan.total:
            done = _run(plan, state)
        elif state is None:
            prior = check_first(plan) if plan.checks_prior else None
            done = Outcome([], [], time.perf_counter() - began, prior)
        else:
            state.restore(model, None)
            done = Outcome.of(state)
    return Fit(
        model=model,
        losses=done.losses,
        seconds=done.seconds,
        steps=len(done.losses),
        trainable=trainable,
        prior=done.prior,
        resumed=start,
        about=plan.describe(),
        parameter_losses=done.estimator_losses,
    )


def _run(plan: Plan, state: State | None) -> Outcome:
    """Train on Lightning, which is imported here."""
    before = warnings.formatwarning  # Lightning changes how every warning is printed
    try:
        require("lightning", "train", "fit")
    finally:
        warnings.formatwarning = before
    from .loop import run

    return run(plan, state)


@contextmanager
def _frozen_except(trained: list[nn.Parameter], model: nn.Module) -> Iterator[None]:
    """Let nothing else of the model require a gradient, because DDP waits for every parameter that does."""
    ids = {id(parameter) for parameter in trained}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextmanager
def _train_mode(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a module into train mode for the block; restore its flags and device after it, and drop its gradients."""
    with preserved_modes(module):
        module.train()
        try:
            yield
        finally:
            for parameter in module.parameters():
                parameter.grad = None
            module.to(device)

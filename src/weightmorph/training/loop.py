"""The training loop on Lightning. Only this file imports Lightning, and `fit` imports this file when it is called."""

from __future__ import annotations

import logging
import math
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import Tensor

from ..errors import TrainingError
from ..model import Conditioned
from ..parameters import Theta
from .data import Batch, Batches, draw, seeded
from .estimate import head_loss, head_theta
from .gradients import check_gradients
from .plan import Plan
from .prior import PriorCheck, check_first
from .result import Outcome
from .state import State, read, write

__all__ = ["Loop", "Stopped", "quiet", "run"]

SAVES = 20
"""Checkpoints in a run, at even intervals …"""

SAVE_AFTER = 60.0
"""… and another one if so many seconds have passed since the last."""

LOG_EVERY = 10
"""Steps between entries in a logger, unless `trainer={"log_every_n_steps": …}` says otherwise."""

FETCH_EVERY = 16
"""Steps between two fetches of the losses from an accelerator, because a fetch waits for it."""


class Stopped(Exception):
    """The user interrupted the run; raised between two steps."""


class Loop(lightning.LightningModule):
    """One step: draw θ, transform the inputs, run the network, compute the loss.

    The random numbers of a step follow from the seed and the step's number. So a run that continues from step n does
    what an uninterrupted run does from there.

    Args:
        plan: the plan of the run.
        state: the checkpoint from which it continues, or None.
        log_every: steps between entries in a logger.
    """

    def __init__(self, plan: Plan, state: State | None, log_every: int = LOG_EVERY) -> None:
        super().__init__()
        self.plan, self.state, self.log_every = plan, state, log_every
        self.prior = None if state is None else PriorCheck.of(state.notes["prior"])
        self.module = plan.module
        self.losses: list[float] = [] if state is None else state.losses.tolist()
        self.estimator_losses: list[float] = [] if state is None else state.estimator_losses.tolist()
        self.pending: list[Tensor] = []
        self.step = self.start = len(self.losses)
        self.seconds_before = 0.0 if state is None else state.seconds
        self.began = self.saved = time.monotonic()
        self.updating = self.stop = False
        self.optimiser: torch.optim.Optimizer | None = None
        self.teacher: tuple[torch.nn.Module, ...] = ()  # a tuple, because a module would become a part of this one

    @property
    def seconds(self) -> float:
        """Time spent, including the runs before a resumption."""
        return self.seconds_before + time.monotonic() - self.began

    def configure_optimizers(self) -> torch.optim.Optimizer:
        options = self.plan.options
        self.optimiser = torch.optim.AdamW(self.plan.trained(), lr=options.lr, weight_decay=options.weight_decay)
        if self.state is not None:
            self.state.restore(self.module, self.optimiser)
        return self.optimiser

    def on_fit_start(self) -> None:
        plan = self.plan
        if plan.objective.needs_frozen and plan.options.trains_transform:
            self.teacher = (plan.frozen(),)
        if plan.checks_prior and self.state is None:
            self.prior = check_first(plan, lambda batch: self.transfer_batch_to_device(batch, self.device, 0))
        for logger in self.loggers:
            logger.log_hyperparams(plan.record())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert self.optimiser is not None
        for group in self.optimiser.param_groups:
            group["lr"] = self.plan.rate(self.step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        plan = self.plan
        rank, world = self.global_rank, self.trainer.world_size
        if world > 1 and len(batch[0]) < world:
            raise TrainingError(f"a batch of {len(batch[0])} cannot be shared by {world} devices; raise batch_size")
        seeded(plan.seed, "step", self.step, rank)
        parts = [self._objective(batch, rank, world)] if plan.options.trains_transform else []
        if plan.options.predict_parameter:
            x, theta = batch[0][rank::world], head_theta(plan, len(batch[0]), self.step)
            parts.append(head_loss(plan, x, self._share(theta, rank, world)))
        values = torch.stack([part.detach().float() for part in parts])
        if values.device.type == "cpu":
            self._refuse_not_finite(values.tolist(), self.step)  # before the optimiser changes a parameter
        self.pending.append(values if world == 1 else self.trainer.strategy.reduce(values.clone(), reduce_op="mean"))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def _objective(self, batch: Batch, rank: int, world: int) -> Tensor:
        """The loss of the transform on this process's share of a batch. Every process has the whole batch."""
        plan = self.plan
        x, y = batch[0][rank::world], None if batch[1] is None else batch[1][rank::world]
        theta = self._share(draw(plan.space, len(batch[0]), plan.options.settings, plan.seed, self.step), rank, world)
        with torch.no_grad():
            frozen = self.teacher[0](x) if self.teacher else None
            with torch.autocast(x.device.type, enabled=False):
                turned = plan.input_transform(x, **theta)
        return plan.objective(plan.call(turned, theta), y, frozen)

    @staticmethod
    def _share(theta: Theta, rank: int, world: int) -> Theta:
        return {name: value[rank::world] if value.dim() else value for name, value in theta.items()}

    def on_after_backward(self) -> None:
        if self.step == self.start and isinstance(self.module, Conditioned) and self.plan.options.trains_transform:
            check_gradients(self.module)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.updating = True

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.step += 1
        self.updating = False

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer = self.trainer
        on_cpu = self.device.type == "cpu"
        every = max(1, self.plan.total // SAVES)
        due = self.step % every == 0 or time.monotonic() - self.saved > SAVE_AFTER or self.step == self.plan.total
        if on_cpu or due or self.step % FETCH_EVERY == 0:
            self.fetch_losses()
        if trainer.progress_bar_callback is not None:
            self.log("loss", outputs["loss"], prog_bar=True, logger=False, batch_size=len(batch[0]))
        if self.loggers and (self.step % self.log_every == 0 or self.step == self.plan.total):
            metrics = {"train/loss": float(outputs["loss"]), "train/lr": self.plan.rate(self.step - 1)}
            if self.estimator_losses:
                metrics["train/parameter_loss"] = self.estimator_losses[-1]
            for logger in self.loggers:
                logger.log_metrics(metrics, step=self.step)
        if due:
            self.save()
        if self.stop:
            raise Stopped

    def fetch_losses(self) -> None:
        """Read the losses that are still on the device."""
        if self.pending:
            rows: list[list[float]] = torch.stack(self.pending).tolist()
            for step, row in enumerate(rows, self.step - len(rows)):
                self._refuse_not_finite(row, step)
            self.losses += [row[0] for row in rows]
            if self.plan.options.predict_parameter:
                self.estimator_losses += [row[-1] for row in rows]
            self.pending = []

    def _refuse_not_finite(self, values: list[float], step: int) -> None:
        value = next((value for value in values if not math.isfinite(value)), None)
        if value is not None:
            folder = self.plan.folder
            saved = f"; the checkpoint in {folder} is the last good one" if folder is not None else ""
            raise TrainingError(
                f"the loss is {value} at step {step} (learning rate {self.plan.rate(step):.3g}){saved}. Lower lr, or "
                "clip gradients with trainer={'gradient_clip_val': 1.0}; at step 0, look for inputs or labels that are "
                "not finite, or a base that overflows"
            )

    def save(self) -> None:
        """Write the checkpoint, if there is a folder and this is the first process."""
        folder, optimiser = self.plan.folder, self.optimiser
        if folder is None or optimiser is None or not self.trainer.is_global_zero:
            return
        notes = {"total": self.plan.total, "prior": None if self.prior is None else vars(self.prior)}
        losses = self.losses[: self.step], self.estimator_losses[: self.step]
        write(folder, State.of(self.module, optimiser, *losses, self.seconds, self.plan.record(), notes))
        self.saved = time.monotonic()

    def save_interrupted(self) -> None:
        """Write the checkpoint of an interrupted run, unless no step is complete or an update is half done."""
        if self.step > self.start and not self.updating:
            self.pending = self.pending[: self.step - len(self.losses)]
            self.fetch_losses()
            self.save()


def run(plan: Plan, state: State | None) -> Outcome:
    """Train to the end of a plan.

    Args:
        plan: the plan.
        state: the checkpoint from which the run continues, or None.

    Raises:
        KeyboardInterrupt: if the user stopped the run; the checkpoint then holds the steps so far.
    """
    options = plan.options.for_lightning
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        trainer = lightning.Trainer(
            max_epochs=1,  # for Lightning the whole run is one epoch; the steps are counted here
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **options,
        )
        spawned = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
        if spawned and plan.folder is None:
            plan = replace(plan, folder=Path(scratch))  # spawned processes have no other way to return their result
        loop = Loop(plan, state, int(options.get("log_every_n_steps", LOG_EVERY)))
        before = signal.getsignal(signal.SIGINT)
        try:
            with _stop_between_steps(loop):
                trainer.fit(loop, train_dataloaders=Batches(plan.source, loop.start, plan.total))
        except (Stopped, SystemExit, ValueError) as error:
            # Lightning turns an interrupt into SystemExit, or into ValueError off the main thread; SIGTERM as well.
            interrupted = isinstance(error, Stopped) or isinstance(error.__context__, KeyboardInterrupt)
            if isinstance(error, ValueError) and not interrupted:
                raise
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)
            loop.save_interrupted()
            if not interrupted:
                raise
            where = f"; go on from the checkpoint in {plan.folder}" if plan.folder is not None else ""
            raise KeyboardInterrupt(f"stopped after step {loop.step} of {plan.total}{where}") from None
        done = read(plan.folder) if spawned and plan.folder is not None else None
        if done is not None:
            done.restore(plan.module, None)
            return Outcome.of(done)
        if loop.step < plan.total:  # a callback of the user's, or max_time, ended it
            loop.save_interrupted()
    loop.fetch_losses()
    return Outcome(loop.losses, loop.estimator_losses, loop.seconds, loop.prior)


@contextmanager
def _stop_between_steps(loop: Loop) -> Iterator[None]:
    """Let the first Ctrl-C end the run after the current step; the second one acts at once."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def stop(signum: int, frame: Any) -> None:
        loop.stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's tips, its notes about devices, and its warnings that do not apply here, for the block.

    Its loggers and the warning filters are restored after the block. Until then all threads share the filters.
    """
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning, module=r"lightning\.")
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            warnings.filterwarnings("ignore", message=r"Starting from v1\.9\.0, `tensorboardX`", category=UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""Training: what a run does, that it can stop and go on, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import weightmorph as wm
from weightmorph.errors import (
    BaseError,
    CheckpointError,
    ConditioningWarning,
    NoGradientError,
    ParameterError,
    TrainingError,
)
from weightmorph.estimation import attach
from weightmorph.estimator import Estimator, estimator_of
from weightmorph.inputs import Blur, Brightness, Compose, Noise, Rotate
from weightmorph.model import Conditioned
from weightmorph.objectives import Distillation, Supervised
from weightmorph.storage import unpack
from weightmorph.training import Fit, fine_tune, fit
from weightmorph.training.agreement import agree
from weightmorph.training.data import Source, draw
from weightmorph.training.options import Options
from weightmorph.training.prior import _clear
from weightmorph.training.state import FILE, read

SPACE = wm.ParameterSpace({"brightness": wm.Interval(-1.0, 1.0)})
BRIGHTNESS = Brightness(parameter=SPACE["brightness"])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a run writes unasked would be found here."""
    monkeypatch.chdir(tmp_path)


def small_net() -> nn.Sequential:
    torch.manual_seed(1)
    last = nn.Linear(4 * 64, 3)
    nn.init.normal_(last.weight)  # sure of what it says, so that there is something to lose
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Flatten(), last,
    )  # fmt: skip


def small_data(n: int = 40) -> tuple[Tensor, Tensor]:
    """Noise, labelled by the network itself: what brightness confuses can be learned back."""
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return x, small_net().eval()(x).argmax(1) if n else torch.zeros(0).long()


def small_model(transform: Any = None, net: nn.Module | None = None) -> Conditioned:
    torch.manual_seed(3)
    return wm.condition(net or small_net().eval(), SPACE, transform or wm.LowRank(2) + wm.Scale())


def train(model: Conditioned, data: Any = None, objective: Any = "distillation", **options: Any) -> Fit[Conditioned]:
    """A short run; what it needs beyond the defaults of these tests is given by name."""
    options = {"steps": 4, "batch_size": 16, "settings": 4, "progress": False, "transform": BRIGHTNESS} | options
    return fit(model, small_data() if data is None else data, options.pop("transform"), objective, **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


class Stop:
    """A Lightning callback that does something once, after so many batches."""

    def __new__(cls, after: int, action: Callable[[], None]) -> Any:
        import lightning

        class _Stop(lightning.Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                if batch_idx + 1 == after:
                    action()

        return {"callbacks": [_Stop()]}


def interrupt() -> None:
    raise KeyboardInterrupt


# What a run does.


@pytest.mark.parametrize("objective", ["supervised", "distillation", "both", "loss"])
def test_the_loss_goes_down(objective: str) -> None:
    chosen: Any = {"both": Supervised() + Distillation(), "loss": F.cross_entropy}.get(objective, objective)
    done = train(small_model(), objective=chosen, steps=60, lr=1e-2)
    assert done.steps == len(done.losses) == 60
    assert sum(done.losses[-10:]) < 0.8 * sum(done.losses[:10])


def test_distillation_needs_no_labels() -> None:
    """x alone, labels that are there, labels that are strings: all the same to it."""
    x, y = small_data()
    model, other, third = small_model(), small_model(), small_model()
    train(model, x)
    train(other, (x, y))
    train(third, DataLoader([(image, "a name") for image in x], 16))  # type: ignore[arg-type]
    assert same(model, other)


def test_the_result_tells_what_was_done() -> None:
    model = small_model()
    done = train(model)
    assert done.model is model
    assert done.trainable == sum(p.numel() for p in model.parameters())
    assert done.seconds > 0 and done.prior is None and done.resumed == 0
    text = str(done)
    for part in ("4 steps", f"{done.trainable:,} numbers", "Distillation", "4 settings of brightness", "seed 0"):
        assert part in text


def test_epochs_are_passes_over_the_data() -> None:
    assert train(small_model(), small_data(40), steps=None, epochs=3).steps == 3 * (40 // 16)
    assert train(small_model(), small_data(5), steps=None, epochs=2).steps == 2  # one batch of the five
    loader = DataLoader(TensorDataset(*small_data(40)), 16)
    assert train(small_model(), loader, steps=None, epochs=2).steps == 2 * 3


def test_each_epoch_sees_every_sample_once_in_an_order_of_its_own() -> None:
    source = Source((torch.arange(12.0).unsqueeze(1), torch.arange(12)), 4, seed=0, labels=True)
    epochs = [[int(i) for _, y in source.epoch(e) for i in y] for e in range(3)]  # type: ignore[union-attr]
    assert all(sorted(order) == list(range(12)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[1] == [int(i) for _, y in source.epoch(1) for i in y]  # type: ignore[union-attr]


def test_a_loaders_own_generator_is_seeded_and_put_back() -> None:
    own = torch.Generator().manual_seed(9)
    loader = DataLoader(TensorDataset(*small_data(32)), 8, shuffle=True, generator=own)
    before = own.get_state()
    source = Source(loader, 8, seed=0, labels=False)
    epochs = [torch.cat([x for x, _ in source.epoch(e)]) for e in (0, 1, 1)]
    assert not torch.equal(epochs[0], epochs[1]) and torch.equal(epochs[1], epochs[2])
    assert torch.equal(own.get_state(), before)


def test_settings_are_dealt_evenly() -> None:
    theta = draw(SPACE, 16, 4, seed=0, step=0)["brightness"]
    values, counts = theta.unique(return_counts=True)
    assert len(values) == 4 and counts.tolist() == [4] * 4
    assert not torch.equal(theta, draw(SPACE, 16, 4, seed=0, step=1)["brightness"])
    assert not torch.equal(theta, draw(SPACE, 16, 4, seed=1, step=0)["brightness"])
    assert draw(SPACE, 16, None, seed=0, step=0)["brightness"].unique().numel() == 16
    assert draw(SPACE, 16, 1, seed=0, step=0)["brightness"].shape == ()
    assert draw(SPACE, 2, 8, seed=0, step=0)["brightness"].unique().numel() == 2


@pytest.mark.parametrize("settings", [1, None, 8])
def test_shared_and_per_image_settings_train(settings: int | None) -> None:
    shapes = []

    def seen(x: Tensor, brightness: Tensor) -> Tensor:
        shapes.append(tuple(brightness.shape))
        return BRIGHTNESS(x, brightness=brightness)

    train(small_model(), settings=settings, transform=seen, steps=2)
    assert shapes == [() if settings == 1 else (16,)] * 2


def test_several_parameters_and_a_partial_transform() -> None:
    both = Compose([Rotate(), Blur(2.0)])
    model = wm.condition(small_net().eval(), both.parameters, wm.LowRank(2))
    assert train(model, transform=both).steps == 4
    alone = wm.condition(small_net().eval(), Rotate().parameters, wm.LowRank(2))
    assert train(alone, transform=functools.partial(both, blur=1.0)).steps == 4


def test_the_learning_rate_follows_its_schedule() -> None:
    """What the optimiser was set to, step by step."""
    rates: dict[str, list[float]] = {}
    for name, schedule in {"cosine": "cosine", "constant": "constant", "own": lambda done: 1 - done}.items():
        seen: list[float] = []
        hook = register_optimizer_step_pre_hook(
            lambda optimiser, args, kwargs, seen=seen: seen.append(optimiser.param_groups[0]["lr"])
        )
        try:
            train(small_model(), schedule=schedule, lr=1.0, steps=4)
        finally:
            hook.remove()
        rates[name] = seen
    assert rates["constant"] == [1.0] * 4
    assert rates["own"] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates["cosine"] == pytest.approx([0.5 * (1 + np.cos(np.pi * i / 4)) for i in range(4)])


def test_a_hand_written_loop_does_as_well() -> None:
    """The loop of the README: nothing of `fit` is needed."""
    model, (x, y) = small_model(), small_data(32)
    opt = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for step in range(40):
        theta = draw(model.space, 32, 4, seed=0, step=step)
        loss = F.cross_entropy(model(BRIGHTNESS(x, **theta), **theta), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_mixed_precision() -> None:
    assert train(small_model(), precision="bf16-mixed", settings=4).steps == 4
    assert train(small_model(wm.Warp() + wm.LowRank(2)), precision="bf16-mixed", settings=None).steps == 4


def test_double_precision_networks_train_in_double() -> None:
    model = small_model(net=small_net().double().eval())
    train(model, small_data()[0].double())
    assert all(p.dtype == torch.float64 for p in model.parameters())


def test_a_transform_without_numbers_gets_its_prior_check_alone() -> None:
    net, x = turning_net(), smooth_images()
    model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.Warp(learn=False))
    with pytest.raises(TrainingError, match=r"nothing to train.*steps=0"):
        fit(model, x, Rotate(), Distillation(distance="mse"), steps=1, progress=False)
    done = fit(model, x, Rotate(), Distillation(distance="mse"), steps=0, progress=False)
    assert done.steps == 0 and done.losses == [] and done.prior is not None


# The same seed, the same result; stopped and gone on, the same result.


class Augmented(Dataset[Any]):
    """Draws from all three global generators, as people's datasets do."""

    def __init__(self) -> None:
        self.x, self.y = small_data()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] * random.uniform(0.5, 1.5) + torch.randn(1) + np.random.randn(), self.y[i]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.randn(1, 8, 8)


DATA: dict[str, Callable[[], Any]] = {
    "tensors": small_data,
    "dataset": Augmented,
    "loader": lambda: DataLoader(Augmented(), 16, shuffle=True),
    "loader with a generator": lambda: DataLoader(Augmented(), 16, shuffle=True, generator=torch.Generator()),
    "stream": Endless,
}


class Dropping(nn.Module):
    """A user's module that draws random numbers in every call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.inner = nn.Sequential(nn.Linear(12, 9), nn.Dropout(0.5))

    def forward(self, taps: Tensor, code: Tensor) -> Tensor:
        out: Tensor = taps + self.inner(torch.cat((taps, code), -1))
        return out


@pytest.mark.parametrize("kind", DATA)
def test_the_same_seed_gives_the_same_transform(kind: str) -> None:
    """Twice the same call: bit for bit, whatever the global generators hold; another seed: another transform."""
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(models))
        model = small_model()
        torch.manual_seed(100 + len(models))
        train(model, DATA[kind](), seed=seed)
        models.append(model)
    assert same(models[0], models[1]) and not same(models[0], models[2])


@pytest.mark.parametrize("kind", DATA)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(kind: str, tmp_path: Path) -> None:
    """Three steps, Ctrl-C in the middle of the second epoch, then to six: bit for bit what six in one go give."""
    whole, halves, again = (small_model(wm.PerFilter(Dropping()) + wm.Scale()) for _ in range(3))
    noisy = Compose([BRIGHTNESS, Noise(0.5)])
    options: dict[str, Any] = {"steps": 6, "transform": functools.partial(noisy, noise=0.5)}
    one = train(whole, DATA[kind](), checkpoint=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 6"):
        train(halves, DATA[kind](), checkpoint=tmp_path / "halves", trainer=Stop(3, interrupt), **options)
    assert not same(whole, halves)
    two = train(again, DATA[kind](), checkpoint=tmp_path / "halves", **options)
    assert same(whole, again)
    assert (one.losses, two.steps, two.resumed) == (two.losses, 6, 3)


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": "constant", "objective": "supervised"}
    whole, model = small_model(), small_model()
    train(whole, steps=6, **options)
    train(model, steps=3, checkpoint=tmp_path, **options)
    assert train(model, steps=6, checkpoint=tmp_path, **options).resumed == 3
    assert same(whole, model)


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    model, other = small_model(), small_model()
    first = train(model, checkpoint=tmp_path)
    second = train(other, checkpoint=tmp_path)
    assert same(model, other) and second.losses == first.losses and second.resumed == 4
    assert second.seconds == pytest.approx(first.seconds, rel=0.5)


def test_resume_false_starts_again(tmp_path: Path) -> None:
    model, other = small_model(), small_model()
    train(model, checkpoint=tmp_path)
    assert train(other, checkpoint=tmp_path, resume=False, seed=1).resumed == 0
    assert not same(model, other)


def test_ctrl_c_ends_the_run_after_the_step_at_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real signal: the step is finished, the checkpoint written, the handler put back."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of 4; go on from the checkpoint"):
        train(small_model(), checkpoint=tmp_path, trainer=Stop(2, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is before
    assert "press Ctrl-C again" in capsys.readouterr().err
    assert train(small_model(), checkpoint=tmp_path).resumed == 2


def test_an_interrupt_within_a_step_keeps_the_steps_before_it(tmp_path: Path) -> None:
    calls = 0

    def turned(x: Tensor, brightness: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return BRIGHTNESS(x, brightness=brightness)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2"):
        train(small_model(), checkpoint=tmp_path, transform=turned)
    assert signal.getsignal(signal.SIGINT) is before
    again, whole = small_model(), small_model()
    assert train(again, checkpoint=tmp_path).resumed == 2
    train(whole)
    assert same(again, whole)


def test_an_interrupt_within_an_update_goes_back_to_the_step_before(tmp_path: Path) -> None:
    """The tensors are changed and the step is not counted yet: what is on disk stays as it is."""
    updates = 0

    def interrupt_third(*_: Any) -> None:
        nonlocal updates
        updates += 1
        if updates == 3:
            raise KeyboardInterrupt

    hook = register_optimizer_step_post_hook(interrupt_third)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(small_model(), checkpoint=tmp_path)
    finally:
        hook.remove()
    again, whole = small_model(), small_model()
    assert train(again, checkpoint=tmp_path).resumed == 2
    train(whole)
    assert same(again, whole)


def test_an_interrupt_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="after step 0"):
        train(small_model(), checkpoint=tmp_path, transform=lambda x, brightness: interrupt())
    assert os.listdir(tmp_path) == []


def test_sigterm_leaves_a_checkpoint(tmp_path: Path) -> None:
    """What batch systems send before they end a job."""
    with pytest.raises(SystemExit):
        train(
            small_model(), steps=300, checkpoint=tmp_path, trainer=Stop(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        )
    saved = read(tmp_path)
    assert saved is not None and saved.step == 2


def test_a_checkpoint_is_tensors_and_json(tmp_path: Path) -> None:
    """No pickle; the folder holds one file and no left-overs; the base's weights are not in it."""
    model = small_model()
    train(model, checkpoint=tmp_path)
    assert os.listdir(tmp_path) == [FILE]
    header, tensors = unpack(tmp_path / FILE, "training")
    assert {key.removeprefix("module.") for key in tensors if key.startswith("module.")} == set(model.state_dict())
    assert header["settings"]["seed"] == 0 and header["notes"]["total"] == 4


def test_reading_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / FILE).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint of fit"):
        train(small_model(), checkpoint=tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    train(small_model(), checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"lr was 0\.003, now 0\.1; seed was 0, now 1.*resume=False"):
        train(small_model(), checkpoint=tmp_path, lr=0.1, seed=1)
    with pytest.raises(CheckpointError, match="samples was 40, now 32"):
        train(small_model(), small_data(32), checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="recipe was"):
        train(small_model(wm.LowRank(1)), checkpoint=tmp_path)
    with pytest.raises(TrainingError, match="4 steps already, more than the 3"):
        train(small_model(), checkpoint=tmp_path, steps=3)
    wider = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Flatten(), nn.Linear(5 * 36, 3)).eval()
    with pytest.raises(CheckpointError, match=r"tensor '.*' is .* in the file and .* in the model"):
        train(small_model(net=wider), checkpoint=tmp_path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    message = r"checkpoint of fit.*not a checkpoint of weightmorph.*release 0\.1.*resume=False"
    for metadata in ({}, {"format": "weightmorph.fit/1", "about": "{}"}):  # anybody's, and one of release 0.1
        save_file({"a": torch.zeros(1)}, tmp_path / FILE, metadata)
        with pytest.raises(CheckpointError, match=message):
            train(small_model(), checkpoint=tmp_path)
    small_model().save(tmp_path / FILE)
    with pytest.raises(CheckpointError, match="state of a training run, and the file holds a model"):
        train(small_model(), checkpoint=tmp_path)


# What a run leaves alone.


def test_the_base_is_untouched() -> None:
    net = small_net().train()
    net[0].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    before = copy.deepcopy(net.state_dict())
    flags = [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]
    train(small_model(net=net), objective="supervised")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert flags == ([p.requires_grad for p in net.parameters()], [m.training for m in net.modules()])
    assert all(p.grad is None for p in net.parameters())


def test_the_model_is_given_back_as_it_was() -> None:
    """Flags of every part, gradients, and the storage that it shares with the network."""
    net = small_net().eval()
    model = small_model(wm.PerFilter(Dropping()), net)
    model.eval()
    module = next(m for m in model.modules() if isinstance(m, nn.Dropout))
    beside = next(m for m in model.modules() if isinstance(m, Dropping))
    module.train()
    modes: list[bool] = []
    handle = beside.register_forward_hook(lambda m, *_: modes.append(m.training))
    train(model)
    handle.remove()
    assert modes and all(modes)  # trained in train mode
    assert not model.training and not beside.training and module.training
    assert all(p.grad is None for p in model.parameters())
    assert model.base.frozen["0.weight"].data_ptr() == net[0].weight.data_ptr()  # type: ignore[union-attr, operator]


def test_global_state_is_left_as_it_was(tmp_path: Path) -> None:
    """Generators, warning filters, loggers, signal handlers, grad mode; nothing written where nobody asked."""
    train(small_model(), steps=1)  # imports Lightning, which sets up loggers of its own
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.INFO)  # Lightning's own choice

    def state() -> list[Any]:
        names = ["", "lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"]
        loggers = [logging.getLogger(name) for name in names]
        return [
            [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers],
            list(warnings.filters), warnings.formatwarning, {n: signal.getsignal(n) for n in (2, 10, 15)},
            torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype(),
            torch.get_num_threads(), torch.get_rng_state().tolist(),
            random.getstate(), np.random.get_state()[1].tolist(),
        ]  # fmt: skip

    before = state()
    train(small_model())
    with pytest.raises(TrainingError):
        train(small_model(), transform=lambda x, brightness: x * float("nan"))
    torch.manual_seed(7)
    now = state()
    assert now == before
    with torch.no_grad():
        train(small_model())
        assert not torch.is_grad_enabled()
    assert os.listdir(tmp_path) == []


def test_it_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    train(small_model())
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_the_progress_bar_shows_the_loss(capfd: pytest.CaptureFixture[str]) -> None:
    train(small_model(), progress=True)
    out, err = capfd.readouterr()
    assert "loss" in out + err and "4/4" in out + err


def test_a_logger_gets_losses_and_rates(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="log")
    done = train(small_model(), logger=logger, trainer={"log_every_n_steps": 2})
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    assert {"step", "train/loss", "train/lr"} == set(header)
    last = dict(zip(header, rows[-1].split(","), strict=True))
    assert len(rows) == 3 and last["step"] == "4" and float(last["train/loss"]) == pytest.approx(done.losses[3])


def test_a_callback_may_end_the_run(tmp_path: Path) -> None:
    """Early stopping and the like: what was done is what the result and the checkpoint tell."""
    from lightning.pytorch.callbacks import LambdaCallback

    def end(trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 3

    callbacks = [LambdaCallback(on_train_batch_end=end)]
    done = train(small_model(), steps=200, checkpoint=tmp_path, trainer={"callbacks": callbacks})
    saved = read(tmp_path)
    assert done.steps == len(done.losses) == 3 and saved is not None and saved.step == 3


def test_off_the_main_thread() -> None:
    """Where no signal handler can be set."""
    import threading

    results: list[Any] = []

    def work() -> None:
        model = small_model()
        train(model)
        results.append(model)
        try:
            train(small_model(), trainer=Stop(2, interrupt))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    model = small_model()
    train(model)
    assert same(results[0], model)
    assert isinstance(results[1], KeyboardInterrupt)


# What is refused.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (small_data()[0], "needs labels.*found x alone.*'distillation'"),
        ({"x": small_data()[0]}, "a dict of 'x'.*Dataset of your own"),
        ((np.zeros((4, 1, 8, 8)), np.zeros(4)), "a ndarray.*torch.from_numpy"),
        ((small_data()[0], small_data()[1][:5]), r"as many samples, got shapes \(40, 1, 8, 8\), \(5,\)"),
        ((small_data()[0][:0], small_data()[1][:0]), "at least one sample"),
        ((1, 2, 3), "got .a int, a int, a int."),
        ("a path", "got a str"),
        (TensorDataset(small_data()[0]), "needs labels.*found no labels"),
        (DataLoader([{"x": 1.0}]), "a batch that is a dict of 'x'"),  # type: ignore[list-item]
        (DataLoader([(small_data()[0][0], "name")]), "labels that are a tuple"),  # type: ignore[list-item]
        (TensorDataset(small_data()[0][:0]), "at least one sample"),
    ],
)
def test_data_that_cannot_be_trained_with(data: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(small_model(), data, objective="supervised")


def test_a_stream_that_ends_is_told_from_one_that_starts_again() -> None:
    class Once(IterableDataset[Any]):
        def __init__(self) -> None:
            self.left = iter(small_data()[0])

        def __iter__(self) -> Iterator[Tensor]:
            return self.left

    with pytest.raises(TrainingError, match=r"epoch 1 gave no batch although 5 steps are left"):
        train(small_model(), Once(), steps=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3, "epochs": 2}, "epochs or steps, not both"),
        ({"steps": -1}, "steps: expected a whole number"),
        ({"steps": None, "epochs": 1.5}, "epochs: expected a whole number"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"settings": 0}, "settings: expected"),
        ({"lr": 0.0}, "lr > 0"),
        ({"lr": "fast"}, "lr > 0, got 'fast'"),
        ({"weight_decay": -1.0}, "weight_decay >= 0"),
        ({"seed": 0.5}, "seed: expected a whole number"),
        ({"num_workers": -1}, "num_workers: expected"),
        ({"schedule": "linear"}, "'cosine', 'constant' or a function"),
        ({"objective": "destillation"}, "did you mean 'distillation'"),
        ({"transform": None}, "input_transform: expected"),
        ({"precision": "bf16-true"}, "'bf16-mixed'.*got 'bf16-true'.*net.double"),
        ({"trainer": {"max_epochs": 3}}, "'max_epochs'.*set by fit itself"),
        ({"steps": None, "epochs": 1, "data": Endless()}, "give steps instead"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(small_model(), **options)


def test_options_are_the_arguments_of_fit() -> None:
    """The names, order and defaults of `Options` are those of the signature, which states them for the reader."""
    stated = [p for p in inspect.signature(fit).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in stated] == [(f.name, f.default) for f in dataclasses.fields(Options)]


def test_fine_tune_takes_the_options_of_fit_that_need_no_conditioned_model() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'epoch'; did you mean 'epochs'"):
        fine_tune(small_net(), small_data(), BRIGHTNESS, epoch=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'check_prior'"):
        fine_tune(small_net(), small_data(), BRIGHTNESS, check_prior=False)


def test_what_is_not_conditioned_is_sent_to_fine_tune() -> None:
    with pytest.raises(TrainingError, match="fine_tune"):
        fit(small_net(), small_data(), BRIGHTNESS)  # type: ignore[arg-type]
    with pytest.raises(BaseError, match="plain network, got Conditioned"):
        fine_tune(small_model(), small_data(), BRIGHTNESS)


@pytest.mark.parametrize(
    ("parameters", "transform", "message"),
    [
        ({"agnle": wm.Angle()}, Rotate(), "conditioned on agnle.*Rotate takes angle.*did you mean 'angle'"),
        (
            {"angle": wm.Angle()},
            Compose([Rotate(), Blur()]),
            "takes angle, blur.*conditioned on angle.*'blur'.*partial",
        ),
        ({"angle": wm.Angle()}, lambda x, angel: x, "takes angel.*did you mean 'angel'"),
        ({"angle": wm.Angle()}, lambda x, angle, blur: x, "nothing says what 'blur' is"),
        ({"angle": wm.Angle("rad")}, Rotate(), "'angle' is in rad for the model and in deg for the input transform"),
        ({"angle": wm.Interval(-1, 1, affine="rotation")}, Rotate(), "'angle' is in rad for the model and in deg"),
        ({"angle": wm.Angle(anchor=90.0)}, Rotate(), "anchor at 90.0 for the model.* at 0.0 for the input transform"),
    ],
)
def test_parameters_must_agree(parameters: Any, transform: Any, message: str) -> None:
    model = wm.condition(small_net(), parameters, wm.LowRank(2))
    with pytest.raises(ParameterError, match=message):
        train(model, transform=transform)


@pytest.mark.parametrize(
    "transform",
    [lambda x, angle: x, lambda x, *, angle, strength=1.0: x, lambda x, **theta: x, lambda x, angle, /, **theta: x],
)
def test_functions_whose_parameters_agree_are_taken(transform: Any) -> None:
    agree(wm.ParameterSpace({"angle": wm.Angle()}), transform)


def test_a_loss_that_is_not_finite_is_refused_and_the_good_state_kept(tmp_path: Path) -> None:
    """Neither the transform nor the checkpoint holds anything of the bad step."""
    calls = 0

    def turned(x: Tensor, brightness: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return BRIGHTNESS(x, brightness=brightness) * (float("nan") if calls == 3 else 1.0)

    model, good = small_model(), small_model()
    with pytest.raises(TrainingError, match=r"loss is nan at step 2.*last good one.*Lower lr"):
        train(model, objective="supervised", transform=turned, checkpoint=tmp_path, schedule="constant")
    train(good, objective="supervised", steps=2, schedule="constant")
    assert same(model, good)
    again = small_model()
    assert train(again, objective="supervised", steps=2, checkpoint=tmp_path, schedule="constant").resumed == 2
    assert same(again, good)


class HalfDetached(nn.Module):
    """The commonest mistake: a part of the result goes through .detach()."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.lost = nn.Linear(3, 9), nn.Linear(3, 9)

    def forward(self, taps: Tensor, code: Tensor) -> Tensor:
        out: Tensor = taps + self.seen(code) + self.lost(code).detach()
        return out


def test_a_partial_loss_of_gradient_is_named() -> None:
    model = small_model(wm.PerFilter(HalfDetached()))
    with pytest.raises(
        NoGradientError, match=r"layer '0': PerFilter\(HalfDetached\).*module\.lost\.weight.*\.data.*no_grad.*detach"
    ):
        train(model)
    frozen = HalfDetached()
    frozen.lost.requires_grad_(False)
    assert train(small_model(wm.PerFilter(frozen))).steps == 4  # what needs no gradient misses none


def test_a_head_that_starts_at_zero_is_no_loss_of_gradient() -> None:
    """LowRank's U starts at zero, so its gains get a gradient of zero at first."""
    assert train(small_model(wm.LowRank(2) + wm.PerFilter("mlp") + wm.Warp() + wm.Scale()), steps=1).steps == 1


class WithAnUnreadLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.auxiliary = small_net(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def test_layers_that_the_forward_does_not_read_are_named() -> None:
    with pytest.warns(ConditioningWarning, match=r"no gradient came back to auxiliary\.weight"):
        train(small_model(net=WithAnUnreadLayer().eval()))


def test_a_loss_without_the_weights_is_refused() -> None:
    with pytest.raises(NoGradientError, match="the loss does not depend on the weights"):
        train(
            small_model(), objective=lambda output, y: output.detach().sum() + torch.zeros(1, requires_grad=True).sum()
        )


# The prior check.


def turning_net() -> nn.Sequential:
    """A network that looks about equally in all directions and then averages: its kernels can follow a rotation."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    with torch.no_grad():
        slope = torch.linspace(-1, 1, 5)
        bell = torch.exp(-2 * (slope**2 + slope.unsqueeze(1) ** 2))
        for k in range(8):  # derivatives in eight directions: what a rotation exchanges
            net[0].weight[k, 0] = 3 * bell * (slope * np.cos(k) + slope.unsqueeze(1) * np.sin(k))  # type: ignore[union-attr, index, operator]
        net[0].bias.zero_()  # type: ignore[union-attr, operator]
    return net.eval()


def smooth_images(n: int = 48) -> Tensor:
    """Blobs with a direction, dark at the rim, so that little is lost when they turn."""
    g = torch.Generator().manual_seed(5)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 17), torch.linspace(-1, 1, 17), indexing="ij")
    window = (1 - (x**2 + y**2)).clamp(min=0) ** 2
    tilt = torch.rand(n, 1, 1, generator=g) + 1
    return ((1 + 3 * tilt * x) * window).unsqueeze(1)


def prior_of(transform: Any, net: nn.Module | None = None, parameters: Any = None, **options: Any) -> Any:
    model = wm.condition(net or turning_net(), parameters or {"angle": wm.Angle("deg")}, wm.Warp(), **options)
    done = fit(model, smooth_images(), transform, Distillation(distance="mse"), steps=0, progress=False)
    trusts = {float(t) for name, t in model.named_buffers() if name.endswith("trust")}
    return done.prior, trusts


def test_the_prior_is_kept_where_it_helps() -> None:
    found, trusts = prior_of(Rotate(mode="bicubic"))
    assert found.kept == {"convolutions": True} and trusts == {1.0}
    assert found.chosen == found.prior < 0.1 * found.identity
    assert not found.better and set(found.layers["convolutions"]) == {"0", "2"}
    assert "convolutions (2): prior" in str(found)


def test_the_frozen_weights_are_kept_where_the_prior_hurts() -> None:
    """A transform that turns nothing: there is nothing to follow, in either sense."""
    found, trusts = prior_of(lambda x, angle: x)
    assert found.kept == {"convolutions": False} and trusts == {0.0}
    assert found.chosen == found.identity == 0 < found.prior and not found.better


def test_the_opposite_sense_is_noticed_and_not_switched_to() -> None:
    with pytest.warns(ConditioningWarning, match=r"go the other way.*opposite sense of 'angle'.*sign, or the unit"):
        found, trusts = prior_of(lambda x, angle: Rotate(mode="bicubic")(x, angle=-angle))
    assert found.better == "angle reversed" and found.readings["angle reversed"] < 0.1 * found.chosen
    assert found.chosen == min(found.prior, found.identity) and len(trusts) == 1
    assert "WARNING: the input transform seems to go the other way" in str(found)


@pytest.mark.parametrize(("declared", "meant"), [("deg", "rad"), ("rad", "deg")])
def test_the_other_unit_is_noticed(declared: Any, meant: Any) -> None:
    turn = Rotate(parameter=wm.Angle(meant), mode="bicubic")
    with pytest.warns(ConditioningWarning, match=f"another unit.*read as {meant} instead of {declared}"):
        prior_of(lambda x, angle: turn(x, angle=angle), parameters={"angle": wm.Angle(declared)})


def test_a_prior_that_hurts_in_one_kind_of_layer_is_dropped_there_alone() -> None:
    """A Linear that is told a wrong layout of its map: its prior shuffles pixels, that of the convolutions is right."""
    body = turning_net()[:4]
    torch.manual_seed(0)
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    with torch.no_grad():
        net[-1].weight.copy_(net[-1].weight.view(4, 8, 36).mean(-1, keepdim=True).expand(4, 8, 36).reshape(4, -1))  # type: ignore[operator, union-attr]
        weight = net[-1].weight.view(4, 8, 6, 6)  # type: ignore[operator, union-attr]
        ring = torch.linspace(-1, 1, 6) ** 2
        weight *= 1 - 0.5 * (ring + ring.unsqueeze(1))  # round, so that it needs no turning itself
    found, trusts = prior_of(Rotate(mode="bicubic"), net, maps={"6": (4, 9)})
    assert found.kept == {"convolutions": True, "linear layers over a map": False} and trusts == {0.0, 1.0}
    assert found.chosen < min(found.prior, found.identity)


def test_depthwise_convolutions_are_a_kind_of_their_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*turning_net()[:4], nn.Conv2d(8, 8, 3, groups=8), nn.AdaptiveAvgPool2d(1)).eval()
    found, _ = prior_of(Rotate(mode="bicubic"), net)
    assert set(found.kept) == {"convolutions", "depthwise convolutions"}


def test_the_check_is_made_once_and_kept_with_the_run(tmp_path: Path) -> None:
    """A run that goes on has its prior check, and the trust that it set, from the checkpoint."""

    def go(**options: Any) -> Any:
        model = wm.condition(turning_net(), {"angle": wm.Angle("deg")}, wm.Warp())
        done = fit(
            model, smooth_images(), wrong_way, Distillation(distance="mse"), checkpoint=tmp_path, batch_size=16,
            progress=False, schedule="constant", **options,
        )  # fmt: skip
        return done, {float(t) for name, t in model.named_buffers() if name.endswith("trust")}

    with pytest.warns(ConditioningWarning):
        first, trusts = go(steps=1)
    second, again = go(steps=2)  # no warning: nothing was measured again
    assert second.prior == first.prior and second.prior is not None and len(trusts) == 1 and trusts == again


def wrong_way(x: Tensor, angle: Tensor) -> Tensor:
    return Rotate()(x, angle=-angle)


def test_clearly_better_is_more_than_chance_and_more_than_a_little() -> None:
    spread = [1.0, 2.0, 3.0, 4.0]
    assert _clear(spread, [v - 1 for v in spread])
    assert not _clear(spread, [v - 0.05 for v in spread])  # certain, but a fiftieth
    assert not _clear(spread, [4.0, 0.0, 0.0, 4.0])  # much less on average, but up here and down there
    assert not _clear(spread, [v + 1 for v in spread])


def test_the_check_can_be_left_out_and_is_where_there_is_no_prior() -> None:
    model = wm.condition(turning_net(), {"angle": wm.Angle("deg")}, wm.Warp())
    options: dict[str, Any] = {"steps": 1, "progress": False, "batch_size": 16}
    done = fit(model, smooth_images(), wrong_way, Distillation(distance="mse"), check_prior=False, **options)
    assert done.prior is None
    assert all(t == 1 for name, t in model.named_buffers() if name.endswith("trust"))
    plain = wm.condition(turning_net(), {"angle": wm.Angle("deg")}, wm.Warp(prior=False))
    assert fit(plain, smooth_images(), Rotate(), Distillation(distance="mse"), **options).prior is None


# The baseline.


def test_fine_tune_trains_a_copy_and_leaves_the_network_alone() -> None:
    net = small_net().train()
    net[0].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    before = copy.deepcopy(net.state_dict())
    done = fine_tune(net, small_data(), BRIGHTNESS, steps=30, batch_size=16, progress=False)
    tuned = done.model
    assert type(tuned) is nn.Sequential and tuned is not net and not tuned.training
    assert done.steps == 30 and done.seconds > 0
    assert sum(done.losses[-5:]) < sum(done.losses[:5])
    assert net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in (*net.parameters(), *tuned.parameters()))
    changed = [key for key, value in tuned.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == list(before)  # every weight, BatchNorm's statistics included
    assert [p.requires_grad for p in tuned.parameters()] == [p.requires_grad for p in net.parameters()]


def test_fine_tune_sees_the_data_that_fit_sees() -> None:
    seen: dict[str, list[Tensor]] = {"fit": [], "fine_tune": []}

    def watching(which: str) -> Callable[..., Tensor]:
        def turned(x: Tensor, brightness: Tensor) -> Tensor:
            seen[which] += [x.clone(), brightness.clone()]
            return BRIGHTNESS(x, brightness=brightness)

        return turned

    options: dict[str, Any] = {"steps": 4, "batch_size": 16, "settings": 4, "progress": False}
    fit(small_model(), small_data(), watching("fit"), "distillation", **options)
    fine_tune(small_net(), small_data(), watching("fine_tune"), "distillation", parameters=SPACE, **options)
    assert len(seen["fit"]) == 8
    assert all(torch.equal(a, b) for a, b in zip(seen["fit"], seen["fine_tune"], strict=True))


def test_fine_tune_resumes_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 4, "batch_size": 16, "progress": False}
    whole = fine_tune(small_net(), small_data(), BRIGHTNESS, **options)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(small_net(), small_data(), BRIGHTNESS, checkpoint=tmp_path, trainer=Stop(2, interrupt), **options)
    again = fine_tune(small_net(), small_data(), BRIGHTNESS, checkpoint=tmp_path, **options)
    assert again.resumed == 2 and again.losses == whole.losses and same(again.model, whole.model)


def test_fine_tune_needs_to_know_the_range_of_a_functions_parameters() -> None:
    with pytest.raises(ParameterError, match="give parameters="):
        fine_tune(small_net(), small_data(), lambda x, brightness: x)


# Several processes.

SCRIPT = """
import sys, torch, weightmorph as wm
from torch import nn
from weightmorph.training import fit
from weightmorph.inputs import Brightness

def main(devices, strategy, predict):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).double().eval()
    model = wm.condition(net, Brightness().parameters, wm.LowRank(2))
    x = torch.rand(32, 1, 8, 8, dtype=torch.float64)
    done = fit(model, x, Brightness(), "distillation", steps=3, batch_size=16, settings=4, progress=False,
               predict_parameter=predict, accelerator="cpu", devices=devices,
               trainer={"strategy": strategy} if strategy else None)
    return done.losses, [p.detach().clone() for p in model.parameters()]

if __name__ == "__main__":
    for predict in (False, True):
        alone, two = main(1, "", predict), main(2, "ddp_spawn", predict)
        assert len(two[0]) == 3 and len(alone[1]) == len(two[1]), two[0]
        assert torch.allclose(torch.tensor(alone[0]), torch.tensor(two[0]), rtol=1e-9), (alone[0], two[0])
        assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(alone[1], two[1]))
    print("equal")
"""


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """The batch is shared out; losses and transform come back to the process that asked."""
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, env=env, timeout=300)
    assert run.stdout.strip().endswith("equal"), run.stdout + run.stderr


# A head that estimates θ.


def head_of(model: Conditioned) -> Estimator:
    found = estimator_of(model)
    assert found is not None
    return found


def test_a_head_learns_beside_the_transform_and_changes_nothing_of_it() -> None:
    """The same transform and losses, bit for bit, with the head and without; and the head knows more at the end."""
    model, plain = small_model(), small_model()
    options: dict[str, Any] = {"steps": 80, "lr": 1e-2}
    done, other = train(model, predict_parameter=True, **options), train(plain, **options)
    assert same(model.transform, plain.transform) and done.losses == other.losses
    assert len(done.parameter_losses) == 80 and other.parameter_losses == []
    assert sum(done.parameter_losses[-10:]) / 10 < -0.5 < sum(done.parameter_losses[:5]) / 5
    numbers = sum(p.numel() for p in head_of(model).parameters())
    assert done.trainable == other.trainable + numbers
    assert "head that estimates θ" in str(done) and "with a head" in done.about
    found = wm.infer(model, BRIGHTNESS(small_data()[0], brightness=0.5), method="head", pool="batch")
    assert abs(float(found["brightness"]) - 0.5) < 0.15


def test_a_head_alone_leaves_the_transform_and_never_runs_the_objective() -> None:
    def never(output: Tensor, target: Tensor) -> Tensor:
        raise AssertionError("the objective was run")

    model = small_model(wm.Warp() + wm.LowRank(2))
    before = copy.deepcopy(model.state_dict())
    done = train(model, objective=never, predict_parameter="only")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items() if not k.startswith("estimator."))
    assert done.losses == done.parameter_losses and done.steps == 4 and done.prior is None
    assert done.trainable == sum(p.numel() for p in head_of(model).parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_a_head_can_be_trained_where_the_transform_cannot() -> None:
    model = wm.condition(small_net(), {"angle": wm.Angle()}, wm.Warp(learn=False), example=small_data()[0][:1])
    with pytest.raises(TrainingError, match=r"nothing to train.*predict_parameter='only'"):
        train(model, transform=Rotate())
    assert train(model, transform=Rotate(), predict_parameter="only").steps == 4


def test_a_head_that_is_there_is_trained_on_only_if_asked() -> None:
    model = small_model()
    made = attach(model, small_data()[0], hidden=5)
    start = copy.deepcopy(made.state_dict())
    train(model)
    assert all(torch.equal(start[k], v) for k, v in made.state_dict().items())
    assert all(p.requires_grad for p in made.parameters())
    train(model, predict_parameter=True)
    assert head_of(model) is made and not torch.equal(start["body.weight"], made.body.weight)


@pytest.mark.parametrize("predict", [True, "only"])
def test_a_head_goes_on_as_if_nothing_had_been(predict: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 6, "predict_parameter": predict}
    whole, halves = small_model(), small_model()
    one = train(whole, **options)
    with pytest.raises(KeyboardInterrupt):
        train(halves, checkpoint=tmp_path, trainer=Stop(3, interrupt), **options)
    again = small_model()
    two = train(again, checkpoint=tmp_path, **options)
    assert same(whole, again) and two.resumed == 3
    assert two.parameter_losses == one.parameter_losses and two.losses == one.losses
    with pytest.raises(CheckpointError, match="predict_parameter was"):
        train(small_model(), checkpoint=tmp_path, steps=6)
    third = train(small_model(), checkpoint=tmp_path, **options)
    assert third.parameter_losses == one.parameter_losses, "nothing was left to do"


def test_every_image_has_a_theta_of_its_own_for_the_head() -> None:
    """Few settings are quicker for the transform, many teach the head more; a function that takes one gets one."""
    seen: list[tuple[int, ...]] = []

    def turned(x: Tensor, brightness: Tensor) -> Tensor:
        seen.append(tuple(brightness.shape))
        return x + brightness.reshape(-1, 1, 1, 1)

    train(small_model(), transform=turned, predict_parameter=True, steps=1)
    assert seen == [(16,), (16,), (16,)], "the first is for the head's start"
    seen.clear()
    train(small_model(), transform=turned, predict_parameter=True, steps=1, settings=1)
    assert seen == [(), (), ()]


def test_a_heads_loss_that_is_not_finite_is_refused() -> None:
    def turned(x: Tensor, brightness: Tensor) -> Tensor:
        return x + brightness.reshape(-1, 1, 1, 1) if len(brightness.unique()) < 5 else x * float("nan")

    model = small_model()
    attach(model, small_data()[0])
    with pytest.raises(TrainingError, match="loss is nan at step 0"):
        train(model, transform=turned, predict_parameter=True)


def test_what_is_to_be_predicted_is_checked() -> None:
    with pytest.raises(TrainingError, match="predict_parameter: expected True, False or 'only', got 'yes'"):
        train(small_model(), predict_parameter="yes")

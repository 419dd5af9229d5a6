"""What each command can be told: one dataclass a command, from which come its flags, its keys in a YAML file, its help,
and the types that both are held to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from ..errors import ConfigError

__all__ = [
    "COMMANDS", "Bake", "Compare", "Doctor", "Evaluate", "Export", "Fit", "Infer", "Job", "Judged", "Network", "Saved",
    "Serve", "Summary", "Trainer",
]  # fmt: skip

Recipe = dict[str, Any] | list[Any] | str | None
"""As `Warp + LowRank(8)`, as `{type: LowRank, rank: 8}`, or as a list of either."""


@dataclass
class Network:
    """The frozen network.

    Args:
        base: the frozen network: 'package.module:function', 'file.py:function' or 'timm:NAME'. The function (or class)
            is called with base_options and gives an nn.Module.
        base_options: keyword arguments of that function, by name.
        weights: file with the network's tensors: safetensors, or what torch.save wrote (read with weights_only, so that
            no code in it is run). Null keeps those that the function made.
        weights_key: entry of that file that holds the state_dict; null if it is the whole file.
        seed: what all random numbers follow from.
        threads: CPU threads of torch; null leaves torch's choice.
    """

    base: str | None = None
    base_options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    weights_key: str | None = None
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: expected 0 to 2**63 - 1, got {self.seed}")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ConfigError(f"threads: expected 1 or more, got {self.threads}")


@dataclass
class Saved(Network):
    """A conditioned network that was saved.

    Args:
        model: the file that fit wrote, *.safetensors; may be given as the first argument without the flag.
        transform: the transform as it was trained, needed only where it holds code of your own.
        device: where it runs, as torch names it: cpu, cuda, cuda:1, mps.
    """

    model: str | None = None
    transform: Recipe = None
    device: str = "cpu"


@dataclass
class Trainer:
    """How long and how to train.

    Args:
        steps: training steps (batches); null stands for 1000, unless epochs is given.
        epochs: passes over the data, in place of steps.
        batch_size: images in a step.
        settings: distinct values of θ in a step, each for an equal share of the images; null for one per image, 1 for
            networks that cannot take one θ per image.
        lr: learning rate of AdamW at the start, per step.
        weight_decay: AdamW's, per step.
        schedule: learning rate over the run.
        check_prior: compare Warp's analytic prior with the frozen weights first, and keep the better one.
        predict_parameter: also train a head that estimates θ, for infer.
        resume: go on from the checkpoint in the output folder; false starts again and writes over it.
        precision: Lightning's, e.g. bf16-mixed; null for the network's own.
        accelerator: Lightning's, e.g. cpu or cuda.
        devices: how many devices, or auto.
        num_workers: processes that read the data.
        progress: show a progress bar; null for only where someone watches (a terminal).
        lightning: further arguments of Lightning's Trainer, by name, e.g. gradient_clip_val.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 128
    settings: int | None = 8
    lr: float = 3e-3
    weight_decay: float = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    check_prior: bool = True
    predict_parameter: bool = False
    resume: bool = True
    precision: str | None = None
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_workers: int = 0
    progress: bool | None = None
    lightning: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("epochs", 0), ("batch_size", 1), ("settings", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"trainer.{name}: expected {least} or more, got {value}")
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(f"trainer: give steps or epochs, not both, got {self.steps} and {self.epochs}")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"trainer.lr: expected a number above 0, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"trainer.weight_decay: expected 0 or more, got {self.weight_decay}")


@dataclass
class Fit(Network):
    """Train a transform of the network's weights.

    Args:
        data: images to train on: 'folder:PATH' (a folder of images, one subfolder a class), 'idx:PATH' (a folder of IDX
            files, MNIST's format), 'npz:PATH' (arrays x and y), 'package.module:function' or 'file.py:function'
            (tensors (x, y), x alone, or a Dataset).
        data_options: keyword arguments of that function, or of folder (size in px, channels, mean, std, in units of
            values from 0 to 1) or idx (split: train or test).
        data_take: which of the values that the function gives are x and y, counted from 0, e.g. [0, 1]; null for all.
        input_transform: what the world does to the input: Rotate, Zoom, Shear, Translate, Flip, Blur, Noise,
            Brightness, Contrast with their options, or your own by import path; a list for several in turn.
        parameters: what the weights depend on: name to Angle, Interval, LogInterval or Categorical with unit, range and
            anchor, e.g. {angle: Angle(deg)}; null for those of the input transform.
        transform: how they depend on it: Warp, LowRank, Scale, Subspace, Lie, PerFilter with their options, added.
        select: names or glob patterns of the tensors to transform; null for all that the transform can handle.
        objective: supervised (labels), distillation (no labels), or an import path to a loss (output, target).
        objective_options: of the objective, e.g. {temperature: 2.0} of distillation, by name.
        trainer: how long and how to train.
        out: folder for model.safetensors, fit.yaml and the checkpoint.
    """

    data: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    data_take: list[int] | None = None
    input_transform: Recipe = None
    parameters: dict[str, Any] | None = None
    transform: Recipe = "Warp + LowRank(8) + Scale"
    select: list[str] | str | None = None
    objective: str = "supervised"
    objective_options: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer = field(default_factory=Trainer)
    out: str = "run"


@dataclass
class Judged(Saved):
    """A saved network and labelled data that it has not seen.

    Args:
        test_data: images to judge on, which nothing has been trained on; as data of fit.
        test_data_options: as data_options of fit.
        test_data_take: as data_take of fit.
        input_transform: what the world does to the input; as for fit.
        batch_size: images in a call.
    """

    test_data: str | None = None
    test_data_options: dict[str, Any] = field(default_factory=dict)
    test_data_take: list[int] | None = None
    input_transform: Recipe = None
    batch_size: int = 500


@dataclass
class Evaluate(Judged):
    """Judge a trained network over a grid of θ, beside the alternatives.

    Args:
        grid: values of each parameter, all combinations; null for 36 of one, 9 of two, 5 of more.
        baselines: which of frozen and inverse to run.
        rounds: how often each network is timed; 0 leaves the times out.
        report: write report.html as well.
        out: folder for evaluation.json, evaluate.yaml and report.html.
    """

    grid: int | None = None
    baselines: list[str] = field(default_factory=lambda: ["frozen", "inverse"])
    rounds: int = 15
    report: bool = False
    out: str = "run"


@dataclass
class Compare(Judged):
    """Train the alternatives with equal budgets, and judge all of them over a grid of θ.

    Args:
        data: images to train on; as for fit.
        data_options: as for fit.
        data_take: as for fit.
        parameters: what the weights depend on; as for fit.
        objective: of every training; as for fit.
        objective_options: as for fit.
        trainer: how long and how to train each; as for fit.
        one4all: train the row One4All: all weights fine-tuned on transformed images.
        one4one: at how many settings of each parameter to train a network of its own; 0 leaves the row out.
        unknown: also train a head that estimates θ, and show what is reached when nobody knows it.
        grid: values of each parameter, all combinations; null for 36 of one, 9 of two, 5 of more.
        rounds: how often each network is timed; 0 leaves the times out.
        report: write comparison.html as well.
        out: folder for comparison.json, compare.yaml, comparison.html and the checkpoints. With a model, that one is
            taken as trained; without, transform says what to train.
    """

    data: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    data_take: list[int] | None = None
    parameters: dict[str, Any] | None = None
    objective: str = "supervised"
    objective_options: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer = field(default_factory=Trainer)
    one4all: bool = True
    one4one: int = 0
    unknown: bool = False
    grid: int | None = None
    rounds: int = 15
    report: bool = False
    out: str = "run"


@dataclass
class Infer(Judged):
    """Estimate θ from data when nobody knows it, and run the network there.

    Args:
        apply: a trial: transform the images by input_transform at this setting first, by parameter, in its unit; what
            is found is compared with it.
        known: values of parameters that are known, by name; the others are inferred.
        method: head (trained with trainer.predict_parameter), search, or both; null takes both where there is a head.
        pool: who shares a θ: nobody (image), all images (batch), or neighbours in time (stream, the images in order).
        energy: what tells that θ is right: entropy (the network is sure), or agreement (of neighbouring θ).
        candidates: values of each parameter that are tried; null for 36 of one, fewer of several.
        limit: images to read; null for all.
        to: table to write, *.csv; null for 'inferred.csv' beside the model.
    """

    apply: dict[str, float | str] = field(default_factory=dict)
    known: dict[str, float | str] = field(default_factory=dict)
    method: Literal["head", "search", "both"] | None = None
    pool: Literal["image", "batch", "stream"] = "image"
    energy: Literal["entropy", "agreement"] = "entropy"
    candidates: int | None = None
    limit: int | None = None
    to: str | None = None


@dataclass
class Bake(Saved):
    """Make plain networks of constant weights, one for each setting.

    Args:
        at: one setting, by parameter, in its unit, e.g. --at.angle 30.
        settings: file with many settings: names to settings ({gate-7: {angle: 30}}) or a list of settings in YAML or
            JSON, or CSV whose first line names the parameters (and a column name, if the settings have names).
        each: many settings: so many values of each parameter, all combinations.
        form: what is written: the network's weights (safetensors), a delta (what differs from the base, a few
            kilobytes), or onnx.
        input_shape: shape of one sample, for onnx; null takes that of the training data.
        overwrite: replace what another model or another form has left in the folder.
        to: file for one setting, folder for many; null for 'baked' beside the model.
    """

    at: dict[str, float | str] = field(default_factory=dict)
    settings: str | None = None
    each: int | None = None
    form: Literal["weights", "delta", "onnx"] = "weights"
    input_shape: list[int] | None = None
    overwrite: bool = False
    to: str | None = None


@dataclass
class Export(Saved):
    """Write the network as one graph that takes θ as an input.

    Args:
        format: onnx, or program (torch.export, *.pt2).
        per_sample: one θ for each sample of a batch, in place of one for all.
        dynamic_batch: leave the number of samples open.
        constant_weights: keep the weights of convolutions constant, with small inputs that follow θ, for targets that
            ask for it (onnx alone, and where the transform allows it).
        input_shape: shape of one sample, e.g. [1, 28, 28]; null takes that of the training data.
        to: file to write, *.onnx or *.pt2; null for 'model.onnx' or 'model.pt2' beside the model.
    """

    format: Literal["onnx", "program"] = "onnx"
    per_sample: bool = False
    dynamic_batch: bool = True
    constant_weights: bool = False
    input_shape: list[int] | None = None
    to: str | None = None


@dataclass
class Summary(Saved):
    """Show what is conditioned, and how.

    Args:
        input_shape: shape of one sample, from which the layers' sizes are read; null takes that of the training data.
    """

    input_shape: list[int] | None = None


@dataclass
class Serve(Saved):
    """Answer requests over HTTP, each with its own θ.

    Args:
        input_shape: shape of one sample, e.g. [1, 28, 28], null for an axis left open; null takes that of the training
            data.
        input_dtype: of the input's numbers.
        host: network interface; the default is reached from this machine alone.
        port: TCP port; 0 takes a free one.
        max_batch: requests in one call of the network.
        max_wait: how long the first request of a batch waits for others, in ms.
        max_body: largest body of a request, in MiB.
        max_queue: requests that may wait.
        timeout: longest time to an answer, in s.
        grace: time that requests at hand get at the end, in s.
        log_level: uvicorn's.
    """

    input_shape: list[int | None] | None = None
    input_dtype: Literal["float32", "float64", "int64"] = "float32"
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 64
    max_wait: float = 2.0
    max_body: float = 16.0
    max_queue: int = 1024
    timeout: float = 30.0
    grace: float = 10.0
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "warning"


@dataclass
class Doctor(Saved):
    """Say what is installed, what the machine offers, and whether a model file can be used."""


COMMANDS: dict[str, tuple[type[Network], str]] = {
    "fit": (Fit, "train a transform of a frozen network's weights"),
    "evaluate": (Evaluate, "judge it over a grid of θ, beside the alternatives"),
    "compare": (Compare, "the alternatives, trained with equal budgets, in one table"),
    "infer": (Infer, "θ from data when nobody knows it"),
    "bake": (Bake, "plain networks of constant weights, one for each setting"),
    "export": (Export, "one ONNX file or torch program that takes θ as an input"),
    "summary": (Summary, "what is conditioned, and how"),
    "serve": (Serve, "answer requests over HTTP, each with its own θ"),
    "doctor": (Doctor, "what is installed, and whether a model file can be used"),
}
"""Name to options and what it does, in the order of a user's path."""


Options = TypeVar("Options", bound=Network)


@dataclass(frozen=True)
class Job(Generic[Options]):
    """A command, its options, and what the configuration says to other commands."""

    command: str
    options: Options
    rest: dict[str, Any] = field(default_factory=dict)

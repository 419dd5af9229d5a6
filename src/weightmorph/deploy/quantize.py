"""Static int8 quantisation of a baked network's ONNX file, with its accuracy beside the float one's."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ExecutionError, InputError, require
from ..storage import listed
from .export import computed_weights

__all__ = ["Quantized", "quantize_onnx"]

PURPOSE = "quantising an ONNX file"

Batch = dict[str, np.ndarray[Any, Any]]
Session = Callable[[Batch], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Quantized:
    """What [`quantize_onnx`][weightmorph.quantize_onnx] wrote, and what it costs.

    Attributes:
        path: the int8 file.
        bytes_float: size of the file that it was made from.
        bytes_int8: its own size.
        images: how many the accuracies were found on; 0 if none were given.
        accuracy_float: share of images that the float network gets right; None if none were given.
        accuracy_int8: that of the int8 network.
        agreement: share of images on which both say the same.
    """

    path: Path
    bytes_float: int
    bytes_int8: int
    images: int = 0
    accuracy_float: float | None = None
    accuracy_int8: float | None = None
    agreement: float | None = None

    def __str__(self) -> str:
        """In one line.

        Example:
            >>> print(Quantized(Path("int8.onnx"), 4000, 1100, 200, 0.985, 0.98, 0.995))
            int8.onnx: 1,100 bytes against 4,000; on 200 images 98.0 % right against 98.5 %, the same answer on 99.5 %
        """
        told = f"{self.path.name}: {self.bytes_int8:,} bytes against {self.bytes_float:,}"
        if self.accuracy_int8 is None or self.accuracy_float is None or self.agreement is None:
            return told
        return (
            f"{told}; on {self.images:,} images {100 * self.accuracy_int8:.1f} % right against "
            f"{100 * self.accuracy_float:.1f} %, the same answer on {100 * self.agreement:.1f} %"
        )


def quantize_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    calibration: Any,
    *,
    data: tuple[Tensor, Tensor] | None = None,
    batch_size: int = 32,
    per_channel: bool = True,
) -> Quantized:
    r"""Quantise an ONNX file with constant weights to int8, by ONNX Runtime.

    Weights become $\mathrm{round}(w / s)$ with one scale s per output channel; activations get a fixed scale and zero
    from the ranges that the calibration inputs show. The file holds pairs of QuantizeLinear and DequantizeLinear, which
    runtimes for accelerators read as well. The weights have to be known beforehand: bake a setting and export that
    ([`bake_many`][weightmorph.bake_many] with `form="onnx"`), or export the model with `constant_weights=True`.

    Args:
        source: the float file.
        target: where to, customarily `*.onnx`; written whole or not at all.
        calibration: inputs like those to come, transformed as they will be: a tensor `(N, …)`, or batches of them, each
            a tensor, a pair `(x, y)` or a mapping of the graph's inputs by name. A hundred do.
        data: images `(N, …)` and labels `(N,)` on which both networks' accuracy is found; the first output's largest
            entry along axis 1 counts as the answer.
        batch_size: in which calibration and data are run; a graph with a fixed batch has its own.
        per_channel: one scale per output channel; False, one per tensor, for targets that know no other.

    Returns:
        sizes, accuracies and how often both networks agree.

    Raises:
        ExecutionError: if the file is no ONNX model that runs, or has a layer whose weight follows an input.
        InputError: if there is nothing to calibrate on, or inputs do not fit the graph.
        MissingDependencyError: if onnx or onnxruntime is not installed.
        OSError: if a file cannot be read or written.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        CVPR 2018, arXiv:1712.05877.
    """
    for package in ("onnx", "onnxruntime"):
        require(package, "onnx", PURPOSE)
    source, target = Path(source), Path(target)
    _refuse_computed(source)
    inputs = _inputs(source)
    batches = list(_batches(calibration, inputs, batch_size))
    if not batches:
        raise InputError("calibration: expected at least one batch of inputs, got none")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        made = Path(folder) / target.name
        _quantized(source, made, batches, per_channel)
        found = Quantized(target, source.stat().st_size, made.stat().st_size)
        if data is not None:
            found = _judged(found, (_session(source), _session(made)), data, inputs, batch_size)
        os.replace(made, target)
    return found


def _refuse_computed(source: Path) -> None:
    onnx_ir = require("onnx_ir", "onnx", PURPOSE)
    if not source.exists():
        raise FileNotFoundError(f"no file {source}")
    try:
        model = onnx_ir.load(source)
    except Exception as error:  # whatever a parser says to another file
        raise ExecutionError(f"{source}: not an ONNX model: {error}") from error
    computed = computed_weights(model)
    if computed:
        raise ExecutionError(
            f"{source}: the weights of {listed(computed)} are computed from the graph's inputs, and static "
            "quantisation needs to know them: bake a setting and export that, bake_many(model, …, form='onnx'), or "
            "export with constant_weights=True"
        )


def _inputs(source: Path) -> dict[str, list[Any]]:
    """Names and shapes of the graph's inputs."""
    return {i.name: list(i.shape) for i in _runtime(source).get_inputs()}


def _runtime(path: Path) -> Any:
    onnxruntime = require("onnxruntime", "onnx", PURPOSE)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no common base
        raise ExecutionError(f"{path}: ONNX Runtime cannot run it: {error}") from error


def _session(path: Path) -> Session:
    session = _runtime(path)

    def run(batch: Batch) -> np.ndarray[Any, Any]:
        first: np.ndarray[Any, Any] = session.run(None, batch)[0]
        return first

    return run


def _batches(calibration: Any, inputs: Mapping[str, list[Any]], size: int) -> Iterator[Batch]:
    """Calibration inputs by name, as arrays."""
    if isinstance(calibration, Tensor):
        calibration = calibration.split(size)
    if isinstance(calibration, Mapping) or not isinstance(calibration, Iterable):
        raise InputError(
            "calibration: expected a tensor of inputs or batches of them, each a tensor, a pair (x, y) or a mapping of "
            f"inputs by name, got {type(calibration).__name__}"
        )
    for item in calibration:
        batch = item if isinstance(item, Mapping) else {next(iter(inputs)): item[0] if _pair(item) else item}
        if sorted(batch) != sorted(inputs):
            raise InputError(
                f"calibration: the graph's inputs are {', '.join(inputs)}, and a batch holds {', '.join(batch)}; give "
                "batches as mappings of inputs by name"
            )
        yield from _cut({name: _array(name, value) for name, value in batch.items()}, inputs)


def _pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == 2


def _array(name: str, value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(value, Tensor | np.ndarray):
        raise InputError(f"input {name}: expected a tensor, got {type(value).__name__}")
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _cut(batch: Batch, inputs: Mapping[str, list[Any]]) -> Iterator[Batch]:
    """A batch in pieces as a graph of a fixed batch size takes them; what is left over is left out."""
    fixed = _fixed(inputs)
    length = max((len(v) for v in batch.values() if v.ndim), default=1)
    if fixed is None:
        yield batch
        return
    for start in range(0, length - fixed + 1, fixed):
        yield {n: v[start : start + fixed] if v.ndim and len(v) == length else v for n, v in batch.items()}


def _fixed(inputs: Mapping[str, list[Any]]) -> int | None:
    """The graph's own batch size, if it has one."""
    shape = next(iter(inputs.values()))
    return shape[0] if shape and isinstance(shape[0], int) else None


def _quantized(source: Path, target: Path, batches: list[Batch], per_channel: bool) -> None:
    """The library's two steps: shapes and folding, then scales."""
    library = require("onnxruntime.quantization", "onnx", PURPOSE)

    class Reader(library.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Batch | None:
            return next(self.left, None)

    ready = target.with_name("ready.onnx")
    try:
        with _silent():
            library.quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
            library.quantize_static(
                str(ready), str(target), Reader(), quant_format=library.QuantFormat.QDQ, per_channel=per_channel,
                activation_type=library.QuantType.QInt8, weight_type=library.QuantType.QInt8,
            )  # fmt: skip
    except Exception as error:  # inputs that do not fit, operations that are not known: the library's own words
        raise ExecutionError(f"{source}: ONNX Runtime cannot quantise it: {error}") from error
    finally:
        ready.unlink(missing_ok=True)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The library advises on the root logger what is done here anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _judged(
    found: Quantized,
    sessions: tuple[Session, Session],
    data: tuple[Tensor, Tensor],
    inputs: Mapping[str, list[Any]],
    size: int,
) -> Quantized:
    """With both networks' accuracies."""
    x, y = data
    if len(inputs) != 1 or len(x) != len(y) or not len(x):
        raise InputError(
            f"data: expected images for the graph's one input and as many labels, got {len(x)} and {len(y)} for "
            f"{', '.join(inputs)}"
        )
    answers: list[list[np.ndarray[Any, Any]]] = [[], []]
    step = _fixed(inputs) or size
    for start in range(0, len(x), step):
        piece = x[start : start + step]
        # A graph with a fixed batch gets a whole one; what was repeated to fill it is dropped again.
        whole = piece if _fixed(inputs) is None else piece[np.arange(step) % len(piece)]
        for session, mine in zip(sessions, answers, strict=True):
            mine.append(session({next(iter(inputs)): _array("x", whole)}).argmax(1)[: len(piece)])
    float_, int8 = (np.concatenate(mine) for mine in answers)
    labels = y.detach().cpu().numpy()
    return Quantized(
        found.path, found.bytes_float, found.bytes_int8, len(labels), float((float_ == labels).mean()),
        float((int8 == labels).mean()), float((float_ == int8).mean()),
    )  # fmt: skip

"""Static int8 quantisation of an ONNX file with constant weights."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ExecutionError, InputError, require
from ..io import replacing
from ..storage import listed
from .export import computed_weights

__all__ = ["Quantized", "quantize_onnx"]

PURPOSE = "quantising an ONNX file"

Batch = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Quantized:
    """The file that [`quantize_onnx`][weightmorph.quantize_onnx] wrote.

    Attributes:
        path: the int8 file.
        bytes_float: size of the float file that it was made from.
        bytes_int8: its own size.

    Example:
        >>> print(Quantized(Path("int8.onnx"), 4000, 1100))
        int8.onnx: 1,100 bytes against 4,000
    """

    path: Path
    bytes_float: int
    bytes_int8: int

    def __str__(self) -> str:
        return f"{self.path.name}: {self.bytes_int8:,} bytes against {self.bytes_float:,}"


def quantize_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    calibration: Any,
    *,
    batch_size: int = 32,
    per_channel: bool = True,
) -> Quantized:
    r"""Quantise an ONNX file with constant weights to int8, by ONNX Runtime.

    Weights become $\mathrm{round}(w / s)$ with one scale s per output channel; activations get a fixed scale and zero
    from the ranges that the calibration inputs show. The file holds pairs of QuantizeLinear and DequantizeLinear, which
    runtimes for accelerators read as well. The weights have to be known beforehand: bake a setting and export that
    ([`bake_many`][weightmorph.bake_many] with `form="onnx"`), or export the model with `constant_weights=True`.

    Run both files on labelled data before you use the int8 one: how much accuracy it costs depends on the network, and
    on how well the calibration inputs match those to come.

    Args:
        source: the float file.
        target: where to, customarily `*.onnx`; written atomically.
        calibration: inputs like those to come, transformed as they will be: a tensor `(N, …)`, or batches of them, each
            a tensor, a pair `(x, y)` or a mapping of the graph's inputs by name. A hundred are enough.
        batch_size: in which a tensor of calibration inputs is run; a graph with a fixed batch has its own.
        per_channel: one scale per output channel; False, one per tensor, for targets that know no other.

    Returns:
        the file and both sizes.

    Raises:
        ExecutionError: if the file is no ONNX model that runs, or has a layer whose weight follows an input.
        InputError: if there is nothing to calibrate on, or inputs do not fit the graph.
        MissingDependencyError: if onnx or onnxruntime is not installed.
        OSError: if a file cannot be read or written.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        CVPR 2018, arXiv:1712.05877.

    Example:
        >>> import torch, weightmorph as wm
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 10))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
        >>> x = torch.randn(64, 1, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     baked = wm.bake_many(model, {"angle": [30]}, folder, form="onnx", example=x[:1])
        ...     int8 = quantize_onnx(baked.files["angle=30"], f"{folder}/int8.onnx", x)
        >>> int8.path.name
        'int8.onnx'
    """
    for package in ("onnx", "onnxruntime"):
        require(package, "onnx", PURPOSE)
    source, target = Path(source), Path(target)
    _refuse_computed(source)
    batches = list(_batches(calibration, _input_shapes(source), batch_size))
    if not batches:
        raise InputError("calibration: expected at least one batch of inputs, got none")
    with replacing(target) as temporary:
        _quantize(source, temporary, batches, per_channel)
    return Quantized(target, source.stat().st_size, target.stat().st_size)


def _refuse_computed(source: Path) -> None:
    onnx_ir = require("onnx_ir", "onnx", PURPOSE)
    if not source.exists():
        raise FileNotFoundError(f"no file {source}")
    try:
        model = onnx_ir.load(source)
    except Exception as error:  # a parser raises many kinds for another file
        raise ExecutionError(f"{source}: not an ONNX model: {error}") from error
    computed = computed_weights(model)
    if computed:
        raise ExecutionError(
            f"{source}: the weights of {listed(computed)} are computed from the graph's inputs, and static "
            "quantisation needs to know them: bake a setting and export that, bake_many(model, …, form='onnx'), or "
            "export with constant_weights=True"
        )


def _input_shapes(source: Path) -> dict[str, list[Any]]:
    """Names and shapes of the graph's inputs; an open axis has a name or None."""
    onnxruntime = require("onnxruntime", "onnx", PURPOSE)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no common base
        raise ExecutionError(f"{source}: ONNX Runtime cannot run it: {error}") from error
    return {i.name: list(i.shape) for i in session.get_inputs()}


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
        pair = isinstance(item, tuple | list) and len(item) == 2
        batch = item if isinstance(item, Mapping) else {next(iter(inputs)): item[0] if pair else item}
        if sorted(batch) != sorted(inputs):
            raise InputError(
                f"calibration: the graph's inputs are {', '.join(inputs)}, and a batch holds {', '.join(batch)}; give "
                "batches as mappings of inputs by name"
            )
        yield from _fixed_size({name: _array(name, value) for name, value in batch.items()}, inputs)


def _array(name: str, value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(value, Tensor | np.ndarray):
        raise InputError(f"input {name}: expected a tensor, got {type(value).__name__}")
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _fixed_size(batch: Batch, inputs: Mapping[str, list[Any]]) -> Iterator[Batch]:
    """Split a batch for a graph with a fixed batch size; an incomplete last part is left out."""
    shape = next(iter(inputs.values()))
    if not shape or not isinstance(shape[0], int):
        yield batch
        return
    fixed = shape[0]
    length = max((len(v) for v in batch.values() if v.ndim), default=1)
    for start in range(0, length - fixed + 1, fixed):
        yield {n: v[start : start + fixed] if v.ndim and len(v) == length else v for n, v in batch.items()}


def _quantize(source: Path, target: Path, batches: list[Batch], per_channel: bool) -> None:
    """Run ONNX Runtime's two steps: shapes and folding, then scales."""
    library = require("onnxruntime.quantization", "onnx", PURPOSE)

    class Reader(library.CalibrationDataReader):  # type: ignore[misc, name-defined]  # it carries no annotations
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Batch | None:
            return next(self.left, None)

    try:
        with _quiet_root_logger(), tempfile.TemporaryDirectory() as folder:
            prepared = f"{folder}/prepared.onnx"
            library.quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
            library.quantize_static(
                prepared, str(target), Reader(), quant_format=library.QuantFormat.QDQ, per_channel=per_channel,
                activation_type=library.QuantType.QInt8, weight_type=library.QuantType.QInt8,
            )  # fmt: skip
    except Exception as error:  # inputs that do not fit, or unknown operations: the library's own words
        raise ExecutionError(f"{source}: ONNX Runtime cannot quantise it: {error}") from error


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """The library logs advice that is already followed here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

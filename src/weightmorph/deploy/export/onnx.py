"""ONNX files: of a model with θ as an input, and of many baked networks that differ in their weights alone."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ExecutionError, require
from ...io import plain, replacing
from ...model import Conditioned
from ...storage import digest, listed, versions
from .program import BATCH, Call, call_of, inputs_of, names_of, program_of

__all__ = ["PlainGraph", "computed_weights", "export_onnx", "save_onnx"]

LAYERS = ("Conv", "ConvTranspose", "Gemm")
"""Operations with a weight, which is their second input."""


def export_onnx(
    model: Conditioned,
    path: str | os.PathLike[str],
    args: Any,
    *,
    per_sample: bool = False,
    dynamic_batch: bool = True,
    constant_weights: bool = False,
) -> None:
    """Write the model as an ONNX file whose inputs are the base's own and one for each parameter.

    The inputs keep their names; the outputs are `output`, or `output_0`, `output_1` … Encoding θ is part of the graph,
    so a caller passes degrees. The file's metadata hold, under `weightmorph`, the parameters with their units, ranges
    and encodings as JSON. A model of more than 2 GB gets a second file, as ONNX demands. All are written whole or not
    at all.

    Args:
        model, args, per_sample, dynamic_batch, constant_weights: as for
            [`export_program`][weightmorph.export_program]. With `constant_weights` the graph is also checked before it
            is written: no convolution and no linear layer in it has a weight that depends on an input.
        path: where to, customarily `*.onnx`.

    Raises:
        ExecutionError: if the network cannot be traced, holds an operation that ONNX does not know, or, with
            `constant_weights`, has a layer that cannot be given constant weights.
        MissingDependencyError: if onnx or onnxscript is not installed.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile, weightmorph as wm
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_onnx(model, f"{folder}/net.onnx", torch.zeros(2, 1, 8, 8))
        ...     os.listdir(folder)
        ['net.onnx']
    """
    _require()
    program = _exported(call_of(model, args, per_sample, dynamic_batch, constant_weights))
    if constant_weights:
        computed = computed_weights(program.model)
        if computed:
            raise ExecutionError(
                f"constant_weights: the weights of {listed(computed)} are computed in the network itself, from its "
                "inputs; export without constant_weights, or bake one setting: model.bake(…)"
            )
    about = {
        "parameters": model.space.config(),
        "per_sample": per_sample,
        "constant_weights": constant_weights,
        "transform": model.recipe,
        "written_by": versions(),
    }
    save_onnx(program, path, about)


def _require() -> None:
    for package in ("onnx", "onnxscript"):
        require(package, "onnx", "exporting to ONNX")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence two warnings of torch's exporter: it uses a tree that torch has deprecated, and it objects to one name
    for the first axis of several inputs, which is intended here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        warnings.filterwarnings("ignore", message="# The axis name: batch")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def _exported(call: Call, optimize: bool = True) -> Any:
    """A call as an ONNX program."""
    program = program_of(call)
    count = len(program.graph_signature.user_outputs)
    outputs = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    with _quiet():
        try:
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, output_names=outputs, optimize=optimize,
                dynamic_shapes=call.shapes(lambda: BATCH),
            )  # fmt: skip
        except Exception as error:  # the exporter raises many kinds for an operation that it does not know
            raise ExecutionError(f"the model cannot be written as ONNX: {_first_cause(error)}") from error
    assert exported is not None
    return exported


def save_onnx(program: Any, path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
    """Write an ONNX program with its metadata, atomically."""
    program.model.metadata_props["weightmorph"] = json.dumps(plain(dict(about)), ensure_ascii=False)
    with replacing(path) as temporary:
        program.save(temporary)


def computed_weights(model: Any) -> list[str]:
    """The convolutions and linear layers of a graph whose weight depends on one of its inputs.

    Args:
        model: an `onnx_ir.Model`; functions are inlined, as the exporter leaves it.

    Returns:
        for each such node, its operation and the name of its weight.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> computed_weights(PlainGraph(net, torch.zeros(1, 4)).model)
        []
    """
    dependent = {id(value) for value in model.graph.inputs}
    computed = []
    for node in model.graph:
        if any(value is not None and id(value) in dependent for value in node.inputs):
            dependent.update(id(value) for value in node.outputs)
        if node.op_type in LAYERS and len(node.inputs) > 1 and id(node.inputs[1]) in dependent:
            computed.append(f"{node.op_type} {node.inputs[1].name}")
    return computed


def _first_cause(error: BaseException) -> str:
    """The message of the first cause; the exporter's own message is a page about itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


class PlainGraph:
    """One plain network's ONNX graph, whose weights can be exchanged: that is many times as fast as exporting anew.

    Args:
        net: the network; it is traced, and left as it is.
        args: an example of its inputs, as for [`export_onnx`][weightmorph.export_onnx].
        dynamic_batch: leave the batch's size open.

    Raises:
        ExecutionError: if the network cannot be traced, or holds an operation that ONNX does not know.
        MissingDependencyError: if onnx or onnxscript is not installed.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> graph = PlainGraph(net, torch.zeros(1, 4))
        >>> graph.fits(nn.Linear(4, 2).state_dict()), graph.fits(nn.Linear(4, 3).state_dict())
        (True, False)
    """

    def __init__(self, net: nn.Module, args: Any, dynamic_batch: bool = True) -> None:
        _require()
        positional, keyword, size = inputs_of(args, dynamic_batch)
        names = names_of(net, positional, keyword)
        call = Call(net.eval(), positional, keyword, names, size if dynamic_batch else None)
        # Not optimised: the optimiser would fold the norm layers into the weights.
        self.model = _exported(call, optimize=False).model
        self._state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
        initializers = self.model.graph.initializers
        known = {digest(tensor) for name, tensor in self._state.items() if name in initializers}
        # Where the exporter has kept one of two equal tensors for both, neither can be exchanged alone.
        self._merged = any(digest(t) in known for name, t in self._state.items() if name not in initializers)

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the graph can take these weights: it holds every tensor that differs, and in the same shape."""
        initializers = self.model.graph.initializers
        if self._merged or list(state) != list(self._state):
            return False
        changed = [name for name, value in state.items() if not _equal(value, self._state[name])]
        return all(name in initializers and state[name].shape == self._state[name].shape for name in changed)

    def save(self, state: Mapping[str, Tensor], path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        """Write the graph with these weights, optimised, atomically.

        Args:
            state: the network's `state_dict`, for which `fits` is true.
            path: where to.
            about: goes into the metadata, under `weightmorph`.
        """
        import onnx_ir

        program = torch.onnx.ONNXProgram(self.model.clone(), None)
        initializers = program.model.graph.initializers
        for name, value in state.items():
            if name in initializers:
                array = value.detach().cpu().contiguous().numpy()
                initializers[name].const_value = onnx_ir.tensor(array, name=name)
        with _quiet():
            program.optimize()
        save_onnx(program, path, about)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.detach(), other)

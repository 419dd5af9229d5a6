"""Graphs that run without this library, with θ as an input: `torch.export` and ONNX."""

from __future__ import annotations

import copy
import inspect
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from .conditioned import Conditioned
from .errors import ExecutionError, WeightmorphError, require
from .storage import versions
from .transforms.registry import plain

__all__ = ["export_onnx", "export_program"]

BATCH = "batch"


def export_program(
    model: Conditioned,
    args: Any,
    *,
    per_sample: bool = False,
    dynamic_batch: bool = True,
    strict: bool = False,
) -> ExportedProgram:
    r"""The model as one graph $(x, \theta) \mapsto f(x; W(\theta))$, with θ in the parameters' own units.

    Encoding θ and making the weights are part of the graph. What depends on looking at values is not: θ is not checked
    against its range, samples that share a setting are not gathered, and memory has no limit.

    Args:
        model: the conditioned model; left as it is.
        args: an example of the base's inputs: one tensor, a tuple of positional inputs, or a dict of keyword inputs.
        per_sample: one θ per sample, each parameter a tensor `(B,)`; otherwise one for the batch, a tensor `()`.
        dynamic_batch: leave B open. Every input whose first axis is as long as the first input's is taken to be
            batched. False fixes B to the example's.
        strict: as in `torch.export.export`.

    Returns:
        the program. `program.module()` is called as the model is, with tensors for θ; a `Categorical` takes indices.

    Raises:
        ExecutionError: if the network cannot be traced so; torch's own words follow.

    Example:
        >>> import weightmorph as wm
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
        >>> program = export_program(model, torch.zeros(2, 1, 8, 8), per_sample=True)
        >>> program.module()(torch.zeros(5, 1, 8, 8), angle=torch.arange(5.0)).shape
        torch.Size([5, 10])
    """
    return _program(_call(model, args, per_sample, dynamic_batch), strict)


def export_onnx(
    model: Conditioned,
    path: str | os.PathLike[str],
    args: Any,
    *,
    per_sample: bool = False,
    dynamic_batch: bool = True,
) -> None:
    """Write the model as an ONNX file whose inputs are the base's own and one per parameter.

    The inputs keep their names, the outputs are `output`, or `output_0`, `output_1` … The file's metadata hold, under
    `weightmorph`, the parameters with their units and ranges as JSON. The file is written beside `path` first and then
    moved. A model of more than 2 GB gets a second file beside it, as ONNX demands.

    Args:
        model, args, per_sample, dynamic_batch: as for [`export_program`][weightmorph.export_program].
        path: where to, customarily `*.onnx`.

    Raises:
        ExecutionError: if the network cannot be traced, or holds an operation that ONNX does not know.
        MissingDependencyError: if onnx or onnxscript is not installed.
        OSError: if the file cannot be written.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "onnx", "exporting to ONNX")
    call = _call(model, args, per_sample, dynamic_batch)
    program = _program(call, strict=False)
    count = len(program.graph_signature.user_outputs)
    outputs = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    with warnings.catch_warnings():
        # Torch's exporter copies a tree of a kind that torch itself has deprecated, and minds that one name is given to
        # the first axis of several inputs, which is what is meant.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        warnings.filterwarnings("ignore", message="# The axis name: batch")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            made = torch.onnx.export(
                program, dynamo=True, verbose=False, output_names=outputs, dynamic_shapes=call.shapes(lambda: BATCH)
            )
        except Exception as error:  # whatever the exporter says to an operation it does not know
            raise ExecutionError(f"the model cannot be written as ONNX: {_last(error)}") from error
    assert made is not None
    about = {
        "parameters": model.space.config(),
        "per_sample": per_sample,
        "transform": model.recipe,
        "written_by": versions(),
    }
    made.model.metadata_props["weightmorph"] = json.dumps(plain(about), ensure_ascii=False)
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        made.save(Path(folder) / path.name)
        # The model comes last: it is of no use without its data.
        for file in sorted(Path(folder).iterdir(), key=lambda f: f.name == path.name):
            os.replace(file, path.parent / file.name)


@dataclass(frozen=True)
class _Call:
    """An example call of the model, under the names of its inputs."""

    module: nn.Module
    positional: tuple[Any, ...]
    keyword: dict[str, Any]
    names: list[str]
    size: int | None

    def shapes(self, axis: Callable[[], Any]) -> dict[str, Any] | None:
        """For every input, which axis is the batch; None where none is left open."""
        if self.size is None:
            return None
        batch = axis()

        def shape(value: Any) -> dict[int, Any] | None:
            if not isinstance(value, Tensor):
                return None
            return {0: batch} if value.dim() and value.shape[0] == self.size else {}

        values = dict(zip(self.names, self.positional, strict=True)) | self.keyword
        return {name: pytree.tree_map(shape, value) for name, value in values.items()}


class _Traced(nn.Module):
    """The model and, so that its tensors are parameters of the program and not nameless constants, the base."""

    def __init__(self, model: Conditioned) -> None:
        super().__init__()
        self.model, self.base = model, model._fixed[1]

    @classmethod
    def under(cls, names: Sequence[str], keywords: Sequence[str]) -> type[_Traced]:
        """With a signature that export can read: the inputs by their names, then θ."""

        def forward(self: _Traced, *args: Any, **kwargs: Any) -> Any:
            return self.model(*args, **kwargs)

        positional = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
        keyword = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in keywords]
        forward.__signature__ = inspect.Signature(positional + keyword)  # type: ignore[attr-defined]
        return type(cls.__name__, (cls,), {"forward": forward})


def _call(model: Conditioned, args: Any, per_sample: bool, dynamic_batch: bool) -> _Call:
    """The example, with at least two samples if their number is to be left open: export takes a 1 for a constant."""
    if not isinstance(model, Conditioned):
        raise ExecutionError(f"expected a model made by condition(), got {type(model).__name__}")
    positional: tuple[Any, ...] = () if isinstance(args, dict) else args if isinstance(args, tuple) else (args,)
    keyword = dict(args) if isinstance(args, dict) else {}
    batched = [v for v in pytree.tree_leaves((positional, keyword)) if isinstance(v, Tensor) and v.dim()]
    if not batched:
        raise ExecutionError("args: expected an example input, a tuple of them, or a dict of keyword inputs")
    size = batched[0].shape[0]
    if dynamic_batch and size == 1:

        def doubled(value: Any) -> Any:
            one = isinstance(value, Tensor) and value.dim() and value.shape[0] == 1
            return torch.cat((value, value)) if one else value

        positional, keyword = pytree.tree_map(doubled, (positional, keyword))
        size = 2
    names = _names(model, positional, keyword)
    theta = _theta(model, size if per_sample else None)
    # A copy, for tracing goes through the model's one fixed clone, and in eval mode, which the base is in anyway.
    module = _Traced.under(names, [*keyword, *theta])(copy.deepcopy(model).eval())
    return _Call(module, positional, keyword | theta, names, size if dynamic_batch else None)


def _names(model: Conditioned, positional: Sequence[Any], keyword: Mapping[str, Any]) -> list[str]:
    """What the base calls its positional inputs."""
    signature = inspect.signature(model.frozen().forward)
    try:
        signature.bind(*positional, **keyword)
    except TypeError as error:
        raise ExecutionError(f"args: the example does not fit the network's forward{signature}: {error}") from error
    known = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [known[i] if i < len(known) else f"input_{i}" for i in range(len(positional))]


def _theta(model: Conditioned, size: int | None) -> dict[str, Tensor]:
    """θ at the anchor, in the type in which it is encoded."""
    dtype = torch.promote_types(model.dtype, torch.float32)
    shape = () if size is None else (size,)
    return {
        name: torch.full(shape, value, dtype=dtype, device=model.view.device)
        for name, value in model.space.anchor.items()
    }


def _program(call: _Call, strict: bool) -> ExportedProgram:
    shapes = call.shapes(lambda: Dim(BATCH))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Strict mode sees the scope of our own copy being filled and emptied, which is as it should be.
            warnings.filterwarnings("ignore", message="While compiling, we found certain side effects")
            return torch.export.export(call.module, call.positional, call.keyword, dynamic_shapes=shapes, strict=strict)
    except WeightmorphError:
        raise
    except Exception as error:  # dynamo, fake tensors and the solver of shapes each have errors of their own
        hint = "; if the network fixes its batch size, try dynamic_batch=False" if call.size is not None else ""
        raise ExecutionError(
            f"the model cannot be traced by torch.export{hint}; or bake one setting, model.bake(…), and export that: "
            f"{error}"
        ) from error


def _last(error: BaseException) -> str:
    """The first cause: an exporter's own message is a page about itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"

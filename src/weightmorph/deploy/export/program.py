"""The model as one traced graph: `torch.export`."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from ...errors import ExecutionError, WeightmorphError
from ...model import Conditioned
from .constants import constant_model, fold_constants

__all__ = ["BATCH", "Call", "call_of", "export_program", "program_of"]

BATCH = "batch"


def export_program(
    model: Conditioned,
    args: Any,
    *,
    per_sample: bool = False,
    dynamic_batch: bool = True,
    constant_weights: bool = False,
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
        constant_weights: give every convolution and linear layer constant weights, for targets that want them: θ then
            acts on activations, between constant layers (`conv(x, W) + U (g(θ) ⊙ conv(x, V))`). It is exact, it costs
            what the extra layers cost, and not every family has such a form.
        strict: as in `torch.export.export`.

    Returns:
        the program. `program.module()` is called as the model is, with tensors for θ; a `Categorical` takes indices.

    Raises:
        ExecutionError: if the network cannot be traced so; torch's own words follow. With `constant_weights`, if a
            tensor has no such form: the families and layers are named, and what to do.

    Example:
        >>> import weightmorph as wm
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
        >>> program = export_program(model, torch.zeros(2, 1, 8, 8), per_sample=True)
        >>> program.module()(torch.zeros(5, 1, 8, 8), angle=torch.arange(5.0)).shape
        torch.Size([5, 10])
    """
    return program_of(call_of(model, args, per_sample, dynamic_batch, constant_weights), strict)


@dataclass(frozen=True)
class Call:
    """An example call of a module, under the names of its inputs."""

    module: nn.Module
    positional: tuple[Any, ...]
    keyword: dict[str, Any]
    names: list[str]
    size: int | None
    constant_weights: bool = False

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
        self.model, self.base = model, model.base.traced.network

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What is traced."""
        return self.model(*args, **kwargs)


def _signed(module: nn.Module, names: Sequence[str], keywords: Sequence[str]) -> nn.Module:
    """The module under a signature that export can read: the inputs by their names, then θ."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    positional = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    keyword = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in keywords]
    forward.__signature__ = inspect.Signature(positional + keyword)  # type: ignore[attr-defined]
    module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})
    return module


def call_of(model: Conditioned, args: Any, per_sample: bool, dynamic_batch: bool, constant_weights: bool) -> Call:
    """The example call of a model, θ at the anchor."""
    if not isinstance(model, Conditioned):
        raise ExecutionError(f"expected a model made by condition(), got {type(model).__name__}")
    positional, keyword, size = inputs_of(args, dynamic_batch)
    names = names_of(model.frozen(), positional, keyword)
    theta = _theta(model, size if per_sample else None)
    # A copy, for tracing goes through the model's one fixed clone, and in eval mode, which the base is in anyway.
    copied = constant_model(model) if constant_weights else copy.deepcopy(model).eval()
    module = _signed(_Traced(copied), names, [*keyword, *theta])
    return Call(module, positional, keyword | theta, names, size if dynamic_batch else None, constant_weights)


def inputs_of(args: Any, dynamic_batch: bool) -> tuple[tuple[Any, ...], dict[str, Any], int]:
    """The example, with at least two samples if their number is to be left open: export takes a 1 for a constant."""
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
    return positional, keyword, size


def names_of(net: nn.Module, positional: Sequence[Any], keyword: Mapping[str, Any]) -> list[str]:
    """What a network calls its positional inputs."""
    signature = inspect.signature(net.forward)
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
        name: torch.full(shape, value, dtype=dtype, device=model.device) for name, value in model.space.anchor.items()
    }


def program_of(call: Call, strict: bool = False) -> ExportedProgram:
    """The call traced."""
    shapes = call.shapes(lambda: Dim(BATCH))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Strict mode sees the scope of our own copy being filled and emptied, which is as it should be.
            warnings.filterwarnings("ignore", message="While compiling, we found certain side effects")
            program = torch.export.export(
                call.module, call.positional, call.keyword, dynamic_shapes=shapes, strict=strict
            )
            return fold_constants(program) if call.constant_weights else program
    except WeightmorphError:
        raise
    except Exception as error:  # dynamo, fake tensors and the solver of shapes each have errors of their own
        hint = "; if the network fixes its batch size, try dynamic_batch=False" if call.size is not None else ""
        raise ExecutionError(
            f"the model cannot be traced by torch.export{hint}; or bake one setting, model.bake(…), and export that: "
            f"{error}"
        ) from error

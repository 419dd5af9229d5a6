r"""Constant weights: the factored route, forced, and what does not follow an input folded into constants.

$$\mathrm{conv}(x, W + s \odot W + U g V + W D) =
  (1 + s) \odot \mathrm{conv}(x, W) + U (g \odot \mathrm{conv}(x, V)) + W (D\, \mathrm{patches}(x))$$

None of these convolutions has a weight that follows θ, which is what compilers for accelerators want: weights that are
known, and small inputs that are not.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from ...errors import ExecutionError
from ...execution.planner import ADVICE
from ...layers import LayerSize
from ...model import Conditioned

__all__ = ["constant_model", "fold_constants"]

LAYERS = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear".split())
"""Operations of a graph whose second argument is a weight."""


def constant_model(model: Conditioned) -> Conditioned:
    """A copy of a model that takes the factored route everywhere.

    Raises:
        ExecutionError: if a tensor has no such form; every family and tensor is named.
    """
    missing: dict[str, list[str]] = {}
    with torch.no_grad():
        for name, expression in model.expressions(**model.space.anchor).items():
            slot = expression.slot
            if slot.kind in ("norm", "bias"):
                continue  # an operand of its own, and not the weight of a layer
            layer = LayerSize.of(slot, 1, expression.grow)
            for transform, term in zip(model.transform.of(slot), expression.terms, strict=True):
                if not term.applies_to(layer, constant=True):
                    missing.setdefault(type(transform).__name__, []).append(name)
    if missing:
        families = "; ".join(f"{family} on {', '.join(names)}" for family, names in missing.items())
        raise ExecutionError(
            f"constant_weights: there is no form with constant weights for {families}: such a transform makes another "
            f"weight at every θ. Either {ADVICE}"
        )
    copied = copy.deepcopy(model).eval()
    copied.route = "constant"
    return copied


def fold_constants(program: ExportedProgram) -> ExportedProgram:
    """Replace every layer's weight that is computed from the program's own tensors by its value, as a buffer.

    A weight that follows an input stays as it is.

    Args:
        program: changed in place, and returned.
    """
    graph, signature = program.graph, program.graph_signature
    known: dict[Node, Any] = {}
    targets = {spec.arg.name: spec.target for spec in signature.input_specs if spec.kind is not InputKind.USER_INPUT}
    first = next(node for node in graph.nodes)
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in targets:
            known[node] = _held(program, targets[node.name])
        elif node.op == "call_function" and all(n in known for n in node.all_input_nodes) and _pure(node):
            with torch.no_grad():
                known[node] = node.target(*_values(node.args, known), **_values(node.kwargs, known))
    layers = [n for n in graph.nodes if n.op == "call_function" and _name(n.target) in LAYERS]
    folded: dict[Node, Node] = {}
    for layer in layers:
        weight = layer.args[1]
        if weight.op == "placeholder" or weight not in known:
            continue
        if weight not in folded:
            folded[weight] = _buffer(program, first, len(folded), known[weight])
        layer.update_arg(1, folded[weight])
    for node in list(graph.nodes):
        # A check of a constant keeps alive everything that computes it.
        if _name(node.target) == "_assert_tensor_metadata" and all(n in known for n in node.all_input_nodes):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    program.validate()
    return program


def _buffer(program: ExportedProgram, before: Node, number: int, value: Tensor) -> Node:
    """A new placeholder, before all others, that stands for a buffer of the program."""
    name = f"folded_{number}"
    with program.graph.inserting_before(before):
        node: Node = program.graph.placeholder(f"b_{name}")
    node.meta["val"] = before.meta["val"].fake_mode.from_tensor(value, static_shapes=True)
    spec = InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=True)
    program.graph_signature.input_specs.insert(number, spec)
    program.state_dict[name] = value.detach().clone(memory_format=torch.contiguous_format)
    return node


def _held(program: ExportedProgram, target: str | None) -> Any:
    assert target is not None
    return program.state_dict[target] if target in program.state_dict else program.constants[target]


def _values(value: Any, known: Mapping[Node, Any]) -> Any:
    return torch.fx.node.map_arg(value, known.__getitem__)


def _name(target: Any) -> str:
    return str(getattr(target, "__name__", target)).split(".")[0]


def _pure(node: Node) -> bool:
    """Does the operation give the same value every time?"""
    target: Callable[..., Any] | Any = node.target
    if target is operator.getitem:
        return True
    tags = getattr(target, "tags", ())
    schema = getattr(target, "_schema", None)
    return schema is not None and torch.Tag.nondeterministic_seeded not in tags and not schema.is_mutable

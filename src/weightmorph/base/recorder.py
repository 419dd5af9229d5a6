"""Which functions read a network's tensors, learned by running it once.

What may be changed in a network depends on who reads what: a BatchNorm can be fused into a convolution only if nothing
else reads the convolution's output. [`UsageRecorder`][weightmorph.base.recorder.UsageRecorder] is a context in which
the network is run on an example. It sees every function of torch that is called with a tensor, also with a tensor
inside a list or a dict. Give what the network returned to `returned`, because that is read as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["CONVOLUTIONS", "FunctionCall", "Reader", "UsageRecorder", "leaves"]

METADATA = frozenset("dim size is_contiguous shape dtype device layout ndim requires_grad".split())
"""Functions and attributes that read no value of a tensor; so do all attributes whose names begin with `is_`."""

CONVOLUTIONS = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split())
LAYERS = CONVOLUTIONS | {"linear"}


@dataclass(frozen=True)
class FunctionCall:
    """One function that a network called, or one attribute of a tensor that it read, such as `mT`."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    metadata: bool = False

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, also inside containers, in order."""
        return [v for v in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(v, Tensor)]

    def arguments(self, *order: str) -> dict[str, Any]:
        """The arguments by name, where the positional ones have the names in `order`."""
        return dict(zip(order, self.args, strict=False)) | self.kwargs


class Reader(NamedTuple):
    """A function that reads the output of a layer, and the ids of all its tensors."""

    function: str
    tensors: tuple[int, ...]


class UsageRecorder(TorchFunctionMode):
    """Records, while it is active, how often each parameter is read and which functions read the outputs of layers.

    Args:
        layers: the id of a layer's weight to the layer's name, for the layers whose outputs are followed.

    Attributes:
        reads: the id of a parameter to the number of functions that read its values.
        readers: a layer's name to the functions that read its outputs, in order; `"output"` stands for the caller of
            the network.
    """

    def __init__(self, layers: Mapping[int, str]) -> None:
        super().__init__()
        self.layers = layers
        self.reads: dict[int, int] = {}
        self.readers: dict[str, list[Reader]] = {}
        # A tensor is kept beside its id: the id of a freed tensor would be given to another one.
        self._outputs: dict[int, tuple[Tensor, str]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, getter = getattr(func, "__name__", ""), False
        if name == "__get__":  # of a descriptor, which has the attribute's name
            name, getter = getattr(getattr(func, "__self__", None), "__name__", name), True
        metadata = name in METADATA or (getter and name.startswith("is_"))
        call = FunctionCall(name, args, kwargs, func(*args, **kwargs), metadata)
        if not metadata:
            self._count(call)
        self.record(call)
        return call.output

    def _count(self, call: FunctionCall) -> None:
        tensors = call.tensors
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter):
                self.reads[id(tensor)] = self.reads.get(id(tensor), 0) + 1
        self._read(call.name, tensors)
        if call.name in LAYERS:
            for tensor in tensors:
                if id(tensor) in self.layers:
                    self._outputs[id(call.output)] = call.output, self.layers[id(tensor)]

    def _read(self, function: str, tensors: list[Tensor]) -> None:
        reader = Reader(function, tuple(map(id, tensors)))
        for tensor in tensors:
            if id(tensor) in self._outputs:
                self.readers.setdefault(self._outputs[id(tensor)][1], []).append(reader)

    def returned(self, output: Any) -> None:
        """Record what the network returned: its caller reads every tensor in it."""
        self._read("output", [v for v in leaves(output) if isinstance(v, Tensor)])

    def record(self, call: FunctionCall) -> None:
        """Record more about a call; subclasses do."""


def leaves(output: Any) -> list[Any]:
    """Everything in a network's output, also in the attributes of objects such as dataclasses.

    Example:
        >>> from types import SimpleNamespace
        >>> leaves([1, {"a": 2}, SimpleNamespace(b=(3,))])
        [1, 2, 3]
    """
    values: list[Any] = []
    pending, seen = [output], set()
    while pending:
        for leaf in pytree.tree_leaves(pending.pop(0)):
            slots = [getattr(leaf, name, None) for name in getattr(type(leaf), "__slots__", ())]
            inner = [*getattr(leaf, "__dict__", {}).values(), *slots]
            if isinstance(leaf, Tensor | nn.Module | type) or not inner:
                values.append(leaf)
            elif id(leaf) not in seen:
                seen.add(id(leaf))
                pending.append(inner)
    return values

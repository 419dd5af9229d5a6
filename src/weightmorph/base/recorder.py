"""One recorder for everything that is learned by running a network: who reads its tensors and its layers' outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["CONVOLUTIONS", "FunctionCall", "Reader", "UsageRecorder"]

METADATA = frozenset("__get__ dim size is_contiguous".split())
"""Functions that read no value of a tensor."""

CONVOLUTIONS = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split())
LAYERS = CONVOLUTIONS | {"linear"}


@dataclass(frozen=True)
class FunctionCall:
    """One function that a network called."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        return [v for v in (*self.args, *self.kwargs.values()) if isinstance(v, Tensor)]


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
        readers: a layer's name to the functions that read its outputs, in order.
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
        call = FunctionCall(getattr(func, "__name__", ""), args, kwargs, func(*args, **kwargs))
        if call.name not in METADATA:
            self._count(call)
        self.record(call)
        return call.output

    def _count(self, call: FunctionCall) -> None:
        tensors = call.tensors
        reader = Reader(call.name, tuple(map(id, tensors)))
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter):
                self.reads[id(tensor)] = self.reads.get(id(tensor), 0) + 1
            if id(tensor) in self._outputs:
                self.readers.setdefault(self._outputs[id(tensor)][1], []).append(reader)
        if call.name in LAYERS:
            for tensor in tensors:
                if id(tensor) in self.layers:
                    self._outputs[id(call.output)] = call.output, self.layers[id(tensor)]

    def record(self, call: FunctionCall) -> None:
        """Record more about a call; subclasses do."""

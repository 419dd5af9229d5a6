"""The base, run with the weights of a call: on a clone for each call, or on one fixed clone that is traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..base import View
from ..execution import CallContext, CurrentCall, LazyWeights, Norm, WeightProxy, mixes_samples, prepare_norms
from ..layers import full_precision
from ..slots import Slot
from .call import Call
from .spec import ModelSpec
from .weights import lazy_slots

__all__ = ["Cloner", "EagerBase", "RunnableBase", "TracedBase"]


class Cloner:
    """Makes clones of the base with other objects in place of its conditioned tensors.

    Attributes:
        slots: the conditioned tensors by name.
        frozen: the tensors themselves.
    """

    def __init__(self, view: View, slots: Mapping[str, Slot]) -> None:
        self.slots = slots
        self.frozen = {name: view.tensor(slot.layer, slot.attribute) for name, slot in slots.items()}
        sites = view.sites()
        self._view, self._sites = view, {name: sites[id(tensor)] for name, tensor in self.frozen.items()}

    def __call__(self, replaced: Mapping[str, Any]) -> nn.Module:
        """A clone; `replaced` holds, by slot name, what its layers find instead of the frozen tensor."""
        overrides: dict[int, dict[str, Any]] = {}
        for name, value in replaced.items():
            for number, attribute in self._sites[name]:
                overrides.setdefault(number, {})[attribute] = value
        return self._view.clone(overrides)

    def proxy(self, name: str, current: CurrentCall) -> WeightProxy:
        """The proxy of one slot."""
        return WeightProxy(current, self.slots[name], self.frozen[name])


class RunnableBase:
    """The base of a model, ready to run with other weights.

    It holds everything that is derived from the view and the slots. It is never changed, copied or pickled: when the
    view's tensors move, a new one is made.

    Attributes:
        clone: makes clones of the base.
        independent: True if no layer lets the samples of a batch see each other.
        lazy: slots whose weight, under a shared θ and without gradients, is materialised when it is read.
        eager: runs every call on a clone of its own.
        traced: runs the calls that are compiled or exported.
    """

    def __init__(self, view: View, spec: ModelSpec) -> None:
        self.clone = Cloner(view, spec.slots)
        # A norm without running statistics is refused one θ per sample, also where all of them are equal.
        self.independent = not any(mixes_samples(kind, entries) for kind, entries in view.layers())
        self.lazy = lazy_slots(spec.slots, {} if spec.inspection is None else spec.inspection.reads)
        self.eager = EagerBase(self.clone, Norm.of(spec.slots.values(), view.layer), view.device)
        self.traced = TracedBase(self.clone)

    @property
    def frozen(self) -> Mapping[str, Tensor]:
        """The frozen weights by slot name."""
        return self.clone.frozen

    def run(self, weights: LazyWeights, call: Call) -> Any:
        """The base's output on the call's inputs, with the call's weights."""
        return self.traced.run(weights, call) if call.traced else self.eager.run(weights, call)


class EagerBase:
    """Runs every call on a clone of its own, so that no call and no thread sees another's weights."""

    def __init__(self, clone: Cloner, norms: Sequence[Norm], device: torch.device) -> None:
        self.clone, self.norms, self.device = clone, norms, device

    def run(self, weights: LazyWeights, call: Call) -> Any:
        """The output on a new clone, which holds for each slot a proxy, or the weight itself where that will do."""
        batch = call.batch
        if batch is not None:
            with full_precision(self.device):
                batch = replace(batch, norms=prepare_norms(self.norms, weights, batch.index))
        current = CurrentCall(CallContext(weights, batch, call.shared_batch))
        replaced: dict[str, Any] = {}
        for name, frozen in self.clone.frozen.items():
            weight = weights[name]
            plain = isinstance(weight, Tensor) and not call.grad and weight.shape == frozen.shape
            replaced[name] = weight if plain else self.clone.proxy(name, current)
        return self.clone(replaced)(*call.args, **call.inputs)


class TracedBase:
    """Runs every call on one fixed clone, because neither dynamo nor export can follow the making of one.

    The clone's proxies answer for the call that is being traced; in between they answer for none. Only a trace runs on
    it, and one at a time.

    Attributes:
        network: the clone. Its parameters and buffers are those of the view.
        current: the call that is being traced.
    """

    def __init__(self, clone: Cloner) -> None:
        self.current = CurrentCall()
        self.network = clone({name: clone.proxy(name, self.current) for name in clone.slots})

    def run(self, weights: LazyWeights, call: Call) -> Any:
        """The output on the fixed clone."""
        self.current.context = CallContext(weights, call.batch, call.shared_batch)
        try:
            return self.network(*call.args, **call.inputs)
        finally:
            self.current.context = None

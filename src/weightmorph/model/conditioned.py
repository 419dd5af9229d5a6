"""`Conditioned`: the model, and its call in the order in which it happens."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from .. import storage
from ..base import fuse_batchnorm as folding
from ..base.inspect import Trace, as_call, trace
from ..base.install import place
from ..base.view import View
from ..errors import ParameterLengthError, SelectionError, UnknownParameterError, near
from ..estimator import Estimator
from ..execution import DEFAULT_MEMORY_LIMIT, Batch, Desk, Scope, StandIn, make
from ..execution.desk import Watch
from ..execution.making import make_vectors
from ..execution.norm import Norm, mixes, prepared
from ..execution.precision import full_precision
from ..execution.tuning import Recorder, Tuner
from ..parameters import ParameterSpace, Theta, Value
from ..slots import Slot
from ..terms import WeightExpression
from ..transforms import TransformTree, WeightTransform
from ..transforms.registry import describe
from .call import batch_size, buckets, refuse_folded, refuse_weights
from .estimate import asked, estimate
from .late import read_once, unmade
from .record import recorded
from .summary import plan_table, table

__all__ = ["Conditioned"]

Self = TypeVar("Self", bound="Conditioned")


class Conditioned(nn.Module):
    """A frozen network whose weights follow θ. Made by [`condition`][weightmorph.condition].

    `parameters()` and `state_dict()` hold the transform alone, and with it the `estimator` of θ if one was trained
    (`fit(…, predict_parameter=True)`). The base is not among `modules()`; it always runs in eval mode. `memory_limit`
    is the number of bytes that one layer's dense per-sample weights may take.
    """

    _fixed: tuple[Scope, nn.Module]
    _norms: list[Norm]
    _alone: bool
    estimator: Estimator | None

    def __init__(
        self,
        view: View,
        space: ParameterSpace,
        recipe: WeightTransform,
        slots: Sequence[Slot],
        dtype: torch.dtype,
        seen: Trace | None = None,
        folded: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.view, self.space = view, space
        self.recipe = describe(recipe)
        self.anchored = recipe.anchored
        self.slots = {slot.name: slot for slot in slots}
        self.seen, self.folded = seen, folded
        self.memory_limit = DEFAULT_MEMORY_LIMIT
        self.desk = Desk()
        self.selected = "default"
        # Where each tensor stands in a clone: found once, for a call must not search the tree.
        self.places = {s.name: view.places(view.tensor(s.layer, s.attribute)) for s in slots}
        self.transform = TransformTree(recipe, slots, space).to(device=view.device, dtype=dtype)
        self.estimator = None
        self._trace_clone()

    # The call, in the order in which it happens.

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's output under W(θ): its own inputs, and one keyword per parameter.

        Args:
            args: the base's positional inputs.
            kwargs: its keyword inputs, and θ: per parameter a number or 0-d tensor for the whole batch, or `(B,)`
                values, one per sample; or `"infer"`, for each sample what the `estimator` finds most likely (eager
                only; [`infer`][weightmorph.infer] can do more).

        Raises:
            ParameterError: if θ is missing, unknown, of the wrong length, or not finite, or if a model without an
                estimator is to infer it.
        """
        tracing = torch.compiler.is_compiling()
        theta = self._take_theta(args, kwargs, tracing)
        scope = self._fixed[0] if tracing else Scope()
        first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        self._make_weights(scope, theta, tracing, first.shape if first is not None else ())
        root = self._fixed[1] if tracing else self._clone(scope)
        try:
            return refuse_weights(root(*args, **kwargs))
        finally:
            if tracing:  # an eager scope must outlive the call: checkpointed blocks are recomputed from it
                scope.made, scope.remake, scope.batch = {}, None, None

    def _take_theta(self, args: tuple[Any, ...], kwargs: dict[str, Any], tracing: bool) -> Theta:
        """Split θ off the keywords, check it, and bring it to the transform's device and dtype."""
        values: dict[str, Value] = {name: kwargs.pop(name) for name in self.space if name in kwargs}
        unknown = [name for name in kwargs if not self.view.accepts(name)]
        if unknown:
            raise UnknownParameterError(
                f"unexpected keyword {unknown[0]!r}: the model is conditioned on {', '.join(self.space)}"
                f"{near(unknown[0], self.space)}, and the base takes {', '.join(self.view.keywords)}"
            )
        wanted = asked(self.space, values)
        if wanted:
            values |= estimate(self.estimator, self.view.clone(), wanted, args, kwargs, tracing)
        theta = self._prepare(values, check=not tracing)
        size = batch_size(theta)
        inputs = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if size is not None and inputs is not None and (inputs.dim() == 0 or inputs.shape[0] != size):
            raise ParameterLengthError(
                f"{', '.join(self.space)}: expected one value for the batch, or one for each of its "
                f"{inputs.shape[0] if inputs.dim() else 0} samples, got {size} values"
            )
        return theta

    def _prepare(self, values: Mapping[str, Value], check: bool = True) -> Theta:
        return self.space.prepare(values, device=self.view.device, dtype=self.dtype, check=check)

    def _encode(self, theta: Theta) -> Tensor:
        """θ's code `(*B, K)`: computed in float32 or better, read in the transform's own type."""
        return self.space.encode(theta).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """In which θ is encoded and the transform computes."""
        return next((p.dtype for p in self.transform.parameters()), self.view.dtype)

    def _make_weights(self, scope: Scope, theta: Theta, tracing: bool, shape: Sequence[int] = ()) -> None:
        """Make the weights of one call, before the base runs on an input of that shape."""
        samples = batch_size(theta)
        if samples is not None:
            refuse_folded(self.slots, self.folded)
        theta, index = (theta, None) if tracing else self._settings(theta)
        size = None if batch_size(theta) is None else samples
        scope.grad = torch.is_grad_enabled()
        scope.remake = lambda name: self._operand(name, self._encode(theta))
        with full_precision(self.view.device):
            code = self._encode(theta)
            scope.made = self._operands(scope, code, tracing, shape)
            norms = prepared(self._norms, scope.made, index) if size is not None and not tracing else {}
        if size is not None:
            plain = Batch(size, None, (), None, self.memory_limit, self.folded is not None, self.desk, norms)
            scope.batch = plain if index is None else plain.bucketed(index, cast(int, batch_size(theta)))

    def _settings(self, theta: Theta) -> tuple[Theta, Tensor | None]:
        """The settings to make weights for, and each sample's, where few are distinct; one alone is a shared one."""
        size = batch_size(theta)
        found, index = (theta, None) if size is None else buckets(theta, size)
        if self._alone and batch_size(found) == 1:
            return {name: value[0] for name, value in found.items()}, None
        return found, index

    def _operands(
        self, scope: Scope, code: Tensor, tracing: bool, shape: Sequence[int]
    ) -> dict[str, Tensor | WeightExpression]:
        """W(θ) of every slot, the code side of all of them made together."""
        if code.dim() == 1 and not scope.grad and self._at_anchor(code):
            # Equal to W(θ0) to the bit, but for zeros around grown kernels.
            return dict(self._frozen)
        expressions = self.transform.expressions(list(self.slots.values()), self._frozen, code)
        if scope.grad and not tracing:
            self.transform.check(expressions)
        if code.dim() > 1:
            return dict(expressions)
        made: dict[str, Tensor | WeightExpression] = {**make_vectors(expressions)}
        known = self.seen is not None and len(shape) > 0 and tuple(shape[1:]) == self.seen.shape and not self.folded
        known = known and not tracing and code.device.type == "cpu"
        tiny = unmade(expressions, self.seen, shape[0]) if self.seen and known else ()
        later = read_once(self.slots, self.seen) if self.seen and not scope.grad and not tracing else frozenset()
        for name, expression in expressions.items():
            if name in made:
                continue
            if name in tiny:
                made[name] = expression.spread(shape[0])
                scope.spread = Batch(shape[0], memory_limit=self.memory_limit, probed=True, desk=self.desk)
            else:
                # A large weight that one function reads is made when it is read: it need not live longer.
                made[name] = expression if name in later else make(expression)
        scope.once = later
        return made

    @property
    def _frozen(self) -> dict[str, Tensor]:
        return {name: self.view.tensor(slot.layer, slot.attribute) for name, slot in self.slots.items()}

    def _operand(self, name: str, code: Tensor) -> Tensor | WeightExpression:
        """W(θ) of one slot, on its own: what a recomputed block makes again."""
        slot = self.slots[name]
        expression = self.transform.expression(slot, self.view.tensor(slot.layer, slot.attribute), code)
        return expression if expression.batch else make(expression)

    def _at_anchor(self, code: Tensor) -> bool:
        known = self.anchored and code.device.type == "cpu" and not torch.compiler.is_compiling()
        return known and bool((code == code.new_tensor(self.space.anchor_code)).all())

    def _clone(self, scope: Scope) -> nn.Module:
        """A clone of the base with stand-ins in its weights' places, or the weights themselves where that will do."""
        overrides: dict[int, dict[str, Any]] = {}
        for slot in self.slots.values():
            tensor = self.view.tensor(slot.layer, slot.attribute)
            made = scope.made.get(slot.name)
            direct = isinstance(made, Tensor) and not scope.grad and made.shape == tensor.shape
            for number, attribute in self.places[slot.name]:
                overrides.setdefault(number, {})[attribute] = made if direct else StandIn(scope, slot, tensor)
        return self.view.clone(overrides)

    def _trace_clone(self) -> None:
        """The one clone that dynamo and export trace, for they cannot follow the making of one."""
        scope = Scope()
        scope.grad = True  # stand-ins throughout
        vars(self)["_fixed"] = scope, self._clone(scope)
        scope.grad = False
        vars(self)["_norms"] = Norm.of(self.slots.values(), self.view.layer)
        # A norm without running statistics is refused one θ per sample, also where these happen to be equal.
        vars(self)["_alone"] = not any(map(mixes, self.view.classes, self.view.dicts))

    # One setting at a time.

    def weights(self, **theta: Value) -> dict[str, Tensor]:
        """W(θ) of every conditioned tensor by name: `(*S)`, or `(B, *S)` with one θ per sample. Gradients flow."""
        code = self._encode(self._prepare(theta))
        return {
            name: self.transform.expression(slot, self.view.tensor(slot.layer, slot.attribute), code).dense()
            for name, slot in self.slots.items()
        }

    def frozen(self) -> nn.Module:
        """The base as it stands, in eval mode: a clone that shares its tensors, and may be called beside the model."""
        return self.view.clone()

    def at(self, **theta: Value) -> nn.Module:
        """The network at one setting, with its weights made once: for repeated use of one θ without gradients.

        It shares the base's other tensors, and follows neither the transform's training nor the base's.

        Raises:
            ParameterLengthError: if θ is not one value per parameter.
        """
        root = self.view.clone()
        place(root, self.slots, self._one_setting("at", theta))
        return root

    def bake(self, *, fold: Any = False, **theta: Value) -> nn.Module:
        """An ordinary, independent copy of the network at one setting: same class, same `state_dict` keys.

        Args:
            fold: merge every BatchNorm into the convolution or linear layer whose output it alone reads. The norms
                become `Identity`, so their keys are gone and the layers have biases. True runs the copy on zeros of
                the example's shape to see who reads what; an input (or a tuple, or a dict) says it where `condition`
                was given no example.
            theta: one value per parameter.

        Raises:
            ParameterLengthError: if θ is not one value per parameter.
            SelectionError: if `fold` is True and there was no example.
        """
        values = self._one_setting("bake", theta)
        root = self.view.plain()
        place(root, self.slots, values)
        if fold is not False:
            folding.fold(root, *as_call(self._zeros() if fold is True else fold))
        return root

    def _zeros(self) -> Tensor:
        if self.seen is None or not self.seen.shape:
            raise SelectionError(
                "bake: fold=True has to run the network, and no example says on what; give condition() an example, or "
                "fold= an input"
            )
        return torch.zeros(1, *self.seen.shape, dtype=self.view.dtype, device=self.view.device)

    def _one_setting(self, method: str, theta: Mapping[str, Value]) -> dict[str, Tensor]:
        prepared = self._prepare(theta)
        if batch_size(prepared) is not None:
            raise ParameterLengthError(
                f"{method}: expected one value per parameter, got {batch_size(prepared)}; call it once per setting"
            )
        with torch.no_grad():
            code = self._encode(prepared)
            if self._at_anchor(code):
                return self._frozen
            return self.weights(**theta)

    # What any module can do.

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.view.apply(fn)
        self._trace_clone()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_fixed", "_norms", "_alone")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._trace_clone()

    def save(self, path: str | os.PathLike[str], *, metrics: Mapping[str, Any] | None = None) -> None:
        """Write the transform to one safetensors file, from which [`load`][weightmorph.load] makes the model again.

        The file holds the transform's tensors and, as JSON, the parameters, the slots, the recipe and a fingerprint of
        the base. The base's weights are not in it. It is written beside `path` first and then moved, so that there is
        always a whole file.

        Args:
            path: where to, customarily `*.safetensors`.
            metrics: anything JSON can say that should stay with the model.

        Raises:
            CheckpointError: if something cannot be stored as plain data (extra state of a module of your own).
            MissingDependencyError: if safetensors is not installed.
        """
        record = recorded(self, metrics or {})
        storage.write(path, record, self.state_dict(keep_vars=True))

    @property
    def plan(self) -> dict[str, Any] | None:
        """What `autotune` measured, as plain data; None if it never ran. It is saved with the transform.

        Set it to use what was measured elsewhere: entries that fit no layer here are passed over.
        """
        return self.desk.data()

    @plan.setter
    def plan(self, data: Mapping[str, Any] | None) -> None:
        self.desk = Desk.of(data)

    def autotune(self, *args: Any, rounds: int = 5, **kwargs: Any) -> dict[str, dict[str, float]]:
        """Measure every exact route of every layer on this input, and take the fastest from now on.

        With gradients enabled a backward is measured as well, and the choice holds for training; under `no_grad` it
        holds for inference. Eager only, and only for layers that run one θ per sample: a shared θ, or few distinct
        ones, needs no choice. What was measured is in `plan`.

        Args:
            args: the base's positional inputs.
            rounds: measurements per route, interleaved; their medians are compared.
            kwargs: the base's keyword inputs, and θ, one value per sample.

        Returns:
            slot name to route to seconds.

        Example:
            >>> from weightmorph import Angle, LowRank, condition
            >>> model = condition(nn.Conv2d(3, 8, 3), {"angle": Angle("deg")}, LowRank(2))
            >>> x, angles = torch.zeros(4, 3, 9, 9), torch.tensor([0.0, 90.0, 180.0, 270.0])
            >>> sorted(model.autotune(x, angle=angles, rounds=1)["weight"])
            ['factored', 'grouped', 'product']
        """
        tuner = Tuner(rounds, self.memory_limit)
        self._watched(tuner)(*args, **kwargs)
        self.desk = self.desk.with_entries(tuner.entries)
        return tuner.seconds

    def _watched(self, watch: Watch) -> Conditioned:
        """The same model under a watch, so that calls from other threads go unwatched."""
        twin = copy.copy(self)
        twin.desk = replace(self.desk, watch=watch)
        return twin

    def summary(self, *args: Any, **kwargs: Any) -> str:
        """A table of the conditioned tensors: families, trainable numbers, memory per sample, and the route.

        Args:
            args: the base's inputs, from which the layers' sizes are read if `condition` was given no example.
            kwargs: its keyword inputs. With θ as well the model is run once, without gradients, and the table tells
                for every layer the route that was taken and why, and its multiply-adds and bytes against the frozen
                layer's.
        """
        if any(name in kwargs for name in self.space):
            recorder = Recorder()
            theta = self._prepare({n: v for n, v in kwargs.items() if n in self.space})
            with torch.no_grad():
                self._watched(recorder)(*args, **kwargs)
            alone = batch_size(self._settings(theta)[0]) is None
            return plan_table(self.slots, recorder.rows, None if alone else batch_size(theta))
        seen = self.seen
        if args or kwargs:
            seen = trace(self.view.clone(), list(self.slots.values()), args, kwargs)
        return table(self.transform, self.slots, self.space, self.view.total, seen.positions if seen else {})

    def extra_repr(self) -> str:
        return f"{self.view.classes[0].__name__} on {', '.join(self.space)}: {len(self.slots)} tensors"

"""`Conditioned`: the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from ..base import View, as_call
from ..base.fuse_batchnorm import fuse_batchnorm
from ..base.install import install
from ..errors import ExecutionError, ParameterLengthError, SelectionError, near
from ..estimator import Estimator
from ..execution import ForcedRoute, Observer, Tuner
from ..layers import full_precision
from ..parameters import Value
from ..storage import Fingerprint, versions
from ..terms import WeightExpression
from ..transforms import TransformTree, WeightTransform
from .call import bind, refuse_weights
from .running import RunnableBase
from .spec import ModelSpec, SpecifiedModule, write
from .summary import summarise
from .weights import at_anchor, call_weights

__all__ = ["Conditioned"]

Self = TypeVar("Self", bound="Conditioned")


class Conditioned(SpecifiedModule):
    r"""A frozen network whose weights follow parameters: $f(x; W(\theta))$.

    Made by [`condition`][weightmorph.condition] and [`load`][weightmorph.load].

    $$W(\theta) = W + \sum_i \Delta_i(W, \theta), \qquad \Delta_i(W, \theta_0) = 0$$

    `parameters()` and `state_dict()` hold the transform alone, and with it the `estimator` of θ if there is one. The
    base is not among `modules()`, always runs in eval mode, and is never written to.

    Shapes:
        Each parameter is a number or a tensor `()`, one θ for the batch, or a tensor or list `(B,)`, one θ per sample.
        The base's inputs and outputs are its own; with one θ per sample, B comes first in them.

    Attributes:
        spec: what the model is, as one value; `space`, `slots`, `recipe`, `selected`, `merged`,
            `memory_limit` and `plan` are attributes too; the last two may be set.
        transform: the trainable part, a module whose keys read `family.slot`.
        estimator: the head that estimates θ from an input; None unless one was trained
            (`fit(…, predict_parameter=True)`).
        anchored: is $W(\theta_0) = W$ exactly, at the anchor $\theta_0$?
        base: the base, ready to run with other weights.
        route: a route that every layer takes where it exists; None, the default, leaves the choice to the planner.
        view: the base's modules and tensors.

    Example:
        >>> import weightmorph as wm
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
        >>> x = torch.randn(3, 1, 8, 8)
        >>> model(x, angle=[0.0, 30.0, 60.0]).shape
        torch.Size([3, 10])
        >>> with torch.no_grad():
        ...     torch.equal(model(x, angle=0.0), net(x))
        True
    """

    estimator: Estimator | None
    base: RunnableBase

    def __init__(self, view: View, spec: ModelSpec, transform: WeightTransform) -> None:
        """From a view of the base, what the model is, and the transform that `spec.recipe` describes."""
        super().__init__(spec)
        self.view, self.anchored = view, transform.anchored
        self._route: ForcedRoute | None = None
        tree = TransformTree(transform, list(spec.slots.values()), spec.space)
        self.transform = tree.to(device=view.device, dtype=spec.dtype)
        head = None if spec.estimator is None else Estimator.from_config(spec.space, spec.estimator)
        self.estimator = None if head is None else head.to(device=view.device, dtype=spec.dtype)
        self.base = RunnableBase(view, spec)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's output under W(θ): its own inputs, and one keyword per parameter.

        Args:
            args: the base's positional inputs.
            kwargs: its keyword inputs, and θ; see Shapes. A parameter may also be `"infer"`: for each sample, the value
                that the `estimator` finds most likely (eager only; [`infer`][weightmorph.infer] can do more).

        Raises:
            ParameterError: if θ is missing, unknown, of the wrong length, or not finite, or if a model without an
                estimator is to infer it.
            BatchSizeError: for one θ per sample, if a conditioned layer's input does not have the batch first.
        """
        call = bind(self, args, kwargs)
        weights = call_weights(self, call)
        return refuse_weights(self.base.run(weights, call))

    def observed(self, observer: Observer) -> Callable[..., Any]:
        """The model's call under an observer, which sees each layer with one θ per sample and its route."""

        def run(*args: Any, **kwargs: Any) -> Any:
            call = bind(self, args, kwargs, observer)
            return refuse_weights(self.base.run(call_weights(self, call), call))

        return run

    @property
    def route(self) -> ForcedRoute | None:
        """A route that every layer takes where it exists; None leaves the choice to the planner."""
        return self._route

    @route.setter
    def route(self, route: ForcedRoute | None) -> None:
        known = get_args(ForcedRoute)
        if route is not None and route not in known:
            raise ExecutionError(
                f"route: expected None or one of {', '.join(known)}, got {route!r}{near(str(route), known)}"
            )
        self._route = route

    # One setting at a time.

    def encode(self, **theta: Value) -> Tensor:
        """θ's code, which the transform reads: `(K,)`, or `(B, K)` with one θ per sample.

        Raises:
            ParameterError: if θ is missing, unknown, or not finite.
        """
        check = not torch.compiler.is_compiling()
        prepared = self.space.prepare(theta, device=self.device, dtype=self.dtype, check=check)
        with full_precision(self.device):
            return self.space.encode(prepared).to(self.dtype)

    def expression(self, name: str, code: Tensor) -> WeightExpression:
        """W(θ) of one conditioned tensor under a code, not added up yet: the frozen weight and its terms."""
        with full_precision(self.device):
            return self.transform.expression(self.slots[name], self.base.frozen[name], code)

    def expressions(self, **theta: Value) -> dict[str, WeightExpression]:
        """W(θ) of every conditioned tensor by name, not added up yet; θ and errors as for `weights`."""
        code = self.encode(**theta)
        return {name: self.expression(name, code) for name in self.slots}

    def weights(self, **theta: Value) -> dict[str, Tensor]:
        """W(θ) of every conditioned tensor by name. Gradients flow.

        Args:
            theta: one value per parameter, or `(B,)` values each.

        Returns:
            tensors `(*S)`, or `(B, *S)` with one θ per sample.

        Raises:
            ParameterError: if θ is missing, unknown, or not finite.

        Example:
            >>> from weightmorph import Angle, LowRank, condition
            >>> model = condition(nn.Conv2d(3, 8, 3), {"angle": Angle("deg")}, LowRank(2))
            >>> model.weights(angle=[0.0, 90.0])["weight"].shape
            torch.Size([2, 8, 3, 3, 3])
        """
        return self._dense(self.encode(**theta))

    def _dense(self, code: Tensor) -> dict[str, Tensor]:
        with full_precision(self.device):  # under autocast it is the layer that casts a weight
            return {name: self.expression(name, code).dense() for name in self.slots}

    def frozen(self) -> nn.Module:
        """The base as it stands, in eval mode: a clone that shares its tensors, and may be called beside the model."""
        return self.view.clone()

    def at(self, **theta: Value) -> nn.Module:
        """The network at one setting, its weights materialised once, for repeated use of one θ without gradients.

        Args:
            theta: one value per parameter.

        Returns:
            a network of the base's class. It shares the base's other tensors, and follows neither the transform's
            training nor the base's.

        Raises:
            ParameterLengthError: if θ is not one value per parameter.

        Example:
            >>> from weightmorph import Angle, LowRank, condition
            >>> model = condition(nn.Conv2d(3, 8, 3), {"angle": Angle("deg")}, LowRank(2))
            >>> model.at(angle=30.0)(torch.zeros(1, 3, 9, 9)).shape
            torch.Size([1, 8, 7, 7])
        """
        root = self.view.clone()
        install(root, self.slots, self._weights_at("at", theta))
        return root

    def bake(self, *, fold: Any = False, **theta: Value) -> nn.Module:
        """An ordinary, independent copy of the network at one setting: same class, same `state_dict` keys.

        Args:
            fold: fuse every BatchNorm into the convolution or linear layer whose output it alone reads. The norms
                become `Identity`, so their keys are gone and the layers have biases. True runs the copy on zeros of
                the example's shape to see who reads what; an input (or a tuple, or a dict) says it where `condition`
                was given no example.
            theta: one value per parameter.

        Returns:
            the network, in eval mode, with the `requires_grad` flags of the original.

        Raises:
            ParameterLengthError: if θ is not one value per parameter.
            SelectionError: if `fold` is True and there was no example.

        Example:
            >>> from weightmorph import Angle, LowRank, condition
            >>> model = condition(nn.Conv2d(3, 8, 3), {"angle": Angle("deg")}, LowRank(2))
            >>> model.bake(angle=30.0)
            Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
        """
        weights = self._weights_at("bake", theta)
        root = self.view.plain()
        install(root, self.slots, weights)
        if fold is not False:
            fuse_batchnorm(root, *as_call(self._zeros() if fold is True else fold))
        return root

    def _zeros(self) -> Tensor:
        inspection = self.spec.inspection
        if inspection is None or not inspection.shape:
            raise SelectionError(
                "bake: fold=True has to run the network, and no example says on what; give condition() an example, or "
                "fold= an input"
            )
        return torch.zeros(1, *inspection.shape, dtype=self.view.dtype, device=self.device)

    def _weights_at(self, method: str, theta: Mapping[str, Value]) -> Mapping[str, Tensor]:
        with torch.no_grad():
            code = self.encode(**theta)
            if code.dim() > 1:
                raise ParameterLengthError(
                    f"{method}: expected one value per parameter, got {len(code)}; call it once per setting"
                )
            if at_anchor(self, code):
                return self.base.frozen
            return self._dense(code)

    # What any module can do.

    @property
    def device(self) -> torch.device:
        """Where the base and the transform are."""
        return self.view.device

    @property
    def dtype(self) -> torch.dtype:
        """In which θ is encoded and the transform computes."""
        return next((p.dtype for p in self.transform.parameters()), self.view.dtype)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.view.apply(fn)
        self.spec = replace(self.spec, dtype=self.dtype)
        self.base = RunnableBase(self.view, self.spec)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "base"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.base = RunnableBase(self.view, self.spec)

    def fingerprint(self) -> Fingerprint:
        """Which base this is: a digest of every tensor of it."""
        return Fingerprint.of(self.view.tensors(), self.view.written())

    def save(self, path: str | os.PathLike[str], *, metrics: Mapping[str, Any] | None = None) -> None:
        """Write the transform to one safetensors file, from which [`load`][weightmorph.load] makes the model again.

        The file holds the model's tensors and, as JSON, its `spec` with a fingerprint of the base. The base's weights
        are not in it. It is written beside `path` first and then moved, so that no file is ever incomplete.

        Args:
            path: the file, customarily `*.safetensors`.
            metrics: anything JSON can say that should stay with the model.

        Raises:
            CheckpointError: if something cannot be stored as plain data (extra state of a module of your own).
            MissingDependencyError: if safetensors is not installed.
        """
        spec = replace(
            self.spec,
            dtype=self.dtype,
            estimator=None if self.estimator is None else self.estimator.config(),
            metrics=dict(metrics or {}),
            fingerprint=self.fingerprint(),
            written_by=versions(),
        )
        write(path, spec, self.state_dict(keep_vars=True))

    def autotune(self, *args: Any, rounds: int = 5, **kwargs: Any) -> dict[str, dict[str, float]]:
        """Measure every exact route of every layer on this input, and take the fastest from now on.

        With gradients enabled a backward is measured as well, and the choice holds for training; under `no_grad` it
        holds for inference. Eager only, and only for layers that run one θ per sample: a shared θ, or few distinct
        ones, needs no choice. The measurements are in `plan`.

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
        self.observed(tuner)(*args, **kwargs)
        self.spec = replace(self.spec, plans=self.spec.plans.updated(tuner.entries))
        return tuner.seconds

    def summary(self, *args: Any, **kwargs: Any) -> str:
        """A table of the conditioned tensors: families, trainable numbers, memory per sample, and the route.

        Args:
            args: the base's inputs, from which the layers' sizes are read if `condition` was given no example.
            kwargs: its keyword inputs. With θ as well the model is run once, without gradients. The table then gives
                the route that each layer took and why, and its multiply-adds and bytes against the frozen layer's.
        """
        return summarise(self, args, kwargs)

    def extra_repr(self) -> str:
        return f"{self.spec.network} on {', '.join(self.space)}: {len(self.slots)} tensors"

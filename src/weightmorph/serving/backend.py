"""What answers a batch of requests: one call of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import ConfigError, ExecutionError, RequestError, WeightmorphError
from ..model import Conditioned
from .request import Asked, Inputs

__all__ = ["Backend", "OneSetting", "PerSample", "answer", "backend_for", "failure"]

Backend = Callable[[Tensor, Mapping[str, Tensor]], Any]
"""Samples `(B, …)` and θ, `(B,)` each, to outputs: tensors whose first axis is B, nested as the network nests them."""


class PerSample:
    """The whole batch in one call, one θ per sample.

    Example:
        >>> import weightmorph as wm
        >>> model = wm.condition(torch.nn.Linear(4, 2), {"angle": wm.Angle("deg")}, wm.LowRank(1))
        >>> PerSample(model)(torch.zeros(3, 4), {"angle": torch.tensor([0.0, 10.0, 20.0])}).shape
        torch.Size([3, 2])
    """

    def __init__(self, model: Conditioned) -> None:
        self.model = model

    def __call__(self, x: Tensor, theta: Mapping[str, Tensor]) -> Any:
        """Samples `(B, …)` and θ `(B,)` to outputs."""
        device = self.model.device
        shared = all(bool((value == value[0]).all()) for value in theta.values())
        values = {name: value[0] if shared else value for name, value in theta.items()}
        return self.model(x.to(device), **values)


class OneSetting(PerSample):
    """A call for each setting in the batch: for networks that cannot take one θ per sample."""

    def __call__(self, x: Tensor, theta: Mapping[str, Tensor]) -> Any:
        """Samples `(B, …)` and θ `(B,)` to outputs."""
        settings, index = torch.unique(torch.stack(list(theta.values()), -1), dim=0, return_inverse=True)
        if len(settings) == 1:
            return super().__call__(x, theta)
        rows = [(index == number).nonzero().flatten() for number in range(len(settings))]
        outputs = [super(OneSetting, self).__call__(x[r], {k: v[r] for k, v in theta.items()}) for r in rows]
        order = torch.cat(rows).argsort()
        return pytree.tree_map(lambda *parts: torch.cat(parts)[order], outputs[0], *outputs[1:])


def backend_for(model: Conditioned, inputs: Inputs) -> tuple[PerSample, str | None]:
    """How a model answers, found out by two calls on zeros; and why not per sample, if not.

    Raises:
        ConfigError: if the model cannot take such inputs at all.
    """
    anchor, others = model.space.anchor, {name: p.grid(3)[-1] for name, p in model.space.items()}
    shared, one_each = OneSetting(model), PerSample(model)
    _tried(shared, inputs, {name: torch.tensor([value]) for name, value in anchor.items()})
    try:
        _tried(one_each, inputs, {name: torch.stack((torch.tensor(anchor[name]), others[name])) for name in anchor})
    except ExecutionError as error:
        return shared, str(error)
    return one_each, None


def _tried(backend: Backend, inputs: Inputs, theta: Mapping[str, Tensor]) -> None:
    size = len(next(iter(theta.values())))
    try:
        with torch.no_grad():
            _split(backend(inputs.example(size), theta), size)
    except ExecutionError:
        raise
    except (WeightmorphError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            f"input_shape: the network cannot take {'a sample' if size == 1 else f'{size} samples'} of {inputs.text}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error


def answer(backend: Backend, asked: Sequence[Asked], inputs: Inputs) -> list[Any | Exception]:
    """The outputs, one for each request, as NumPy arrays in the nesting of the network's; or what went wrong with it.

    A failure is traced to the request that causes it: each is then tried on its own.
    """
    results: list[Any | Exception] = [None] * len(asked)
    shapes: dict[tuple[int, ...], list[int]] = {}
    for number, one in enumerate(asked):
        shapes.setdefault(one.x.shape, []).append(number)
    for rows in shapes.values():
        try:
            outputs = _call(backend, [asked[row] for row in rows])
        except Exception as error:  # of the user's network, which may raise anything
            outputs = [_blamed(error, inputs)] if len(rows) == 1 else _alone(backend, [asked[r] for r in rows], inputs)
        for row, output in zip(rows, outputs, strict=True):
            results[row] = output
    return results


def failure(error: Exception) -> RequestError:
    """What a client is told when the network fails on an input that has passed every check."""
    return RequestError(f"the network failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}", 500)


def _call(backend: Backend, asked: Sequence[Asked]) -> list[Any]:
    x = torch.from_numpy(np.stack([one.x for one in asked]))
    theta = {name: torch.tensor([one.theta[name] for one in asked], dtype=torch.float64) for name in asked[0].theta}
    with torch.no_grad():
        return _split(backend(x, theta), len(asked))


def _alone(backend: Backend, asked: Sequence[Asked], inputs: Inputs) -> list[Any | Exception]:
    return [answer(backend, [one], inputs)[0] for one in asked]


def _blamed(error: Exception, inputs: Inputs) -> Exception:
    """Where axes are open, a size that the network cannot take is the request's fault."""
    if inputs.open and not isinstance(error, MemoryError):
        return RequestError(f"the network cannot take this input: {' '.join(str(error).split())[:300]}")
    return error


def _split(output: Any, size: int) -> list[Any]:
    """One output for each sample."""
    leaves, nesting = pytree.tree_flatten(dict(output) if hasattr(output, "items") else output)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.shape[:1] != (size,):
            got = f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise TypeError(f"a served network must give tensors whose first axis is the batch's {size}, got {got}")
    halves = torch.float16, torch.bfloat16  # of which NumPy and JSON know nothing, or little
    arrays = [(leaf.float() if leaf.dtype in halves else leaf).detach().cpu().numpy() for leaf in leaves]
    return [pytree.tree_unflatten([values[row] for values in arrays], nesting) for row in range(size)]

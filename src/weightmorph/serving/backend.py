"""Answer a batch of requests with one call of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import ConfigError, ExecutionError, RequestError, WeightmorphError
from ..model import Conditioned
from .inputs import Inputs, PredictRequest

__all__ = ["Backend", "OneSetting", "PerSample", "answer", "backend_for", "failure"]

Backend = Callable[[Tensor, Mapping[str, Tensor]], Any]
"""Samples `(B, …)` and θ, `(B,)` each, to outputs: tensors whose first axis is B, nested as the network nests them."""


class PerSample:
    """Answer the whole batch in one call, with one θ per sample.

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
    """Answer with one call for each setting in the batch, for networks that cannot take one θ per sample.

    Example:
        >>> import weightmorph as wm
        >>> model = wm.condition(torch.nn.Linear(4, 2), {"angle": wm.Angle("deg")}, wm.LowRank(1))
        >>> OneSetting(model)(torch.zeros(3, 4), {"angle": torch.tensor([0.0, 10.0, 0.0])}).shape
        torch.Size([3, 2])
    """

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
    """Choose a model's backend by two calls on zeros; the text is the reason why it cannot be `PerSample`, or None.

    Raises:
        ConfigError: if the model cannot take such inputs at all.

    Example:
        >>> import weightmorph as wm
        >>> model = wm.condition(torch.nn.Linear(4, 2), {"angle": wm.Angle("deg")}, wm.LowRank(1))
        >>> backend_for(model, Inputs((4,)))[1] is None
        True
    """
    anchor, others = model.space.anchor, {name: p.grid(3)[-1] for name, p in model.space.items()}
    by_setting, per_sample = OneSetting(model), PerSample(model)
    _try_out(by_setting, inputs, {name: torch.tensor([value]) for name, value in anchor.items()})
    try:
        _try_out(per_sample, inputs, {name: torch.stack((torch.tensor(anchor[name]), others[name])) for name in anchor})
    except ExecutionError as error:
        return by_setting, str(error)
    return per_sample, None


def _try_out(backend: Backend, inputs: Inputs, theta: Mapping[str, Tensor]) -> None:
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


def answer(backend: Backend, requests: Sequence[PredictRequest], inputs: Inputs) -> list[Any | Exception]:
    """One output or error for each request; outputs are NumPy arrays, nested as the network nests them.

    If a batch fails, each of its requests is run alone, so that only the one at fault gets the error.

    Example:
        >>> twice = lambda x, theta: 2 * x
        >>> answer(twice, [PredictRequest(np.ones(2), {"angle": 0.0})], Inputs((2,)))
        [array([2., 2.])]
    """
    results: list[Any | Exception] = [None] * len(requests)
    shapes: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        shapes.setdefault(request.x.shape, []).append(number)
    for rows in shapes.values():
        group = [requests[row] for row in rows]
        try:
            outputs = _call(backend, group)
        except Exception as error:  # the user's network may raise anything
            alone = len(rows) == 1
            outputs = [_at_fault(error, inputs)] if alone else [answer(backend, [r], inputs)[0] for r in group]
        for row, output in zip(rows, outputs, strict=True):
            results[row] = output
    return results


def failure(error: Exception) -> RequestError:
    """The error for a client when the network fails on an input that has passed every check.

    Example:
        >>> failure(ValueError("no")).status
        500
    """
    return RequestError(f"the network failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}", 500)


def _call(backend: Backend, requests: Sequence[PredictRequest]) -> list[Any]:
    x = torch.from_numpy(np.stack([request.x for request in requests]))
    names = requests[0].theta
    theta = {name: torch.tensor([r.theta[name] for r in requests], dtype=torch.float64) for name in names}
    with torch.no_grad():
        return _split(backend(x, theta), len(requests))


def _at_fault(error: Exception, inputs: Inputs) -> Exception:
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
    halves = torch.float16, torch.bfloat16  # NumPy has no bfloat16, and JSON has neither
    arrays = [(leaf.float() if leaf.dtype in halves else leaf).detach().cpu().numpy() for leaf in leaves]
    return [pytree.tree_unflatten([values[row] for values in arrays], nesting) for row in range(size)]

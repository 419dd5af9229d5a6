"""`condition()`: from a network, parameters and a transform to the model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..base.inspect import as_call, folded_layers, trace
from ..base.select import Select, described, floating, read_as_maps, select_slots
from ..base.view import View
from ..errors import BaseError, ConditioningWarning, SelectionError, TransformError
from ..parameters import Parameter, ParameterSpace
from ..transforms import Custom, WeightTransform
from .conditioned import Conditioned

__all__ = ["condition"]


def condition(
    net: nn.Module,
    parameters: Mapping[str, Parameter],
    transform: nn.Module,
    select: Select | None = None,
    example: Any = None,
    *,
    maps: Mapping[str, Sequence[int]] | None = None,
) -> Conditioned:
    r"""Make a frozen network's weights depend on parameters: $f(x; W)$ becomes $f(x; g(W, \theta))$.

    Args:
        net: any pre-trained module. It is neither modified nor run in train mode, now or later.
        parameters: name to [`Angle`][weightmorph.Angle], [`Interval`][weightmorph.Interval] …; the names become
            keyword arguments of the conditioned model.
        transform: a weight transform, a sum of them, or any module `(weight, code) -> weight`.
        select: which tensors; by default every convolution, linear and norm layer that a family wants. A glob pattern
            on tensor or layer names, a layer type, a predicate on [`Slot`][weightmorph.slots.Slot], or a list.
        example: one input, or a tuple of positional inputs, or a dict of keyword inputs. It is run once to learn where
            taps lie, and which `Linear` reads a flattened map.
        maps: layer name to extent, e.g. `{"fc1": (7, 7)}`: says by hand which `Linear` reads a flattened map.

    Returns:
        the model; call it as the network, with one more keyword per parameter.

    Raises:
        BaseError: for a network of a kind that cannot be conditioned, or a parameter named like one of its keywords.
        SelectionError: if no tensor is left to transform.

    Example:
        >>> import torch
        >>> from weightmorph import Angle, LowRank, Scale, condition
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> model = condition(net, {"angle": Angle("deg")}, LowRank(2) + Scale())
        >>> model(torch.zeros(5, 1, 28, 28), angle=[0, 10, 20, 30, 40]).shape
        torch.Size([5, 10])
    """
    space = parameters if isinstance(parameters, ParameterSpace) else ParameterSpace(parameters)
    if not isinstance(transform, nn.Module):
        raise TransformError(
            f"transform: expected a weight transform such as Warp() + LowRank(8), or a module, got {transform!r}"
        )
    recipe = transform if isinstance(transform, WeightTransform) else Custom(transform)
    if not isinstance(net, nn.Module):
        raise BaseError(f"expected an nn.Module to condition, got {type(net).__name__}")
    if isinstance(net, Conditioned):
        raise BaseError("the network is conditioned already: give all parameters to one condition() call")
    _refuse_clashes(net, space)
    view = View(net)
    slots, notes = select_slots(net, select)
    seen = None
    if example is not None:
        args, inputs = as_call(example)
        seen = trace(view.clone(), slots, args, inputs)
        slots = [seen.apply(slot) for slot in slots]
    if maps:
        slots = read_as_maps(slots, dict(maps))
    wanted = [slot for slot in slots if recipe.wants(slot, space)]
    if not wanted:
        raise SelectionError(
            f"{recipe!r} applies to none of the selected tensors ({', '.join(s.name for s in slots[:8])}); a family "
            "that moves taps needs a convolution, or a Linear over a flattened map (give example=)"
        )
    if seen is not None:
        unread = [s.name for s in wanted if s.name not in seen.consumed]
        if unread:
            notes.append(f"not read by the example's forward, so never conditioned: {', '.join(unread)}")
            wanted = [s for s in wanted if s.name in seen.consumed]
    for note in notes:
        warnings.warn(note, ConditioningWarning, stacklevel=2)
    folded = folded_layers(view.clone, wanted, example) if seen is not None else None
    model = Conditioned(view, space, recipe, wanted, floating(net), seen, folded)
    model.selected = described(select)
    return model


def _refuse_clashes(net: nn.Module, space: ParameterSpace) -> None:
    if "fold" in space:
        raise BaseError("parameter 'fold' is also an argument of bake(); give the parameter another name")
    taken = [name for name in space if name in inspect.signature(net.forward).parameters]
    if taken:
        raise BaseError(
            f"parameter {taken[0]!r} is also an argument of {type(net).__name__}.forward; give the parameter another "
            "name"
        )

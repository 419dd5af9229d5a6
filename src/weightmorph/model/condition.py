"""`condition()`: from a network, parameters and a transform to the model."""

from __future__ import annotations

import inspect
import keyword
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..base import (
    Inspection,
    Select,
    View,
    as_call,
    described,
    floating,
    inspect_base,
    merged_slots,
    read_as_maps,
    select_slots,
)  # fmt: skip
from ..errors import BaseError, ConditioningWarning, SelectionError, TransformError
from ..parameters import Parameter, ParameterSpace
from ..slots import Slot
from ..transforms import Custom, WeightTransform
from ..transforms.registry import describe
from .conditioned import Conditioned
from .spec import ModelSpec

__all__ = ["condition"]

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


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

    At the anchor $\theta_0$ the model computes what the network does. Elsewhere a [`Warp`][weightmorph.Warp] follows θ
    at once, and all other transforms after training.

    Args:
        net: any pre-trained module. It is neither modified nor run in train mode, now or later.
        parameters: name to [`Angle`][weightmorph.Angle], [`Interval`][weightmorph.Interval] …; the names become
            keyword arguments of the conditioned model.
        transform: a weight transform $g$, a sum of them, or any module `(weight, code) -> weight`.
        select: which tensors; by default every convolution, linear and norm layer that a family wants. A glob pattern
            on tensor or layer names, a layer type, a predicate on [`Slot`][weightmorph.slots.Slot], or a list.
        example: one input, or a tuple of positional inputs, or a dict of keyword inputs. The network is run on it to
            learn where taps lie, which `Linear` reads a flattened map, and where the batch is.
        maps: layer name to extent, e.g. `{"fc1": (7, 7)}`: names the `Linear` layers that read a flattened map.

    Returns:
        the model; call it as the network, with one more keyword per parameter.

    Raises:
        BaseError: for a network of a kind that cannot be conditioned, or a parameter named like one of its
            arguments, like an argument of one of the model's methods, or like a keyword of Python.
        TransformError: if `transform` is no module.
        SelectionError: if no tensor is left to transform.

    Warns:
        ConditioningWarning: for tensors that are left out, by name.

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
    family = transform if isinstance(transform, WeightTransform) else Custom(transform)
    if not isinstance(net, nn.Module):
        raise BaseError(f"expected an nn.Module to condition, got {type(net).__name__}")
    if isinstance(net, Conditioned):
        raise BaseError("the network is conditioned already: give all parameters to one condition() call")
    _refuse_clashes(net, space)
    view = View(net)
    candidates, notes = select_slots(net, select)
    inspection = None
    if example is not None:
        inspection = inspect_base(view.clone(), candidates, *as_call(example))
        candidates = [inspection.apply(slot) for slot in candidates]
    if maps:
        candidates = read_as_maps(candidates, dict(maps))
    slots, unread = _wanted(candidates, family, space, inspection)
    for note in notes + unread:
        warnings.warn(note, ConditioningWarning, stacklevel=2)
    spec = ModelSpec(
        space=space,
        recipe=describe(family),
        slots={slot.name: slot for slot in slots},
        network=view.network,
        dtype=floating(net),
        selected=described(select),
        inspection=inspection,
        merged=None if inspection is None else merged_slots(view.clone, slots, example),
    )
    return Conditioned(view, spec, family)


def _wanted(
    candidates: Sequence[Slot], family: WeightTransform, space: ParameterSpace, inspection: Inspection | None
) -> tuple[list[Slot], list[str]]:
    """The slots that a family wants and the base reads, and a note about those that it does not read."""
    wanted = [slot for slot in candidates if family.wants(slot, space)]
    if not wanted:
        raise SelectionError(
            f"{family!r} applies to none of the selected tensors ({', '.join(s.name for s in candidates[:8])}); a "
            "family that moves taps needs a convolution, or a Linear over a flattened map (give example=)"
        )
    unread = [] if inspection is None else [slot.name for slot in wanted if not inspection.reads[slot.name]]
    if not unread:
        return wanted, []
    note = f"not read by the example's forward, so never conditioned: {', '.join(unread)}"
    return [slot for slot in wanted if slot.name not in unread], [note]


def _refuse_clashes(net: nn.Module, space: ParameterSpace) -> None:
    """Refuse parameters that could not be given as keywords, to the base or to a method of the model."""
    for name in space:
        if keyword.iskeyword(name):
            raise BaseError(f"parameter {name!r} is a keyword of Python; give the parameter another name")
        for method in filter(inspect.isfunction, vars(Conditioned).values()):
            arguments = inspect.signature(method).parameters.values()
            takes_theta = any(argument.kind is argument.VAR_KEYWORD for argument in arguments)
            own = [argument.name for argument in arguments if argument.kind not in _VARIABLE]
            if takes_theta and name in own:
                raise BaseError(
                    f"parameter {name!r} is also an argument of {method.__name__}(); give the parameter another name"
                )
    taken = [name for name in space if name in inspect.signature(net.forward).parameters]
    if taken:
        raise BaseError(
            f"parameter {taken[0]!r} is also an argument of {type(net).__name__}.forward; give the parameter another "
            "name"
        )

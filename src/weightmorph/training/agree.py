"""Do a model and an input transform speak of the same θ?"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor

from ..errors import ParameterError, TrainingError, near
from ..inputs import InputTransform
from ..parameters import Parameter, ParameterSpace

__all__ = ["agree"]


def agree(space: ParameterSpace, input_transform: Callable[..., Tensor]) -> None:
    """Do an input transform and a model speak of the same parameters, in the same unit?

    Raises:
        ParameterError: naming both, and what to do.
    """
    if not callable(input_transform):
        raise TrainingError(
            f"input_transform: expected an input transform such as inputs.Rotate(), or a function (x, **theta) -> x, "
            f"got {input_transform!r}"
        )
    name = getattr(input_transform, "__name__", type(input_transform).__name__)
    required, known, open_ended = _keywords(input_transform)
    unknown = [p for p in space if p not in known] if not open_ended else []
    if unknown:
        raise ParameterError(
            f"the model is conditioned on {', '.join(space)}, but the input transform {name} takes "
            f"{', '.join(known) or 'no parameter'}: it does not know {unknown[0]!r}{near(unknown[0], known)}. Name the "
            f"transform's parameter alike (e.g. Rotate(name={unknown[0]!r})), add a transform with "
            f"inputs.Compose([…]), or condition the model on {', '.join(known) or 'fewer parameters'} alone"
        )
    left = [p for p in required if p not in space]
    if left:
        raise ParameterError(
            f"the input transform {name} takes {', '.join(required)}, but the model is conditioned on "
            f"{', '.join(space)}: nothing says what {left[0]!r} is. Add it to the parameters given to condition(), or "
            f"fix it with functools.partial(transform, {left[0]}=…)"
        )
    if isinstance(input_transform, InputTransform):
        for parameter, mine in space.items():
            _agree_on(parameter, mine, input_transform.parameters[parameter], name)


def _agree_on(name: str, mine: Parameter, theirs: Parameter, transform: str) -> None:
    one = "declare it once, and give both the same: condition(net, transform.parameters, …)"
    units = _unit(mine), _unit(theirs)
    if None not in units and units[0] != units[1]:
        raise ParameterError(
            f"parameter {name!r} is in {units[0]} for the model and in {units[1]} for the input transform {transform}; "
            f"{one}"
        )
    if mine.anchor_value != theirs.anchor_value:
        raise ParameterError(
            f"parameter {name!r} has its anchor at {mine.anchor!r} for the model, where the network is right as it "
            f"stands, and at {theirs.anchor!r} for the input transform {transform}, where the input is as it was; {one}"
        )


def _keywords(function: Callable[..., Tensor]) -> tuple[list[str], list[str], bool]:
    """The parameters that an input transform needs, those it knows, and whether it takes any others."""
    if isinstance(function, InputTransform):
        names = list(function.parameters)
        return names, names, False
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return [], [], True
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next((p for p in found if p.kind in positional), None)
    named = [p for p in found if p is not first and p.kind in kinds]
    needed = [p.name for p in named if p.default is inspect.Parameter.empty]
    return needed, [p.name for p in named], any(p.kind == inspect.Parameter.VAR_KEYWORD for p in found)


def _unit(parameter: Parameter) -> str | None:
    """In what a parameter is measured; a rotation without a unit is one in radians."""
    return parameter.unit or ("rad" if parameter.affine == "rotation" else None)

"""Check that an input transform takes the parameters of a model, in the same units."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor

from ..errors import ParameterError, TrainingError, near
from ..inputs import InputTransform
from ..parameters import ParameterSpace

__all__ = ["agree"]


def agree(space: ParameterSpace, input_transform: Callable[..., Tensor]) -> None:
    """Refuse an input transform whose parameters are not those of a model.

    Names are compared for any function; units and anchors for an [`InputTransform`][weightmorph.inputs.InputTransform],
    which declares its parameters.

    Args:
        space: the model's parameters.
        input_transform: an input transform, or a function `(x, **theta) -> x`.

    Raises:
        ParameterError: naming both values, and what to do.
        TrainingError: for something that is not callable.

    Example:
        >>> from weightmorph import Angle
        >>> from weightmorph.inputs import Rotate
        >>> agree(ParameterSpace({"angle": Angle("deg")}), Rotate())
        >>> agree(ParameterSpace({"angle": Angle("rad")}), Rotate())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        weightmorph.errors.ParameterError: parameter 'angle' is in rad for the model and in deg for the input ...
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
            f"{', '.join(known) or 'no parameter'}: it does not know {unknown[0]!r}{near(unknown[0], known)}. Rename "
            f"the transform's parameter (e.g. Rotate(name={unknown[0]!r})), add a transform with "
            f"inputs.Compose([…]), or condition the model on {', '.join(known) or 'fewer parameters'} alone"
        )
    missing = [p for p in required if p not in space]
    if missing:
        raise ParameterError(
            f"the input transform {name} takes {', '.join(required)}, but the model is conditioned on "
            f"{', '.join(space)}: nothing says what {missing[0]!r} is. Add it to the parameters given to condition(), "
            f"or fix it with functools.partial(transform, {missing[0]}=…)"
        )
    if isinstance(input_transform, InputTransform):
        space.require_same(input_transform.parameters, f"the input transform {name}")


def _keywords(function: Callable[..., Tensor]) -> tuple[list[str], list[str], bool]:
    """The keywords that an input transform needs, those that it takes, and whether it takes any other."""
    if isinstance(function, InputTransform):
        names = list(function.parameters)
        return names, names, False
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return [], [], True
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next((p for p in parameters if p.kind in positional), None)
    named = [p for p in parameters if p is not first and p.kind in kinds]
    needed = [p.name for p in named if p.default is inspect.Parameter.empty]
    return needed, [p.name for p in named], any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)

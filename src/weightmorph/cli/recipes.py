"""From what a configuration says to parameters, transforms and objectives."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .. import inputs
from ..errors import ConfigError, MissingDependencyError, WeightmorphError, near
from ..inputs import Compose, InputTransform
from ..objectives import Distillation, Objective, Supervised
from ..parameters import Angle, Categorical, Interval, LogInterval, Parameter, ParameterSpace
from ..transforms import Custom, WeightTransform
from ..transforms.registry import SHIPPED
from .sources import call, named

__all__ = ["configuring", "input_transform", "objective", "parameters", "weight_transform"]

PARAMETERS: Mapping[str, Callable[..., Parameter]] = {
    kind.__name__: kind for kind in (Angle, Interval, LogInterval, Categorical)
}
INPUTS: Mapping[str, Callable[..., InputTransform]] = {
    name: getattr(inputs, name)
    for name in ("Blur", "Brightness", "Contrast", "Flip", "Noise", "Rotate", "Shear", "Translate", "Zoom")
}


@dataclass
class Entry:
    """What to make: a name, or an import path, and its arguments."""

    kind: str
    args: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


@contextmanager
def configuring(where: str) -> Iterator[None]:
    """Within, an error is one of the configuration: it says at which key.

    Raises:
        ConfigError: in place of the library's own errors, and of a constructor's about its arguments.
    """
    try:
        yield
    except (ConfigError, MissingDependencyError):
        raise
    except (WeightmorphError, TypeError, ValueError, OverflowError, AttributeError, IndexError) as error:
        raise ConfigError(f"{where}: {error}") from error


def entries(value: Any, where: str) -> list[Entry]:
    """What a key holds, as a list: text such as `Warp + LowRank(8)`, `{type: LowRank, rank: 8}`, or a list of these.

    Raises:
        ConfigError: if it can be read as none of them.

    Example:
        >>> entries("Warp + LowRank(8, hidden=4)", "transform")
        [Entry(kind='Warp', args=[], options={}), Entry(kind='LowRank', args=[8], options={'hidden': 4})]
        >>> entries({"type": "LowRank", "rank": 8}, "transform")
        [Entry(kind='LowRank', args=[], options={'rank': 8})]
    """
    if isinstance(value, list):
        if not value:
            raise ConfigError(f"{where}: expected at least one entry, got an empty list")
        return [entry for item in value for entry in entries(item, where)]
    if isinstance(value, dict):
        options = dict(value)
        kind = options.pop("type", None)
        if kind == "Sum" and isinstance(options.get("parts"), list):  # as a saved model describes itself
            return entries(options["parts"], where)
        if not isinstance(kind, str):
            raise ConfigError(f"{where}: expected an entry 'type', such as {{type: …}}, got {_brief(value)}")
        return [Entry(kind, [], options)]
    if isinstance(value, str) and value.strip():
        return _written(value.strip(), where)
    raise ConfigError(f"{where}: expected a name with its options, {{type: …}}, or a list, got {_brief(value)}")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _written(text: str, where: str) -> list[Entry]:
    """Python's way of writing it, read and never run; only plain values are allowed as arguments."""
    if "(" not in text and ":" in text and text.rpartition(":")[2].isidentifier():
        return [Entry(text)]  # an import path
    try:
        tree = ast.parse(text, mode="eval").body
        return [_term(node) for node in _summands(tree)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        told = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise ConfigError(f"{where}: expected something like Warp + LowRank(8), got {text[:80]!r}: {told}") from error


def _summands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_summands(node.left), *_summands(node.right)]
    return [node]


def _term(node: ast.expr) -> Entry:
    if isinstance(node, ast.Name):
        return Entry(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
        options = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
        return Entry(node.func.id, [_literal(arg) for arg in node.args], options)
    raise ValueError(f"{ast.unparse(node)} is neither a name nor a name with options")


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}.get(node.id, node.id)  # a bare word is text, as in YAML
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    return ast.literal_eval(node)


def _make(entry: Entry, kinds: Mapping[str, Callable[..., Any]], where: str) -> Any:
    if ":" in entry.kind:
        return call(entry.kind, entry.options, where)
    if entry.kind not in kinds:
        raise ConfigError(
            f"{where}: no {entry.kind!r}{near(entry.kind, kinds)}; there are {', '.join(kinds)}, and import paths of "
            "your own"
        )
    with configuring(where):
        return kinds[entry.kind](*entry.args, **entry.options)


def parameter(value: Any, where: str) -> Parameter:
    """One parameter, such as `Angle(deg)` or `{type: Interval, low: 0, high: 4, unit: px}`."""
    found = entries(value, where)
    if len(found) != 1:
        raise ConfigError(f"{where}: expected one parameter, got {len(found)}")
    made = _make(found[0], PARAMETERS, where)
    if not isinstance(made, Parameter):
        raise ConfigError(f"{where}: expected one of {', '.join(PARAMETERS)}, got a {type(made).__name__}")
    return made


def parameters(values: Mapping[str, Any]) -> ParameterSpace:
    """The space that a configuration's `parameters` describe.

    Raises:
        ConfigError: naming the parameter.

    Example:
        >>> parameters({"angle": "Angle(deg)"})["angle"].unit
        'deg'
    """
    made = {name: parameter(value, f"parameters.{name}") for name, value in values.items()}
    with configuring("parameters"):
        return ParameterSpace(made)


def input_transform(value: Any, space: Mapping[str, Parameter] | None = None) -> Callable[..., Any]:
    """What the world does to the input.

    Args:
        value: the configuration's entry. An entry's `parameter` (or `parameters`, of those that have two) is written as
            in `parameters`, or is the name of one of them.
        space: the parameters that can be named so.

    Raises:
        ConfigError: if there is no such transform, or its options do not fit.

    Example:
        >>> input_transform("Rotate(-45, 45)").parameters["angle"].bounds
        (-45.0, 45.0)
    """
    where = "input_transform"
    if value is None:
        raise ConfigError(f"{where}: what does the world do to the input? expected e.g. Rotate, Blur or Zoom")
    made = []
    for entry in entries(value, where):
        if ":" not in entry.kind:
            entry.options = _with_parameters(entry.options, space or {}, where)
            made.append(_bound(_make(entry, INPUTS, where), entry, space or {}))
        else:
            made.append(_own_input(entry, where))
    if len(made) == 1:
        return made[0]
    with configuring(where):
        return Compose(made)


def _bound(made: InputTransform, entry: Entry, space: Mapping[str, Parameter]) -> InputTransform:
    """The transform on the model's own parameters, where it has none of its own: declared once, the same for both."""
    names = list(made.parameters)
    if entry.args or {"low", "high", "parameter", "parameters"} & set(entry.options) or set(names) - set(space):
        return made
    own: dict[str, Any] = {"parameters": {name: space[name] for name in names}}
    options = {key: value for key, value in entry.options.items() if key != "names"}
    if len(names) == 1 and entry.kind not in ("Shear", "Translate"):
        own = {"parameter": space[names[0]], "name": names[0]}
    try:
        return INPUTS[entry.kind](**(options | own))
    except WeightmorphError:  # they do not fit; whether that matters is checked where the two meet
        return made


def _own_input(entry: Entry, where: str) -> Any:
    """One of the user's: a class to be made with the options, an object, or a function `(x, **theta) -> x`."""
    found = named(entry.kind, where)
    if isinstance(found, type):
        found = call(entry.kind, entry.options, where)
    elif entry.options and callable(found):
        found = functools.partial(found, **entry.options)
    if not callable(found):
        raise ConfigError(f"{where}: expected a function (x, **theta) -> x, got a {type(found).__name__}")
    return found


def _with_parameters(options: Mapping[str, Any], space: Mapping[str, Parameter], where: str) -> dict[str, Any]:
    """Options in which parameters are objects and not descriptions."""
    found = dict(options)
    one, several = found.get("parameter"), found.get("parameters")

    def of(value: Any) -> Parameter:
        return space[value] if isinstance(value, str) and value in space else parameter(value, where)

    if one is not None:
        found["parameter"] = of(one)
        if isinstance(one, str) and one in space:
            found.setdefault("name", one)
    if several is not None:
        pairs = several.items() if isinstance(several, dict) else [(name, name) for name in several]
        found["parameters"] = {str(name): of(value) for name, value in pairs}
    return found


def weight_transform(value: Any) -> WeightTransform:
    """How the weights depend on the parameters.

    Raises:
        ConfigError: if there is no such family, or its options do not fit.

    Example:
        >>> [type(part).__name__ for part in weight_transform("Warp + LowRank(8) + Scale").parts]
        ['Warp', 'LowRank', 'Scale']
    """
    where = "transform"
    if value is None:
        raise ConfigError(f"{where}: which? expected e.g. Warp + LowRank(8) + Scale")
    made = [_make(entry, SHIPPED, where) for entry in entries(value, where)]
    for part in made:
        if not isinstance(part, nn.Module):
            raise ConfigError(f"{where}: expected a weight transform or an nn.Module, got a {type(part).__name__}")
    with configuring(where):
        families = [part if isinstance(part, WeightTransform) else Custom(part) for part in made]
        return functools.reduce(operator.add, families)


def objective(value: str, options: Mapping[str, Any]) -> str | Objective | Callable[[Any, Any], Any]:
    """What training asks for.

    Raises:
        ConfigError: if there is no such objective, or its options do not fit.
    """
    if ":" in value:
        found = named(value, "objective")
        made = call(value, options, "objective") if options or isinstance(found, type) else found
    else:
        known: dict[str, Callable[..., Any]] = {"supervised": Supervised, "distillation": Distillation}
        made = _make(Entry(value, [], dict(options)), known, "objective")
    if not callable(made):
        raise ConfigError(f"objective: expected a loss (output, target) -> scalar, got a {type(made).__name__}")
    return made  # type: ignore[no-any-return]

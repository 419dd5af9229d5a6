"""From what a configuration says to parameters, transforms and objectives.

What cannot be read raises a `ConfigError` that names the key.
"""

from __future__ import annotations

import ast
import functools
import inspect
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
from ..parameters import KINDS, Parameter, ParameterSpace
from ..transforms import Custom, WeightTransform
from ..transforms.registry import SHIPPED
from .sources import call, named

__all__ = ["configuring", "input_transform", "objective", "parameters", "weight_transform"]

INPUTS: dict[str, Callable[..., InputTransform]] = {
    name: getattr(inputs, name)
    for name in ("Blur", "Brightness", "Contrast", "Flip", "Noise", "Rotate", "Shear", "Translate", "Zoom")
}
OBJECTIVES: dict[str, Callable[..., Objective]] = {"supervised": Supervised, "distillation": Distillation}


@dataclass
class Entry:
    """What to make: a name, or an import path, and its arguments."""

    kind: str
    args: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


@contextmanager
def configuring(where: str) -> Iterator[None]:
    """Raise the errors of the library, and of constructors about their arguments, as a `ConfigError` with the key."""
    try:
        yield
    except (ConfigError, MissingDependencyError):
        raise
    except (WeightmorphError, TypeError, ValueError, OverflowError, AttributeError, IndexError) as error:
        raise ConfigError(str(error) if str(error).startswith(f"{where}: ") else f"{where}: {error}") from error


def entries(value: Any, where: str) -> list[Entry]:
    """What a key holds, as a list of entries.

    Args:
        value: text such as `Warp + LowRank(8)`; `{class_path: LowRank, init_args: {rank: 8}}`, or shorter
            `{type: LowRank, rank: 8}`; or a list of these.
        where: the key, for messages.

    Example:
        >>> entries("Warp + LowRank(8, hidden=4)", "transform")
        [Entry(kind='Warp', args=[], options={}), Entry(kind='LowRank', args=[8], options={'hidden': 4})]
        >>> entries({"class_path": "weightmorph.LowRank", "init_args": {"rank": 8}}, "transform")
        [Entry(kind='LowRank', args=[], options={'rank': 8})]
        >>> entries({"type": "LowRank", "rank": 8}, "transform")
        [Entry(kind='LowRank', args=[], options={'rank': 8})]
    """
    if isinstance(value, list) and value:
        return [entry for item in value for entry in entries(item, where)]
    if isinstance(value, dict):
        options = dict(value)
        kind = options.pop("type", None)
        if "class_path" in value:
            kind, options = value["class_path"], value.get("init_args") or {}
        if kind == "Sum" and isinstance(options.get("parts"), list):  # as a saved model describes itself
            return entries(options["parts"], where)
        if isinstance(kind, str) and isinstance(options, dict):
            return [Entry(_import_path(kind), [], options)]
    if isinstance(value, str) and value.strip():
        return _written(value.strip(), where)
    raise ConfigError(
        f"{where}: expected a name with its options such as LowRank(8), {{class_path: …, init_args: …}}, or a list of "
        f"these, got {value!r:.80}"
    )


def _import_path(kind: str) -> str:
    """`package.module.Class` as `package.module:Class`; a class of this library by its name alone."""
    module, _, name = kind.rpartition(".")
    if ":" in kind or not module:
        return kind
    return name if module.partition(".")[0] == "weightmorph" else f"{module}:{name}"


def _written(text: str, where: str) -> list[Entry]:
    """Read Python's way of writing it, and never run it; only plain values are allowed as arguments."""
    if "(" not in text and ":" in text and text.rpartition(":")[2].isidentifier():
        return [Entry(text)]  # an import path
    try:
        return _sum(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise ConfigError(f"{where}: expected something like Warp + LowRank(8), got {text[:80]!r}: {reason}") from error


def _sum(node: ast.expr) -> list[Entry]:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [*_sum(left), *_sum(right)]
        case ast.Name(id=name):
            return [Entry(name)]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if all(k.arg for k in keywords):
            options = {str(keyword.arg): _literal(keyword.value) for keyword in keywords}
            return [Entry(name, [_literal(arg) for arg in args], options)]
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
    found = [_make(entry, KINDS, where) for entry in entries(value, where)]
    if len(found) != 1 or not isinstance(found[0], Parameter):
        raise ConfigError(f"{where}: expected one parameter, of {', '.join(KINDS)}, got {value!r:.80}")
    return found[0]


def parameters(values: Mapping[str, Any]) -> ParameterSpace:
    """The space that a configuration's `parameters` describe.

    Example:
        >>> parameters({"angle": "Angle(deg)"})["angle"].unit
        'deg'
    """
    space = {name: parameter(value, f"parameters.{name}") for name, value in values.items()}
    with configuring("parameters"):
        return ParameterSpace(space)


def input_transform(value: Any, space: Mapping[str, Parameter] | None = None) -> Callable[..., Any]:
    """What the world does to the input.

    Args:
        value: the configuration's entry. An entry's `parameter` (or `parameters`, of those that have two) is written as
            in `parameters`, or is the name of one of them.
        space: the parameters that can be named so.

    Example:
        >>> input_transform("Rotate(-45, 45)").parameters["angle"].bounds
        (-45.0, 45.0)
    """
    where = "input_transform"
    if value is None:
        raise ConfigError(f"{where}: what does the world do to the input? expected e.g. Rotate, Blur or Zoom")
    with configuring(where):
        turns: list[Any] = [
            _own_input(entry, where) if ":" in entry.kind else _shipped_input(entry, space or {}, where)
            for entry in entries(value, where)
        ]
        return Compose(turns) if len(turns) > 1 else turns[0]


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


def _shipped_input(entry: Entry, space: Mapping[str, Parameter], where: str) -> InputTransform:
    """One of the library's; without a range of its own it acts on the model's parameters, so that they are declared
    once.
    """

    def of(value: Any) -> Parameter:
        return space[value] if isinstance(value, str) and value in space else parameter(value, where)

    options = dict(entry.options)
    if (one := options.get("parameter")) is not None:
        options["parameter"] = of(one)
        if isinstance(one, str) and one in space:
            options.setdefault("name", one)
    if (several := options.get("parameters")) is not None:
        pairs = several if isinstance(several, dict) else dict(zip(several, several, strict=True))
        options["parameters"] = {str(name): of(value) for name, value in pairs.items()}
    turn: InputTransform = _make(Entry(entry.kind, entry.args, options), INPUTS, where)
    names = list(turn.parameters)
    if entry.args or {"low", "high", "parameter", "parameters"} & set(options) or set(names) - set(space):
        return turn
    options.pop("names", None)
    if "parameters" in inspect.signature(INPUTS[entry.kind]).parameters:
        options["parameters"] = {name: space[name] for name in names}
    else:
        options |= {"parameter": space[names[0]], "name": names[0]}
    try:
        return INPUTS[entry.kind](**options)
    except WeightmorphError:  # they do not fit; whether that matters is checked where the two meet
        return turn


def weight_transform(value: Any) -> WeightTransform:
    """How the weights depend on the parameters.

    Example:
        >>> [type(part).__name__ for part in weight_transform("Warp + LowRank(8) + Scale").parts]
        ['Warp', 'LowRank', 'Scale']
    """
    where = "transform"
    if value is None:
        raise ConfigError(f"{where}: which? expected e.g. Warp + LowRank(8) + Scale")
    parts = [_make(entry, SHIPPED, where) for entry in entries(value, where)]
    for part in parts:
        if not isinstance(part, nn.Module):
            raise ConfigError(f"{where}: expected a weight transform or an nn.Module, got a {type(part).__name__}")
    with configuring(where):
        families = [part if isinstance(part, WeightTransform) else Custom(part) for part in parts]
        return functools.reduce(operator.add, families)


def objective(value: str, options: Mapping[str, Any]) -> Callable[[Any, Any], Any] | Objective:
    """What training asks for."""
    loss: Any
    if ":" in value and not options and not isinstance(named(value, "objective"), type):
        loss = named(value, "objective")
    else:
        loss = _make(Entry(value, [], dict(options)), OBJECTIVES, "objective")
    if not callable(loss):
        raise ConfigError(f"objective: expected a loss (output, target) -> scalar, got a {type(loss).__name__}")
    return loss  # type: ignore[no-any-return]  # whatever the user's import path names

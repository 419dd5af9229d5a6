"""Read the bytes of a request and check them: the result is a `PredictRequest`, or an error that names the fault.

[pydantic](https://docs.pydantic.dev) checks the structure of a JSON body; `application` imports this file when it is
called.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ParameterError, RequestError, near
from ..parameters import Parameter, ParameterSpace
from .inputs import Array, Inputs, PredictRequest, shape_text

__all__ = ["JSON", "NPY", "Body", "NpyText", "array", "from_json", "from_npy", "theta"]

JSON = "application/json"
NPY = "application/x-npy"


class NpyText(BaseModel):
    """An .npy file inside a JSON body: `{"npy": base64}`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    npy: str


class Body(BaseModel):
    """The JSON body of a request: the sample, and one value for each parameter."""

    model_config = ConfigDict(extra="forbid", strict=True)
    input: list[Any] | int | float | NpyText
    theta: dict[str, int | float | str] = {}


def from_json(body: bytes, space: ParameterSpace, inputs: Inputs) -> PredictRequest:
    """Read `{"input": …, "theta": {name: value}}`, the input as nested lists or `{"npy": base64 of an .npy file}`.

    Raises:
        RequestError: with status 400 for a body that is not JSON, 422 for anything else that is wrong.

    Example:
        >>> from weightmorph import Angle
        >>> space = ParameterSpace({"angle": Angle("deg")})
        >>> request = from_json(b'{"input": [1, 2], "theta": {"angle": 30}}', space, Inputs((2,)))
        >>> request.x.tolist(), request.theta
        ([1.0, 2.0], {'angle': 30.0})
    """
    try:
        content = Body.model_validate(json.loads(body, object_pairs_hook=_distinct))
    except ValidationError as error:
        raise _refusal(error, space, inputs) from None
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise RequestError(f"the body is not JSON: {_first_line(error)}", 400) from error
    if isinstance(content.input, NpyText):
        try:
            x = array(base64.b64decode(content.input.npy, validate=True))
        except ValueError as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"input: the text under 'npy' is not base64: {error}", 400) from error
    else:
        x = _from_lists(content.input, may_hold_booleans=b"true" in body or b"false" in body)
    return PredictRequest(inputs.sample(x), theta(content.theta, space))


def from_npy(body: bytes, query: Iterable[tuple[str, str]], space: ParameterSpace, inputs: Inputs) -> PredictRequest:
    """Read an .npy file, and θ from the URL: `POST /predict?angle=30`.

    Raises:
        RequestError: with status 400 for a body that is no .npy file, 422 for anything else that is wrong.

    Example:
        >>> from weightmorph import Angle
        >>> file = io.BytesIO()
        >>> np.save(file, np.ones(2))
        >>> space = ParameterSpace({"angle": Angle("deg")})
        >>> from_npy(file.getvalue(), [("angle", "30")], space, Inputs((2,))).theta
        {'angle': 30.0}
    """
    values: dict[str, Any] = {}
    for name, text in query:
        if name in values:
            raise RequestError(f"parameter {_short(name)} is given twice")
        try:
            values[name] = float(text)
        except ValueError:  # the name of a category stays text
            values[name] = text
    return PredictRequest(inputs.sample(array(body)), theta(values, space))


def array(content: bytes) -> Array:
    """Read an .npy file of numbers. A file of objects, which would need pickle, is refused unread.

    Raises:
        RequestError: with status 400.

    Example:
        >>> file = io.BytesIO()
        >>> np.save(file, np.arange(3))
        >>> array(file.getvalue()).tolist()
        [0, 1, 2]
    """
    file = io.BytesIO(content)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = headers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # NumPy raises many kinds for a damaged header
        raise RequestError(f"not an .npy file of version 1 or 2: {_first_line(error)}", 400) from error
    if dtype.kind not in "fiu":
        raise RequestError(f"input: expected an .npy file of numbers, got one of {_short(str(dtype))}", 400)
    # Memory is taken for the bytes that came, not for the size that the header announces.
    missing = math.prod(shape) * dtype.itemsize - (len(content) - file.tell())
    if missing or any(n < 0 for n in shape):
        difference = f"{missing:,} bytes more" if missing > 0 else f"{-missing:,} bytes fewer"
        raise RequestError(
            f"an .npy file of shape {shape_text(shape)} and type {dtype} has {difference} than came", 400
        )
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def theta(values: dict[str, Any], space: ParameterSpace) -> dict[str, float]:
    """Check θ and return one number for each parameter. A value out of range is refused: nobody reads a warning here.

    Raises:
        RequestError: if a value is missing, unknown, of a wrong kind, not finite, or out of range.

    Example:
        >>> from weightmorph import Categorical
        >>> theta({"time": "night"}, ParameterSpace({"time": Categorical(("day", "night"))}))
        {'time': 1.0}
    """
    for name in values:
        if name not in space:
            raise RequestError(
                f"unknown parameter {_short(name)}; the model is conditioned on {', '.join(space)}{near(name, space)}"
            )
    missing = [name for name in space if name not in values]
    if missing:
        anchor = ", ".join(f"{name}={getattr(p, 'anchor', p.anchor_value)}" for name, p in space.items())
        raise RequestError(f"no value for {', '.join(map(repr, missing))}; at the anchor it is {anchor}")
    return {name: _number(name, parameter, values[name]) for name, parameter in space.items()}


def _number(name: str, parameter: Parameter, value: float | str) -> float:
    try:
        number = float(parameter.tensor(name, value))
    except (ParameterError, OverflowError) as error:
        raise RequestError(_short(str(error), 400, quoted=False)) from error
    # An angle is encoded in float32.
    if not math.isfinite(number) or abs(number) > float(np.finfo(np.float32).max):
        raise RequestError(f"parameter {name!r}: expected a finite number, got {_short(str(value), quoted=False)}")
    if parameter.bounds is not None:
        low, high = parameter.bounds
        if not low - 1e-6 * (high - low) <= number <= high + 1e-6 * (high - low):
            unit = f" {parameter.unit}" if parameter.unit else ""
            raise RequestError(f"parameter {name!r}: expected a value in [{low:g}, {high:g}]{unit}, got {number:g}")
    try:
        parameter.check(name, torch.tensor(number, dtype=torch.float64))
    except ParameterError as error:
        raise RequestError(str(error)) from error
    return number


def _from_lists(value: Any, may_hold_booleans: bool) -> Array:
    try:
        x: Array = np.asarray(value)
    except (ValueError, OverflowError, RecursionError) as error:
        raise RequestError(f"input: the nested lists are no array: {_first_line(error)}") from error
    if may_hold_booleans and _holds_boolean(value):  # NumPy reads them as 1 and 0
        raise RequestError("input: expected numbers, got a boolean among them")
    return x


def _holds_boolean(value: Any) -> bool:
    return any(map(_holds_boolean, value)) if isinstance(value, list) else isinstance(value, bool)


def _refusal(error: ValidationError, space: ParameterSpace, inputs: Inputs) -> RequestError:
    """The first fault that pydantic found, as what was expected and what came."""
    first = error.errors(include_url=False)[0]
    place, value = first["loc"], first["input"]
    if not place:
        return RequestError(f'expected an object {{"input": …, "theta": {{…}}}}, got {_kind(value)}')
    key = str(place[0])
    if first["type"] == "missing":
        return RequestError(f'"input" is missing: expected nested lists of shape {inputs.text}, or {{"npy": "base64"}}')
    if key == "input":
        kind = "another object" if isinstance(value, dict) or len(place) > 2 else _kind(value)
        return RequestError(f'input: expected nested lists, or {{"npy": "base64 of an .npy file"}}, got {kind}')
    if key != "theta":
        known = ("input", "theta")
        return RequestError(f"unknown key {_short(key)}; expected 'input' and 'theta'{near(key, known)}")
    if len(place) == 1:
        return RequestError(f'theta: expected an object such as {{"{next(iter(space))}": …}}, got {_kind(value)}')
    got = f"expected a number, got {value!r}" if isinstance(value, bool) else f"expected one value, got {_kind(value)}"
    return RequestError(f"parameter {_short(str(place[1]))}: {got}")


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are distinct: nobody could say which of two values was meant."""
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"the key {_short(twice)} is there twice", 400)
    return content


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _short(text: str, most: int = 60, quoted: bool = True) -> str:
    """A client's own text, cut to a length that still lets it be recognised."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return repr(text) if quoted else text


def _first_line(error: BaseException) -> str:
    return _short((str(error) or type(error).__name__).splitlines()[0], 160, quoted=False)

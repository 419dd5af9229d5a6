"""From the bytes of a request to a checked sample and its θ, or to an error that says what is wrong."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError, ParameterError, RequestError, near
from ..parameters import Parameter, ParameterSpace

__all__ = ["JSON", "NPY", "Asked", "Inputs", "array", "from_json", "from_npy"]

JSON = "application/json"
NPY = "application/x-npy"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Inputs:
    """What one sample looks like.

    Args:
        shape: without the batch axis; None leaves an axis open.
        dtype: `"float32"`, `"float64"`, or `"int64"` for a network that reads indices.

    Example:
        >>> Inputs((3, None, None)).text
        '3×any×any float32'
    """

    shape: tuple[int | None, ...]
    dtype: Literal["float32", "float64", "int64"] = "float32"

    def __post_init__(self) -> None:
        if any(size is not None and (isinstance(size, bool) or size < 1) for size in self.shape):
            raise ConfigError(f"input_shape: expected sizes of 1 or more, or null for an open axis, got {self.shape}")
        if self.dtype not in ("float32", "float64", "int64"):
            raise ConfigError(f"input_dtype: expected float32, float64 or int64, got {self.dtype!r}")

    @property
    def open(self) -> bool:
        """May samples differ in shape?"""
        return None in self.shape

    @property
    def text(self) -> str:
        """For messages."""
        return f"{'×'.join('any' if n is None else str(n) for n in self.shape) or 'a single number'} {self.dtype}"

    def example(self, size: int, open_axis: int = 32) -> torch.Tensor:
        """Zeros to try the network with: `(size, *shape)`."""
        shape = [open_axis if n is None else n for n in self.shape]
        return torch.zeros(size, *shape, dtype=getattr(torch, self.dtype))

    def sample(self, value: Array) -> Array:
        """An array as one sample, checked.

        Raises:
            RequestError: if it has another shape or kind, or holds what is not finite.
        """
        if value.dtype.kind not in "fiu":
            raise RequestError(f"input: expected numbers, got {_kind(value)}")
        if self.dtype == "int64" and value.dtype.kind == "f":
            raise RequestError(f"input: expected whole numbers, got {value.dtype}")
        fits = len(value.shape) == len(self.shape) and all(
            n > 0 and wanted in (None, n) for n, wanted in zip(value.shape, self.shape, strict=True)
        )
        if not fits:
            batched = value.shape[:1] == (1,) and len(value.shape) == len(self.shape) + 1
            hint = "; a request holds one sample, without a batch axis" if batched else ""
            raise RequestError(f"input: expected shape {self.text}, got {_sizes(value.shape)}{hint}")
        with np.errstate(over="ignore"):  # what overflows is found on the next line
            cast = np.ascontiguousarray(value, dtype=self.dtype)
        if cast.dtype.kind == "f" and not np.isfinite(cast).all():
            raise RequestError(f"input: expected finite numbers of {self.dtype}, got NaN or infinity among them")
        return cast


@dataclass(frozen=True)
class Asked:
    """A request that can be answered.

    Attributes:
        x: the sample, of the shape that [`Inputs`][weightmorph.serving.Inputs] says.
        theta: a number for each parameter; of a Categorical, the index.
    """

    x: Array = field(repr=False)  # LitServe makes a text of each request, for a log that is mostly off
    theta: Mapping[str, float]


def from_json(body: bytes, space: ParameterSpace, inputs: Inputs) -> Asked:
    """Read `{"input": …, "theta": {name: value}}`, the input as nested lists or `{"npy": base64 of an .npy file}`.

    Raises:
        RequestError: with status 400 for what is not JSON, 422 for anything else that is wrong.

    Example:
        >>> from weightmorph import Angle
        >>> space = ParameterSpace({"angle": Angle("deg")})
        >>> asked = from_json(b'{"input": [1, 2], "theta": {"angle": 30}}', space, Inputs((2,)))
        >>> asked.x.tolist(), asked.theta
        ([1.0, 2.0], {'angle': 30.0})
    """
    try:
        data = json.loads(body, object_pairs_hook=_once)
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise RequestError(f"the body is not JSON: {_first_line(error)}", 400) from error
    if not isinstance(data, dict):
        raise RequestError(f'expected an object {{"input": …, "theta": {{…}}}}, got {_kind(data)}')
    for key in data:
        if key not in ("input", "theta"):
            raise RequestError(
                f"unknown key {_short(key)}; expected 'input' and 'theta'{near(key, ('input', 'theta'))}"
            )
    if "input" not in data:
        raise RequestError(f'"input" is missing: expected nested lists of shape {inputs.text}, or {{"npy": "base64"}}')
    value = data["input"]
    if isinstance(value, dict):
        if list(value) != ["npy"] or not isinstance(value["npy"], str):
            raise RequestError('input: expected nested lists, or {"npy": "base64 of an .npy file"}, got another object')
        try:
            content = base64.b64decode(value["npy"], validate=True)
        except ValueError as error:
            raise RequestError(f"input: the text under 'npy' is not base64: {error}", 400) from error
        x = array(content)
    elif isinstance(value, list):
        try:
            x = np.asarray(value)
        except (ValueError, OverflowError, RecursionError) as error:
            raise RequestError(f"input: the nested lists are no array: {_first_line(error)}") from error
        if (b"true" in body or b"false" in body) and _holds_boolean(value):  # of which NumPy makes 1 and 0
            raise RequestError("input: expected numbers, got a boolean among them")
    else:
        x = np.asarray(value if isinstance(value, int | float) and not isinstance(value, bool) else object())
    return Asked(inputs.sample(x), theta(data.get("theta", {}), space))


def from_npy(body: bytes, query: Iterable[tuple[str, str]], space: ParameterSpace, inputs: Inputs) -> Asked:
    """Read an .npy file, and θ from the URL: `POST /predict?angle=30`.

    Raises:
        RequestError: with status 400 for what is not an .npy file, 422 for anything else that is wrong.
    """
    values: dict[str, Any] = {}
    for name, text in query:
        if name in values:
            raise RequestError(f"parameter {_short(name)} is given twice")
        values[name] = _number(text)
    return Asked(inputs.sample(array(body)), theta(values, space))


def array(content: bytes) -> Array:
    """The array in an .npy file. Objects, which would need pickle, are refused before anything is read.

    Raises:
        RequestError: with status 400.

    Example:
        >>> file = io.BytesIO()
        >>> np.save(file, np.arange(3))
        >>> array(file.getvalue()).tolist()
        [0, 1, 2]
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, fortran, dtype = readers[version](file)
    except Exception as error:  # whatever NumPy says to a damaged header
        raise RequestError(f"not an .npy file of version 1 or 2: {_first_line(error)}", 400) from error
    if dtype.kind not in "fiu":
        raise RequestError(f"input: expected an .npy file of numbers, got one of {_short(str(dtype))}", 400)
    # The header's word for the size is not trusted: memory is taken for what has come, not for what was announced.
    missing = math.prod(shape) * dtype.itemsize - (len(content) - file.tell())
    if missing or any(n < 0 for n in shape):
        raise RequestError(
            f"an .npy file of shape {_sizes(shape)} and type {dtype} has "
            f"{f'{missing:,} bytes more' if missing > 0 else f'{-missing:,} bytes fewer'} than came",
            400,
        )
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def theta(values: Any, space: ParameterSpace) -> dict[str, float]:
    """One number for each parameter, checked; what is out of range is refused, for nobody reads a warning here.

    Raises:
        RequestError: if one is missing, unknown, of a wrong kind, not finite, or out of range.
    """
    if not isinstance(values, dict):
        raise RequestError(f'theta: expected an object such as {{"{next(iter(space))}": …}}, got {_kind(values)}')
    for name in values:
        if name not in space:
            raise RequestError(
                f"unknown parameter {_short(name)}; the model is conditioned on {', '.join(space)}{near(name, space)}"
            )
    missing = [name for name in space if name not in values]
    if missing:
        raise RequestError(f"no value for {', '.join(map(repr, missing))}; at the anchor it is {_anchor(space)}")
    return {name: _value(name, parameter, values[name]) for name, parameter in space.items()}


def _value(name: str, parameter: Parameter, value: Any) -> float:
    if isinstance(value, list | dict) or value is None:
        raise RequestError(f"parameter {name!r}: expected one value, got {_kind(value)}")
    try:
        number = float(parameter.tensor(name, value))
    except (ParameterError, OverflowError) as error:
        raise RequestError(_short(str(error), 400, quoted=False)) from error
    # As float32, in which an angle is encoded.
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


def _anchor(space: ParameterSpace) -> str:
    return ", ".join(f"{name}={getattr(p, 'anchor', p.anchor_value)}" for name, p in space.items())


def _number(text: str) -> float | str:
    """A number where the text reads as one; names of categories stay text."""
    try:
        return float(text)
    except ValueError:
        return text


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are distinct: of two values for one parameter, which was meant?"""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"the key {_short(twice)} is there twice", 400)
    return found


def _holds_boolean(value: Any) -> bool:
    return any(map(_holds_boolean, value)) if isinstance(value, list) else isinstance(value, bool)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}" if value.dtype.kind != "O" else "something else among them"
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape[:8])) + ("×…" if len(shape) > 8 else "") or "a single number"


def _short(text: str, most: int = 60, quoted: bool = True) -> str:
    """A client's own text, so long that it can be recognised and no longer."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return repr(text) if quoted else text


def _first_line(error: BaseException) -> str:
    return _short((str(error) or type(error).__name__).splitlines()[0], 160, quoted=False)

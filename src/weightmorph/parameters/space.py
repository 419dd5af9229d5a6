"""The parameters of a model by name, and the code of all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import affine as maps
from ..errors import (
    MissingParameterError,
    ParameterError,
    ParameterLengthError,
    UnknownParameterError,
    WeightmorphError,
    near,
)
from .base import Parameter, Theta, Value
from .kinds import KINDS

__all__ = ["ParameterSpace"]


class ParameterSpace(Mapping[str, Parameter]):
    """Named parameters: a dict that checks, samples and encodes values of θ.

    Args:
        parameters: name to parameter; the code's columns follow this order.

    Example:
        >>> from weightmorph import Angle, Interval
        >>> space = ParameterSpace({"angle": Angle("deg", harmonics=1), "blur": Interval(0.0, 4.0, order=1)})
        >>> theta = space.prepare({"angle": 90, "blur": [0.0, 4.0]})
        >>> space.encode(theta).round().abs().tolist()
        [[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        if not isinstance(parameters, Mapping) or not parameters:
            raise ParameterError(f"expected a dict of parameters such as {{'angle': Angle('deg')}}, got {parameters!r}")
        for name, parameter in parameters.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise ParameterError(f"a parameter's name must be a Python identifier, got {name!r}")
            if not isinstance(parameter, Parameter):
                raise ParameterError(
                    f"parameter {name!r}: expected one of {', '.join(KINDS)}, "
                    f"got {type(parameter).__name__} {parameter!r}"
                )
        self._parameters = dict(parameters)

    def __getitem__(self, name: str) -> Parameter:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __repr__(self) -> str:
        return f"ParameterSpace({self._parameters!r})"

    @property
    def code_dim(self) -> int:
        """Columns of the code of all parameters."""
        return sum(p.code_dim for p in self.values())

    @property
    def anchor(self) -> dict[str, float]:
        """The anchor of each parameter, by name."""
        return {name: p.anchor_value for name, p in self.items()}

    @property
    def anchor_code(self) -> tuple[float, ...]:
        """The code at the anchor, exactly."""
        return tuple(v for p in self.values() for v in p.anchor_code)

    def prepare(
        self,
        values: Mapping[str, Value],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        check: bool = True,
    ) -> Theta:
        """Check a user's values and bring them to one batch shape, device and dtype.

        Args:
            values: one entry per parameter: a number, a 0-d tensor, a `(B,)` tensor or a list.
            device: where the values are needed.
            dtype: their type; at least float32, so that an angle in degrees keeps its digits.
            check: look at the values (eager only). Values on an accelerator are never looked at, because that would
                force a synchronisation on every call.

        Returns:
            name to `(*B)` tensor, `*B` being empty or `(B,)`, the same for all.

        Raises:
            MissingParameterError, UnknownParameterError, ParameterLengthError, ParameterValueError.
        """
        for name in values:
            if name not in self._parameters:
                raise UnknownParameterError(
                    f"unknown parameter {name!r}; this model is conditioned on {', '.join(self)}{near(name, self)}"
                )
        missing = [name for name in self if name not in values]
        if missing:
            example = ", ".join(f"{name}=…" for name in self)
            raise MissingParameterError(
                f"no value for {', '.join(map(repr, missing))}: call model(x, {example}); "
                f"at the anchor ({', '.join(f'{k}={v:g}' for k, v in self.anchor.items())}) the base is unchanged"
            )
        theta: Theta = {}
        for name, parameter in self.items():
            value = parameter.tensor(name, values[name])
            if check and value.device.type == "cpu":
                parameter.check(name, value)
            theta[name] = value.to(device=device, dtype=torch.promote_types(dtype, torch.float32))
        lengths = {name: value.shape[0] for name, value in theta.items() if value.dim()}
        # Not a set of lengths: a symbolic one, under export, cannot be hashed.
        if any(n != m for n, m in itertools.pairwise(lengths.values())):
            raise ParameterLengthError(
                f"parameters given per sample must have one length, got "
                f"{', '.join(f'{name}: {n}' for name, n in lengths.items())}"
            )
        if lengths:
            size = next(iter(lengths.values()))
            theta = {name: value.expand(size) for name, value in theta.items()}
        return theta

    def encode(self, theta: Theta) -> Tensor:
        """Values `(*B)` by name to the code `(*B, K)`."""
        return torch.cat([p.encode(theta[name]) for name, p in self.items()], -1)

    def _split(self, code: Tensor) -> dict[str, Tensor]:
        parts = torch.split(code, [p.code_dim for p in self.values()], -1)
        return dict(zip(self, parts, strict=True))

    def decode(self, code: Tensor) -> Theta:
        """The code `(*B, K)` back to values by name."""
        return {name: self[name].decode(part) for name, part in self._split(code).items()}

    def coordinates(self, code: Tensor) -> Tensor:
        """The code `(*B, K)` to coordinates `(*B, len(self))` that are 0 at the anchor and in which θ adds."""
        return torch.stack([self[name].coordinate(part) for name, part in self._split(code).items()], -1)

    def plane(self, code: Tensor) -> Tensor:
        """The map of the image plane under θ, relative to the anchor, parameters applied in order: `(*B, 2, 3)`."""
        total: Tensor | None = None
        for name, part in self._split(code).items():
            if self[name].affine is not None:
                plane = self[name].plane(part)
                total = plane if total is None else maps.compose(plane, total)
        return maps.identity(code[..., 0]) if total is None else total

    @property
    def affine_names(self) -> tuple[str, ...]:
        """The maps of the plane that the parameters name, in order."""
        return tuple(p.affine for p in self.values() if p.affine is not None)

    def sample(self, size: int, generator: torch.Generator | None = None) -> Theta:
        """`size` settings drawn independently: name to `(size,)`."""
        return {name: p.sample(size, generator) for name, p in self.items()}

    def grid(self, size: int) -> Theta:
        """`size` values of each parameter, all combinations: name to `(N,)`."""
        axes = torch.meshgrid(*[p.grid(size) for p in self.values()], indexing="ij")
        return {name: axis.flatten() for name, axis in zip(self, axes, strict=True)}

    def format(self, theta: Mapping[str, float]) -> str:
        """A setting as a reader wants it: `30°`, `2.5 px`, `night`; of several parameters, each after its name.

        Args:
            theta: values of all the parameters, or of some.

        Example:
            >>> from weightmorph import Angle, Interval
            >>> space = ParameterSpace({"angle": Angle("deg"), "blur": Interval(0.0, 4.0, unit="px")})
            >>> space.format({"angle": 30.0}), space.format({"angle": 30.0, "blur": 2.5})
            ('30°', 'angle 30°, blur 2.5 px')
        """
        texts = {name: self[name].format(value) for name, value in theta.items()}
        return ", ".join(texts.values() if len(texts) == 1 else (f"{name} {text}" for name, text in texts.items()))

    def require_same(
        self, other: Mapping[str, Parameter], where: str, error: type[WeightmorphError] = ParameterError
    ) -> None:
        """Refuse other parameters that do not mean the same θ: names, units, anchors and categories must be equal.

        A parameter without a unit goes with any unit, except that a rotation without a unit is in radians.

        Args:
            other: the parameters of something that works with a model of this space.
            where: what they belong to, for the message.
            error: what is raised.

        Raises:
            ParameterError: or another `error`, naming both values, and what to do.

        Example:
            >>> from weightmorph import Angle
            >>> space = ParameterSpace({"angle": Angle("deg")})
            >>> other = {"angle": Angle("rad")}
            >>> space.require_same(other, "the input transform Rotate")  # doctest: +NORMALIZE_WHITESPACE
            Traceback (most recent call last):
                ...
            weightmorph.errors.ParameterError: parameter 'angle' is in deg for the model and in rad for the input
            transform Rotate; declare it once and give both the same, e.g. condition(net, transform.parameters, …)
        """
        if set(self) != set(other):
            raise error(
                f"expected the model's parameters {', '.join(self)}, got {', '.join(other)} for {where}; use the "
                f"same names, e.g. Rotate(name={next(iter(self))!r})"
            )
        for name, mine in self.items():
            theirs = other[name]
            units = _measured_in(mine), _measured_in(theirs)
            if None not in units and units[0] != units[1]:
                different = f"is in {units[0]} for the model and in {units[1]}"
            elif mine.choices != theirs.choices:
                different = f"has the names {mine.choices!r} for the model and {theirs.choices!r}"
            elif mine.anchor != theirs.anchor:
                different = f"has its anchor at {mine.anchor!r} for the model and at {theirs.anchor!r}"
            else:
                continue
            raise error(
                f"parameter {name!r} {different} for {where}; declare it once and give both the same, e.g. "
                "condition(net, transform.parameters, …)"
            )

    def settings(self, values: int | Mapping[str, Value]) -> list[dict[str, float]]:
        """Settings one by one, as plain numbers.

        Args:
            values: how many values of each parameter, in all combinations; or the settings themselves, one list per
                parameter, all of one length.

        Raises:
            ParameterError: as [`prepare`][weightmorph.ParameterSpace.prepare].

        Example:
            >>> from weightmorph import Angle
            >>> ParameterSpace({"angle": Angle("deg")}).settings({"angle": [0.0, 45.0]})
            [{'angle': 0.0}, {'angle': 45.0}]
        """
        theta = self.grid(values) if isinstance(values, int) else self.prepare(values, dtype=torch.float64)
        columns = [torch.atleast_1d(theta[name]).tolist() for name in self]
        return [dict(zip(self, point, strict=True)) for point in zip(*columns, strict=True)]

    def config(self) -> dict[str, dict[str, Any]]:
        """Plain data, for JSON."""
        return {name: p.config() for name, p in self.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Mapping[str, Any]]) -> ParameterSpace:
        """The space that [`config`][weightmorph.ParameterSpace.config] described."""
        parameters: dict[str, Parameter] = {}
        for name, entry in config.items():
            fields = dict(entry)
            kind = fields.pop("type", None)
            if kind not in KINDS:
                raise ParameterError(f"parameter {name!r}: unknown type {kind!r}; known: {', '.join(KINDS)}")
            parameters[name] = KINDS[kind](**fields)
        return cls(parameters)


def _measured_in(parameter: Parameter) -> str | None:
    """The unit of a parameter; a rotation without a unit is in radians."""
    return parameter.unit or ("rad" if parameter.affine == "rotation" else None)

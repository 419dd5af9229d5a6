"""What a server expects of one sample, and a request that has passed every check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError, RequestError

__all__ = ["Array", "Inputs", "PredictRequest", "shape_text"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Inputs:
    """The shape and type of one sample.

    Args:
        shape: without the batch axis; None leaves an axis open.
        dtype: `"float32"`, `"float64"`, or `"int64"` for a network that reads indices.

    Raises:
        ConfigError: if a size is below 1, or the type is another one.

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
        """Whether samples may differ in shape."""
        return None in self.shape

    @property
    def text(self) -> str:
        """Shape and type, for messages."""
        return f"{'×'.join('any' if n is None else str(n) for n in self.shape) or 'a single number'} {self.dtype}"

    def example(self, size: int, open_axis: int = 32) -> torch.Tensor:
        """A batch of zeros to try the network with: `(size, *shape)`.

        Example:
            >>> Inputs((3, None)).example(2, open_axis=5).shape
            torch.Size([2, 3, 5])
        """
        shape = [open_axis if n is None else n for n in self.shape]
        return torch.zeros(size, *shape, dtype=getattr(torch, self.dtype))

    def sample(self, value: Array) -> Array:
        """Check an array and convert it to one sample.

        Raises:
            RequestError: if its shape or kind differs, or a number in it is not finite.

        Example:
            >>> Inputs((2,)).sample(np.array([1, 2])).dtype
            dtype('float32')
        """
        if value.dtype.kind not in "fiu":
            kind = f"an array of {value.dtype}" if value.dtype.kind != "O" else "something else among them"
            raise RequestError(f"input: expected numbers, got {kind}")
        if self.dtype == "int64" and value.dtype.kind == "f":
            raise RequestError(f"input: expected whole numbers, got {value.dtype}")
        fits = len(value.shape) == len(self.shape) and all(
            n > 0 and wanted in (None, n) for n, wanted in zip(value.shape, self.shape, strict=True)
        )
        if not fits:
            batched = value.shape[:1] == (1,) and len(value.shape) == len(self.shape) + 1
            hint = "; a request holds one sample, without a batch axis" if batched else ""
            raise RequestError(f"input: expected shape {self.text}, got {shape_text(value.shape)}{hint}")
        with np.errstate(over="ignore"):  # the next check finds an overflow
            cast = np.ascontiguousarray(value, dtype=self.dtype)
        if cast.dtype.kind == "f" and not np.isfinite(cast).all():
            raise RequestError(f"input: expected finite numbers of {self.dtype}, got NaN or infinity among them")
        return cast


@dataclass(frozen=True)
class PredictRequest:
    """A request that can be answered.

    Attributes:
        x: the sample, as [`Inputs`][weightmorph.serving.Inputs] describes it.
        theta: a number for each parameter; for a Categorical, the index.

    Example:
        >>> PredictRequest(np.zeros(3, np.float32), {"angle": 30.0}).theta["angle"]
        30.0
    """

    x: Array = field(repr=False)
    theta: Mapping[str, float]


def shape_text(shape: Sequence[int]) -> str:
    """A shape for messages, cut after eight axes.

    Example:
        >>> shape_text((1, 28, 28)), shape_text(())
        ('1×28×28', 'a single number')
    """
    return "×".join(map(str, shape[:8])) + ("×…" if len(shape) > 8 else "") or "a single number"

"""Scores over the settings of a grid, and the time that a call takes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, WeightmorphError
from ..inputs import InputTransform
from ..model import Conditioned
from ..parameters import ParameterSpace
from .data import Pairs
from .entries import Entry
from .metric import Metric

__all__ = ["Passes", "Scores"]

TIMED = 64
"""Images in the batch on which the cost is measured."""

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Call: TypeAlias = "Callable[[], object]"
Costs: TypeAlias = "tuple[float | None, float | None]"
"""Time of a call with one θ for the batch, and with one per image, relative to the frozen network's."""


@dataclass(frozen=True)
class Scores:
    """The scores of all rows over a grid.

    Attributes:
        clean: of the untransformed images, one per row.
        values: means over the images, `(rows, settings)`.
        per_image: means over the settings, `(rows, images)`.
    """

    clean: list[float]
    values: list[list[float]]
    per_image: Array


class Passes:
    """Passes over the data, each of which scores all rows at one setting.

    Args:
        entries: the rows, the conditioned network's first.
        data: starts a pass.
        transform: the input transform.
        metric: one score per image.
        device: where the networks are.
        seed: of the transform's random numbers.

    Attributes:
        images: how many a pass has; 0 before the first.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        data: Pairs,
        transform: InputTransform,
        metric: Metric,
        device: torch.device,
        seed: int,
    ) -> None:
        self.entries, self.data, self.metric = entries, data, metric
        self.transform, self.undo = transform, transform.inverse()
        self.device, self.seed = device, seed
        self.images = 0

    def over(self, points: Sequence[dict[str, float]], anchor: dict[str, float]) -> Scores:
        """The scores at the anchor on untransformed images, and at every setting on transformed ones."""
        clean = [math.fsum(scores) / self.images for scores in self._pass(anchor, transformed=False)]
        for entry in self.entries:
            if entry.errors is not None:
                entry.errors.clear()  # those of the clean images are not on the grid
        values: list[list[float]] = [[] for _ in self.entries]
        totals = np.zeros((len(self.entries), self.images))
        for theta in points:
            for number, scores in enumerate(self._pass(theta)):
                values[number].append(math.fsum(scores) / self.images)
                totals[number] += scores
        return Scores(clean, values, totals / len(points))

    def _pass(self, theta: dict[str, Any], transformed: bool = True) -> list[list[float]]:
        """The scores of every row at one setting, image by image."""
        calls = [entry.calls(theta) for entry in self.entries]
        generator = torch.Generator().manual_seed(self.seed)
        scores: list[list[float]] = [[] for _ in calls]
        for x, y in self.data():
            x, y = x.to(self.device), y.to(self.device)
            seen = self.transform(x, generator=generator, **theta) if transformed else x
            undone = self.undo(seen, **theta) if self.undo is not None else seen
            for entry, forwards, into in zip(self.entries, calls, scores, strict=True):
                parts = [self._checked(self.metric(f(seen, undone), y), len(x), entry, theta) for f in forwards]
                into.extend(parts[0] if len(parts) == 1 else [math.fsum(p) / len(p) for p in zip(*parts, strict=True)])
        self._count(len(scores[0]))
        return scores

    def _count(self, images: int) -> None:
        if images < 2:
            raise InputError(f"data: expected two images or more, for their spread is the noise, got {images}")
        if self.images not in (0, images):
            raise InputError(f"data: expected {self.images} images in each pass, got {images} in a later one")
        self.images = images

    @staticmethod
    def _checked(scores: Tensor, size: int, entry: Entry, theta: Mapping[str, float]) -> list[float]:
        if not isinstance(scores, Tensor) or scores.shape != (size,):
            got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else repr(scores)
            raise InputError(f"metric: expected one score for each of {size} samples, of shape ({size},), got {got}")
        numbers: list[float] = scores.tolist()
        if not all(map(math.isfinite, numbers)):
            raise InputError(f"metric: a score of {entry.name!r} at {dict(theta)} is not finite")
        return numbers

    def costs(self, theta: dict[str, Any], space: ParameterSpace, rounds: int) -> list[Costs]:
        """Median times of each row's calls, relative to the frozen network's; rows that are not timed have None."""
        if not rounds:
            return [(None, None)] * len(self.entries)
        x = next(self.data())[0][:TIMED].to(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        each = {name: values.to(self.device) for name, values in space.sample(len(x), generator).items()}
        conditioned = self.entries[0].contender.module
        assert isinstance(conditioned, Conditioned)
        frozen = partial(conditioned.frozen(), x)
        pairs: list[tuple[Call | None, Call | None]] = []
        for entry in self.entries:
            # An offset row makes the calls of the first row, with another θ.
            pairs.append(pairs[0] if entry.role == "offset" else self._timed_calls(entry, frozen, x, theta, each))
        # A call that two columns or rows share is timed once.
        medians = self._medians(list(dict.fromkeys([frozen, *(c for pair in pairs for c in pair if c)])), rounds)
        unit = medians.get(frozen) or math.nan
        relative: dict[Call | None, float] = {call: median / unit for call, median in medians.items()}
        return [(relative.get(shared), relative.get(single)) for shared, single in pairs]

    def _timed_calls(
        self, entry: Entry, frozen: partial[Any], x: Tensor, theta: dict[str, Any], each: dict[str, Any]
    ) -> tuple[Call | None, Call | None]:
        """A row's calls with one θ for the batch and with one θ per image; None where a row has no such call."""
        if entry.role == "frozen":
            return frozen, frozen
        if entry.timed is not None:
            call, shares = entry.timed
            return (partial(call, x), None) if shares else (None, partial(call, x))
        if entry.role == "inverse":
            return partial(self._undone, frozen.func, x, theta), partial(self._undone, frozen.func, x, each)
        shared = partial(entry.contender.network(theta), x)
        if isinstance(entry.contender.module, Conditioned):
            return shared, partial(entry.contender.module, x, **each)
        # A network with a method `at` has no known way to take one θ per image.
        return shared, None if entry.contender.needs_theta else shared

    def _undone(self, network: Callable[[Tensor], object], x: Tensor, theta: dict[str, Any]) -> object:
        """The network on inputs on which the transform is undone."""
        return network(self.undo(x, **theta) if self.undo is not None else x)

    def _medians(self, calls: Sequence[Call], rounds: int) -> dict[Call, float]:
        """Median seconds of each call, in turns, after one round to warm up; without calls that are refused."""
        seconds: dict[Call, list[float]] = {call: [] for call in calls}
        for turn in range(rounds + 1):
            for call in list(seconds):
                self._wait()
                start = time.perf_counter()
                try:
                    call()
                except WeightmorphError:  # such as a layer that cannot have one θ per sample
                    del seconds[call]
                    continue
                self._wait()
                if turn:
                    seconds[call].append(time.perf_counter() - start)
        return {call: statistics.median(values) for call, values in seconds.items()}

    def _wait(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

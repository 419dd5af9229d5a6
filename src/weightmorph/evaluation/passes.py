"""Passes over the data, and the time that a call takes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, WeightmorphError
from ..inputs import InputTransform
from ..model import Conditioned
from ..parameters import ParameterSpace
from .contenders import Entry
from .data import Pairs
from .metric import Metric

__all__ = ["Passes"]

TIMED = 64
"""Images in the batch on which the cost is measured."""


class Passes:
    """Passes over the data: all rows at one setting."""

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

    def run(self, theta: dict[str, Any], transformed: bool = True) -> list[list[float]]:
        """The scores of every row, image by image."""
        every = [entry.runs(theta) for entry in self.entries]
        generator = torch.Generator().manual_seed(self.seed)
        scores: list[list[float]] = [[] for _ in every]
        for x, y in self.data():
            x, y = x.to(self.device), y.to(self.device)
            seen = self.transform(x, generator=generator, **theta) if transformed else x
            undone = self.undo(seen, **theta) if self.undo is not None else seen
            for entry, runs, into in zip(self.entries, every, scores, strict=True):
                parts = [self._checked(self.metric(run(seen, undone), y), len(x), entry, theta) for run in runs]
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

    def costs(
        self, theta: dict[str, Any], space: ParameterSpace, rounds: int
    ) -> list[tuple[float | None, float | None]]:
        """Median seconds of a call, shared θ and one per image, relative to the frozen network's shared one."""
        x = next(self.data())[0][:TIMED].to(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        many = {name: values.to(self.device) for name, values in space.sample(len(x), generator).items()}
        conditioned = self.entries[0].contender.module
        assert isinstance(conditioned, Conditioned)
        frozen = conditioned.frozen()

        def undone(setting: dict[str, Any]) -> object:
            return frozen(self.undo(x, **setting) if self.undo is not None else x)

        calls: list[Callable[[], object]] = [partial(frozen, x)]
        which: list[tuple[int, int]] = []  # each row's two calls, which may be one
        for entry in self.entries:
            contender, first = entry.contender, len(calls)
            if entry.role == "offset":  # what the first row has
                which.append(which[0])
                continue
            if entry.role == "frozen":
                which.append((0, 0))
                continue
            if entry.timed is not None:
                call, together = entry.timed
                calls.append(partial(call, x))
                which.append((first, -1) if together else (-1, first))
                continue
            if entry.role == "inverse":
                calls += [partial(undone, theta), partial(undone, many)]
            elif isinstance(contender.module, Conditioned):
                calls += [partial(contender.network(theta), x), partial(contender.module, x, **many)]
            else:
                calls.append(partial(contender.network(theta), x))
                if contender.told:  # and how it would run another θ for each image, nobody knows
                    which.append((first, -1))
                    continue
            which.append((first, len(calls) - 1))
        medians = [statistics.median(taken) if taken else None for taken in self._timed(calls, rounds)]
        unit = medians[0] or math.nan
        ratios = [None if median is None else median / unit for median in medians]
        return [tuple(None if at < 0 else ratios[at] for at in pair) for pair in which]  # type: ignore[misc]

    def _timed(self, calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
        """Seconds of each call, in turns, after one round to warm up; empty for one that cannot be made."""
        taken: list[list[float]] = [[] for _ in calls]
        refused: set[int] = set()
        for turn in range(rounds + 1):
            for number, call in enumerate(calls):
                if number in refused:
                    continue
                self._wait()
                start = time.perf_counter()
                try:
                    call()
                except WeightmorphError:  # such as a layer that cannot have one θ per sample
                    refused.add(number)
                    continue
                self._wait()
                if turn:
                    taken[number].append(time.perf_counter() - start)
        return taken

    def _wait(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

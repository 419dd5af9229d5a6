"""Batches and random numbers as functions of a seed and a step, so that a run can stop and continue anywhere."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import TrainingError
from ..parameters import ParameterSpace, Theta

__all__ = ["Batch", "Batches", "Data", "Source", "derived", "draw", "preserved_rng", "seeded"]

Batch: TypeAlias = tuple[Tensor, "Tensor | None"]
"""Inputs `(B, …)` and labels `(B, …)`, or None if nothing reads the labels."""

Data: TypeAlias = "Tensor | Sequence[Any] | Dataset[Any] | DataLoader[Any]"
"""Data of `fit`: tensors `(x, y)`, x alone, or a Dataset or DataLoader that gives either."""

WHERE = "expected (x, y) or x as tensors, or a Dataset or DataLoader that gives (x, y) or x"

UNLABELLED = "the objective needs labels"
LABELS = "give data as (x, y), or use the objective 'distillation', which needs none"


def derived(seed: int, *path: object) -> int:
    """A seed for one purpose: equal for equal paths, unrelated for different ones.

    Example:
        >>> derived(0, "theta", 3) == derived(0, "theta", 3), derived(0, "theta", 3) == derived(0, "theta", 4)
        (True, False)
    """
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: what torch takes


def generator(seed: int, *path: object) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(derived(seed, *path))


def seeded(seed: int, *path: object) -> None:
    """Seed the global generators of torch, NumPy and Python for one purpose."""
    value = derived(seed, *path)
    torch.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)


class _Rng:
    """A snapshot of the global generators."""

    def __init__(self) -> None:
        self.torch, self.numpy, self.python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)
        random.setstate(self.python)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the global generators at the end of the block."""
    before = _Rng()
    try:
        yield
    finally:
        before.restore()


def _isolated(items: Iterable[Any], seed: int, *path: object) -> Iterator[Any]:
    """Iterate with a separate stream of global random numbers, whatever is drawn between two items.

    A loader shuffles and augments with the global generators. With a separate stream it does the same in a run that
    continues from the middle of an epoch.
    """
    with preserved_rng():
        seeded(seed, *path)
        iterator, stream = iter(items), _Rng()
    while True:
        with preserved_rng():
            stream.restore()
            try:
                item = next(iterator)
            except StopIteration:
                return
            stream = _Rng()
        yield item


def draw(space: ParameterSpace, size: int, settings: int | None, seed: int, step: int, purpose: str = "theta") -> Theta:
    """Draw θ for one step: name to `(size,)`, each of `settings` values for an equal block of the images.

    Args:
        space: the parameters.
        size: number of images.
        settings: number of distinct values; None draws one per image; 1 gives `()` tensors, shared by the batch.
        seed: seed of the run.
        step: number of the step.
        purpose: what θ is for; other purposes get other values.

    Example:
        >>> from weightmorph import Interval
        >>> theta = draw(ParameterSpace({"p": Interval(0.0, 1.0)}), 6, 2, seed=0, step=0)
        >>> theta["p"].shape, theta["p"].unique().numel()
        (torch.Size([6]), 2)
    """
    count = size if settings is None else min(settings, size)
    drawn = space.sample(count, generator(seed, purpose, step))
    if settings == 1:
        return {name: value[0] for name, value in drawn.items()}
    block = torch.arange(size) * count // size
    return {name: value[block] for name, value in drawn.items()}


class Source:
    """The batches of each epoch, as a function of the seed and the number of the epoch.

    Args:
        data: see [`fit`][weightmorph.fit].
        batch_size: images in a batch; a DataLoader has its own batch size.
        seed: seed of the order of the data.
        labels: whether labels are needed.
        num_workers: number of processes that read a Dataset.

    Attributes:
        samples: number of samples, or None if it is unknown.
        batch_size: images in a batch, or None if a DataLoader does not say.
        per_epoch: batches in an epoch, or None if it is unknown.

    Raises:
        TrainingError: for data that `fit` does not take, or without a sample.

    Example:
        >>> source = Source(torch.zeros(10, 3), batch_size=4, seed=0, labels=False)
        >>> source.per_epoch, [len(x) for x, _ in source.epoch(0)]
        (2, [4, 4])
    """

    def __init__(self, data: Data, batch_size: int, seed: int, labels: bool, num_workers: int = 0) -> None:
        self.data, self.seed = data, seed
        self.batch_size: int | None = batch_size
        self.labels, self.num_workers = labels, num_workers
        self.samples: int | None = None
        self.tensors: tuple[Tensor, ...] | None = None
        if isinstance(data, Tensor):
            self._take((data,))
        elif isinstance(data, DataLoader):
            self.samples, self.batch_size = _length(data.dataset), data.batch_size
        elif isinstance(data, Dataset):
            self.samples = None if isinstance(data, IterableDataset) else _length(data)
        elif isinstance(data, tuple | list):
            self._take(tuple(data))
        else:
            advice = "; read the dict's entries in a Dataset of your own" if isinstance(data, Mapping) else ""
            raise TrainingError(f"data: {WHERE}, got {_kind(data)}{advice}")
        if self.samples == 0:
            raise TrainingError("data: expected at least one sample, got none")
        self.per_epoch = self._per_epoch()

    def _take(self, tensors: tuple[Any, ...]) -> None:
        if len(tensors) not in (1, 2) or not all(isinstance(t, Tensor) for t in tensors):
            advice = "; make tensors of arrays with torch.from_numpy" if _holds_arrays(tensors) else ""
            raise TrainingError(f"data: {WHERE}, got {_kinds(tensors)}{advice}")
        if any(t.dim() == 0 for t in tensors) or len({len(t) for t in tensors}) > 1:
            raise TrainingError(
                f"data: x and y must hold as many samples, got shapes {', '.join(str(tuple(t.shape)) for t in tensors)}"
            )
        if self.labels and len(tensors) < 2:
            raise TrainingError(f"data: {UNLABELLED}, and found x alone; {LABELS}")
        self.tensors, self.samples = cast("tuple[Tensor, ...]", tensors), len(tensors[0])

    def _per_epoch(self) -> int | None:
        if isinstance(self.data, DataLoader):
            count = _length(self.data)
            if count == 0:
                raise TrainingError("data: the DataLoader gives no batch")
            return count
        # An incomplete last batch is skipped. Its samples are not lost, because each epoch has a new order.
        return None if self.samples is None else max(1, self.samples // self._size)

    @property
    def _size(self) -> int:
        assert self.batch_size is not None, "a DataLoader alone has no batch size"
        return self.batch_size

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        if self.tensors is not None:
            for rows in self._order(number):
                yield self._checked([t[rows] for t in self.tensors])
            return
        with _seeded_generators(self.loader(number), derived(self.seed, "loader", number)) as loader:
            for batch in _isolated(loader, self.seed, "epoch", number):
                yield self._checked(batch)

    def _order(self, number: int) -> list[Tensor]:
        assert self.samples is not None and self.per_epoch is not None
        order = torch.randperm(self.samples, generator=generator(self.seed, "order", number))
        return list(order.split(self._size))[: self.per_epoch]

    def loader(self, number: int) -> DataLoader[Any]:
        """The user's loader, or a loader of the user's dataset for one epoch."""
        if isinstance(self.data, DataLoader):
            return self.data
        dataset = cast("Dataset[Any]", self.data)
        if self.per_epoch is None:
            return DataLoader(dataset, self.batch_size, num_workers=self.num_workers)
        rows = [rows.tolist() for rows in self._order(number)]
        return DataLoader(dataset, batch_sampler=rows, num_workers=self.num_workers)

    def _checked(self, batch: Any) -> Batch:
        x, y = batch, None
        if isinstance(batch, tuple | list) and len(batch) in (1, 2):
            x, y = (*batch, None) if len(batch) == 1 else batch
        if not isinstance(x, Tensor):
            got = _kinds(batch) if isinstance(batch, tuple | list) else _kind(batch)
            raise TrainingError(
                f"data: {WHERE}, got a batch that is {got}; wrap the data so that it gives one of those"
            )
        if not self.labels:
            return x, None
        if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
            got = "no labels" if y is None else f"labels that are {_kind(y)}"
            raise TrainingError(
                f"data: {UNLABELLED}, one for each of the {len(x)} inputs of a batch, and found {got}; {LABELS}"
            )
        return x, y


class Batches:
    """The batches of the steps from `start` to `total`, over as many epochs as that takes."""

    def __init__(self, source: Source, start: int, total: int) -> None:
        self.source, self.start, self.total = source, start, total

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[Batch]:
        left = len(self)
        per_epoch = self.source.per_epoch
        epoch, skip = divmod(self.start, per_epoch) if per_epoch else (0, self.start)
        while left:
            empty = True
            for batch in self.source.epoch(epoch):
                empty = False
                if skip:
                    skip -= 1
                    continue
                yield batch
                left -= 1
                if not left:
                    return
            if empty:
                raise TrainingError(
                    f"data: epoch {epoch} gave no batch although {left} steps are left; an iterator that is used up "
                    "cannot start again, a Dataset can"
                )
            epoch += 1


@contextmanager
def _seeded_generators(loader: DataLoader[Any], seed: int) -> Iterator[DataLoader[Any]]:
    """Seed the generators of a loader and its samplers for the block, and restore them after it."""
    samplers = (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    attributes = [loader.generator, *(getattr(sampler, "generator", None) for sampler in samplers)]
    generators = {id(g): g for g in attributes if isinstance(g, torch.Generator)}.values()
    before = [(g, g.get_state()) for g in generators]
    for g, _ in before:
        g.manual_seed(seed)
    try:
        yield loader
    finally:
        for g, state in before:
            g.set_state(state)


def _length(data: Any) -> int | None:
    try:
        return len(cast(Sized, data))
    except TypeError:
        return None


def _holds_arrays(values: Sequence[Any]) -> bool:
    return any(isinstance(v, np.ndarray) for v in values)


def _kinds(values: Sequence[Any]) -> str:
    return f"({', '.join(map(_kind, values[:3]))}{', …' if len(values) > 3 else ''})"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(repr, list(value)[:4]))}"
    return f"a {type(value).__name__}"

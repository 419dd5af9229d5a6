"""Batches and random numbers as functions of a seed and a step, so that a run can be stopped and go on anywhere."""

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
"""Inputs `(B, …)` and labels `(B, …)`, or None where nobody reads them."""

Data: TypeAlias = "Tensor | Sequence[Any] | Dataset[Any] | DataLoader[Any]"
"""What `fit` takes: `(x, y)`, x alone, or what yields either."""

WHERE = "expected (x, y) or x as tensors, or a Dataset or DataLoader that gives (x, y) or x"

UNLABELLED = "the objective needs labels"
LABELS = "give data as (x, y), or use the objective 'distillation', which needs none"


def derived(seed: int, *path: object) -> int:
    """A seed for one purpose: the same for the same path, unrelated for another.

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
    """The state of the global generators."""

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
    """Leave the global generators as they were."""
    before = _Rng()
    try:
        yield
    finally:
        before.restore()


def _aside(items: Iterable[Any], seed: int, *path: object) -> Iterator[Any]:
    """Iterate with a stream of global random numbers of its own, whatever is drawn between two items.

    A loader shuffles and augments with the global generators. Given a stream of its own it does so alike in a run
    that goes on from the middle of an epoch.
    """
    with preserved_rng():
        seeded(seed, *path)
        iterator, mine = iter(items), _Rng()
    while True:
        with preserved_rng():
            mine.restore()
            try:
                item = next(iterator)
            except StopIteration:
                return
            mine = _Rng()
        yield item


def draw(space: ParameterSpace, size: int, settings: int | None, seed: int, step: int, purpose: str = "theta") -> Theta:
    """θ of one step: `settings` values, dealt evenly to `size` images in blocks: name to `(size,)`.

    None draws one value per image. A single setting comes as `()` tensors, shared by the batch. Values for another
    purpose are other ones.

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
    """Where batches come from; epoch e is the same whenever it is asked for.

    Args:
        data: see [`fit`][weightmorph.fit].
        batch_size: images in a batch; a DataLoader has its own.
        seed: what the order of the data follows from.
        labels: whether they are needed.
        num_workers: processes that read a Dataset.

    Attributes:
        samples: how many there are, or None where nobody knows.
        batch_size: images in a batch, or None where a DataLoader does not say.
        per_epoch: batches in an epoch, or None.

    Raises:
        TrainingError: if the data are something else than `fit` takes, or nothing.
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
        # The last batch of an epoch is left out unless it is whole: the order is new in each epoch.
        return None if self.samples is None else max(1, self.samples // self._size)

    @property
    def _size(self) -> int:
        assert self.batch_size is not None, "only a DataLoader has none"
        return self.batch_size

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        if self.tensors is not None:
            for rows in self._order(number):
                yield self._checked([t[rows] for t in self.tensors])
            return
        with _own_generators(self.loader(number), derived(self.seed, "loader", number)) as loader:
            for batch in _aside(loader, self.seed, "epoch", number):
                yield self._checked(batch)

    def _order(self, number: int) -> list[Tensor]:
        assert self.samples is not None and self.per_epoch is not None
        order = torch.randperm(self.samples, generator=generator(self.seed, "order", number))
        return list(order.split(self._size))[: self.per_epoch]

    def loader(self, number: int) -> DataLoader[Any]:
        """The user's loader, or one around the user's dataset."""
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
    """The batches from one step to another, an epoch following the last. Iterated anew it starts again."""

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
def _own_generators(loader: DataLoader[Any], seed: int) -> Iterator[DataLoader[Any]]:
    """Seed the generators that a loader carries, and put them back afterwards."""
    samplers = (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    carried = [loader.generator, *(getattr(sampler, "generator", None) for sampler in samplers)]
    own = {id(g): g for g in carried if isinstance(g, torch.Generator)}.values()
    before = [(g, g.get_state()) for g in own]
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

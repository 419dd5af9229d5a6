"""Calls of a conditioned model for many samples at many settings, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import as_call
from ..errors import InputError
from ..model import Conditioned
from ..parameters import Theta
from .candidates import Candidates
from .energy import Energy

__all__ = ["Calls", "Inputs"]

FEW = 16
"""With more samples per setting than this, it is faster to compute the weights of each setting once than to run mixed
batches with one θ per sample (measured on a CPU, where the weights of a setting cost about as much as 16 samples)."""

HELD = 2**24
"""Bound on the numbers in the answers that are in memory at a time."""


class Inputs:
    """A batch of the base's inputs: tensors whose first axis is the batch, and any other arguments.

    Args:
        x: a tensor, a tuple of positional inputs, or a dict of keyword inputs. The first tensor's length is
            the number of samples; tensors of another length are passed on unchanged.

    Raises:
        InputError: without a tensor, or without a sample.
    """

    def __init__(self, x: Any) -> None:
        self.args, self.kwargs = as_call(x)
        first = next((v for v in (*self.args, *self.kwargs.values()) if isinstance(v, Tensor) and v.dim()), None)
        if first is None or not len(first):
            raise InputError(f"infer: expected inputs (B, …) with one sample or more, got {_shown(x)}")
        self.size, self.device = len(first), first.device

    def take(self, rows: Tensor | slice) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Some of the samples."""
        return tuple(map(lambda v: self._of(v, rows), self.args)), {
            k: self._of(v, rows) for k, v in self.kwargs.items()
        }

    def _of(self, value: Any, rows: Tensor | slice) -> Any:
        return value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == self.size else value

    def chunks(self, size: int) -> Iterator[slice]:
        """Consecutive ranges of `size` samples."""
        return (slice(start, min(start + size, self.size)) for start in range(0, self.size, size))


def _shown(x: Any) -> str:
    return f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


class Calls:
    """Runs a model on its inputs at candidate settings, and counts the network runs in `runs`.

    Args:
        model: the conditioned model.
        inputs: the samples.
        known: checked values of the parameters that are not inferred: `()` or `(B,)` each.
        energy: the energy, which says what is kept of an output.
        limit: largest number of samples in one run.
    """

    def __init__(self, model: Conditioned, inputs: Inputs, known: Theta, energy: Energy, limit: int) -> None:
        self.model, self.inputs, self.known, self.energy, self.limit = model, inputs, known, energy, limit
        self.runs = 0

    def at(self, rows: Tensor | slice, theta: Mapping[str, Tensor]) -> Any:
        """The output for some samples at a shared θ `()`, or at one value for each of them."""
        args, kwargs = self.inputs.take(rows)
        given = {name: value[rows] if value.dim() else value for name, value in self.known.items()}
        output = self.model(*args, **kwargs, **given, **theta)
        self.runs += self._count(rows)
        return output

    def answer(self, rows: Tensor | slice, theta: Mapping[str, Tensor]) -> Tensor:
        """What the energy keeps of the output of `at`."""
        return self.energy.answer(self.at(rows, theta))

    def _count(self, rows: Tensor | slice) -> int:
        return len(rows) if isinstance(rows, Tensor) else len(range(*rows.indices(self.inputs.size)))

    @property
    def shared(self) -> bool:
        """Whether all samples share the known parameters, so that a candidate is one setting of the network."""
        return not any(value.dim() for value in self.known.values())

    def every(self, candidates: Candidates) -> Tensor:
        """The energy of every candidate for every sample: `(B, K)`, on the CPU."""
        if self.inputs.size <= FEW and not self.model.merged:
            every = torch.arange(len(candidates)).expand(self.inputs.size, -1)
            return self._scored(self._in_mixed_batches(candidates, every), candidates)
        size = self.inputs.size
        held = size if not self.energy.neighbours else max(self.limit, HELD // (1000 * len(candidates)))
        blocks = []
        for rows in torch.arange(size).split(held):
            columns = [torch.cat(list(self._setting(rows, candidates, k))) for k in range(len(candidates))]
            blocks.append(self._scored(torch.stack(columns, 1), candidates))
        return torch.cat(blocks)

    def _setting(self, rows: Tensor, candidates: Candidates, number: int) -> Iterator[Tensor]:
        """The answers of some samples at one candidate, whose weights are computed once."""
        setting: dict[str, Any] = candidates.setting(number)
        network = self.model.at(**setting, **self.known) if self.shared else None
        for part in rows.split(self.limit):
            if network is None:
                theta = {name: torch.tensor(value) for name, value in setting.items()}
                yield self.answer(part, theta).cpu()
                continue
            args, kwargs = self.inputs.take(part)
            self.runs += len(part)
            yield self.energy.answer(network(*args, **kwargs)).cpu()

    def _in_mixed_batches(self, candidates: Candidates, wanted: Tensor) -> Tensor:
        """The answers at candidates `(B, *W)` of each sample, with one θ per sample in a batch: `(B, *W, *A)`."""
        each = wanted[0].numel()
        rows, flat = torch.arange(len(wanted)).repeat_interleave(each), wanted.flatten()
        parts = []
        for start in range(0, len(flat), self.limit):
            part = slice(start, start + self.limit)
            theta = {name: value[flat[part]] for name, value in candidates.theta.items()}
            parts.append(self.answer(rows[part], theta).cpu())
        answers = torch.cat(parts)
        return answers.reshape(*wanted.shape, *answers.shape[1:])

    def _setting_by_setting(self, candidates: Candidates, wanted: Tensor) -> Tensor:
        """The answers at candidates `(B, *W)` of each sample, candidate by candidate: `(B, *W, *A)`."""
        answers: Tensor | None = None
        for k in wanted.unique().tolist():
            here = wanted == k
            rows = here.flatten(1).any(1).nonzero().flatten()
            computed = torch.cat(list(self._setting(rows, candidates, k)))
            if answers is None:
                answers = computed.new_zeros((*wanted.shape, *computed.shape[1:]))
            position = torch.zeros(len(wanted), dtype=torch.long)
            position[rows] = torch.arange(len(rows))
            index = here.nonzero(as_tuple=True)
            answers[index] = computed[position[index[0]]]
        assert answers is not None, "there is a candidate at least"
        return answers

    def _scored(self, answers: Tensor, candidates: Candidates) -> Tensor:
        """Answers `(B, K, *A)` of all candidates to energies `(B, K)`."""
        columns = []
        for k in range(len(candidates)):
            around = candidates.neighbours[k].tolist() if self.energy.neighbours else []
            columns.append(self.energy.score(answers[:, [k, *around]]))
        return torch.stack(columns, 1)

    def some(self, candidates: Candidates, chosen: Tensor) -> Tensor:
        """The energies at candidates that are chosen for each sample, `(B, M)` indices: `(B, M)`, on the CPU."""
        around = candidates.neighbours[chosen] if self.energy.neighbours else chosen.new_empty((*chosen.shape, 0))
        wanted = torch.cat([chosen.unsqueeze(2), around], 2)  # (B, M, J)
        many = wanted.numel() > FEW * wanted.unique().numel()
        route = self._setting_by_setting if many or self.model.merged else self._in_mixed_batches
        answers = route(candidates, wanted)
        return self.energy.score(answers.flatten(0, 1)).reshape(chosen.shape)

    def outputs(self, theta: Mapping[str, Tensor]) -> Any:
        """The network's outputs at a shared θ `()` or at one value per sample `(B,)`, in the order of the samples."""
        if self.shared and all(value.dim() == 0 for value in theta.values()):
            network = self.model.at(**theta, **self.known)
            parts = []
            for rows in self.inputs.chunks(self.limit):
                args, kwargs = self.inputs.take(rows)
                parts.append(network(*args, **kwargs))
            self.runs += self.inputs.size
            return joined(parts)
        return joined(
            [
                self.at(rows, {name: value[rows] if value.dim() else value for name, value in theta.items()})
                for rows in self.inputs.chunks(self.limit)
            ]
        )


def joined(parts: Sequence[Any]) -> Any:
    """Outputs of several batches as one: tensors, also nested ones, are concatenated along the first axis."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(parts)) if first.dim() else first
    if isinstance(first, Mapping):
        items = {key: joined([part[key] for part in parts]) for key in first}
        return items if type(first) is dict else type(first)(**items)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(joined(values) for values in zip(*parts, strict=True)))
    if isinstance(first, list | tuple):
        return type(first)(joined(values) for values in zip(*parts, strict=True))
    return first

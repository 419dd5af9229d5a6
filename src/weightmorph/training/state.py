"""The checkpoint of a run: one file of this library's format, which holds tensors and JSON and no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..io import plain, write_atomically
from ..storage import pack, unpack

__all__ = ["FILE", "State", "read", "write"]

FILE = "last.safetensors"
"""Its name in the checkpoint folder."""

KIND = "training"
"""What the file says that it holds."""


@dataclass(frozen=True)
class State:
    """What a run needs to continue: the module's tensors, the optimiser's, the losses so far, and the settings.

    Attributes:
        module: the module's `state_dict`.
        optimiser: the optimiser's state, by the number of the parameter.
        losses: the losses of all steps, `(steps,)` in float64.
        estimator_losses: the losses of the head that estimates θ: `(steps,)`, or `(0,)` if none is trained.
        seconds: time spent so far.
        settings: what the run was started with. A run continues only with the same settings.
        notes: further plain data.
    """

    module: Mapping[str, Tensor]
    optimiser: Mapping[int, Mapping[str, Tensor]]
    losses: Tensor
    estimator_losses: Tensor
    seconds: float
    settings: Mapping[str, Any]
    notes: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        losses: list[float],
        estimator_losses: list[float],
        seconds: float,
        settings: Mapping[str, Any],
        notes: Mapping[str, Any],
    ) -> State:
        """The state of a module and its optimiser."""
        first, second = (torch.tensor(values, dtype=torch.float64) for values in (losses, estimator_losses))
        return cls(module.state_dict(), optimiser.state_dict()["state"], first, second, seconds, settings, notes)

    def restore(self, module: nn.Module, optimiser: torch.optim.Optimizer | None) -> None:
        """Copy the tensors back into a module and its optimiser.

        Raises:
            CheckpointError: if the module's tensors have other names or shapes than the saved ones.
        """
        current = module.state_dict()
        for key in sorted({*current, *self.module}):
            there, here = self.module.get(key), current.get(key)
            if there is None or here is None or there.shape != here.shape:
                saved, now = ("missing" if t is None else str(tuple(t.shape)) for t in (there, here))
                raise CheckpointError(
                    f"the checkpoint does not fit this model: tensor {key!r} is {saved} in the file and {now} in the "
                    "model; use another folder, or resume=False to start again"
                )
        module.load_state_dict(dict(self.module))
        if optimiser is not None:
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": dict(self.optimiser), "param_groups": groups})


def write(folder: Path, state: State) -> None:
    """Save a state. The file is replaced as a whole, so the last good state is never lost.

    Raises:
        CheckpointError: if the module's `state_dict` holds something that is no tensor.
    """
    tensors = {f"module.{key}": value for key, value in state.module.items()}
    for number, moments in state.optimiser.items():
        tensors |= {f"optimiser.{number}.{key}": value for key, value in moments.items()}
    tensors |= {"losses": state.losses, "estimator_losses": state.estimator_losses}
    data = {"seconds": state.seconds, "settings": state.settings, "notes": state.notes}
    write_atomically(folder / FILE, pack(KIND, data, tensors, "a checkpoint of fit"))


def read(folder: Path, settings: Mapping[str, Any] | None = None) -> State | None:
    """The state saved in a folder, or None if there is none.

    Args:
        folder: the checkpoint folder.
        settings: the settings of the run that wants to continue; None accepts any.

    Raises:
        CheckpointError: if the file is damaged or holds no state of a run, or if the settings differ (they are named).
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        header, tensors = unpack(path, KIND, "a checkpoint of fit")
        state = _assembled(tensors, header)
    except (CheckpointError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint of fit: {error}. Runs that were interrupted under release 0.1 "
            "cannot be resumed. Delete the file, or pass resume=False to write over it"
        ) from error
    different = [] if settings is None else _differences(state.settings, settings)
    if different:
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(different)}. Use another folder, or resume=False to start again"
        )
    return state


def _assembled(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> State:
    module: dict[str, Tensor] = {}
    optimiser: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, key = name.partition(".")
        if kind == "module":
            module[key] = value
        elif kind == "optimiser":
            number, _, moment = key.partition(".")
            optimiser.setdefault(int(number), {})[moment] = value
    losses = tensors["losses"], tensors["estimator_losses"]
    return State(module, optimiser, *losses, header["seconds"], header["settings"], header["notes"])


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    current = plain(dict(now))
    return [
        f"{key} was {_brief(saved.get(key))}, now {_brief(current.get(key))}"
        for key in sorted({*saved, *current})
        if saved.get(key) != current.get(key)
    ]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

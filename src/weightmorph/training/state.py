"""Where a run stands, in one file that holds tensors and JSON and no code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, require

__all__ = ["FILE", "State", "read", "write"]

FILE = "last.safetensors"
"""Its name in the checkpoint folder."""

FORMAT = "weightmorph.fit/1"


class State:
    """What a run needs to go on: the trained tensors, the optimiser's, the losses so far, and the settings.

    Attributes:
        step: steps done.
        seconds: time they took.
        losses: `(step,)`.
        settings: what the run was started with; a run goes on only with the same.
        notes: what else is to be kept, as plain data.
        told: the losses of the head that estimates θ, if one is trained: `(step,)`, otherwise `(0,)`.
    """

    def __init__(
        self,
        module: Mapping[str, Tensor],
        optimiser: Mapping[int, Mapping[str, Tensor]],
        losses: Tensor,
        seconds: float,
        settings: Mapping[str, Any],
        notes: Mapping[str, Any],
        told: Tensor | None = None,
    ) -> None:
        self.module, self.optimiser, self.losses = module, optimiser, losses
        self.seconds, self.settings, self.notes = seconds, settings, notes
        self.told = losses.new_zeros(0) if told is None else told

    @property
    def step(self) -> int:
        return len(self.losses)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        losses: list[float],
        seconds: float,
        settings: Mapping[str, Any],
        notes: Mapping[str, Any],
        told: list[float],
    ) -> State:
        """The state of a module and its optimiser."""
        tensors = module.state_dict()
        odd = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
        if odd:
            raise CheckpointError(
                f"{odd[0]!r} in the state_dict is no tensor (a module's extra state), which a checkpoint cannot hold; "
                "train without checkpoint="
            )
        moments: dict[int, Mapping[str, Tensor]] = optimiser.state_dict()["state"]
        rows, more = (torch.tensor(values, dtype=torch.float64) for values in (losses, told))
        return cls(tensors, moments, rows, seconds, settings, notes, more)

    def restore(self, module: nn.Module, optimiser: torch.optim.Optimizer | None) -> None:
        """Put the tensors back.

        Raises:
            CheckpointError: if the module has other tensors than those saved.
        """
        own = module.state_dict()
        for key in sorted({*own, *self.module}):
            there, here = self.module.get(key), own.get(key)
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
    """Save a state atomically: written beside, then renamed, so that the last good one is never lost."""
    save = require("safetensors.torch", "train", "a checkpoint").save_file
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"module.{key}": value for key, value in state.module.items()}
    for number, moments in state.optimiser.items():
        tensors |= {f"optimiser.{number}.{key}": value for key, value in moments.items()}
    # Clones, since a tensor that is there under two names would be refused.
    flat = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
    flat["losses"] = state.losses
    if len(state.told):
        flat["parameter_losses"] = state.told
    about = {"seconds": state.seconds, "settings": state.settings, "notes": state.notes}
    beside = folder / f".{FILE}.{os.getpid()}"
    try:
        save(flat, str(beside), metadata={"format": FORMAT, "about": json.dumps(about)})
        os.replace(beside, folder / FILE)
    finally:
        beside.unlink(missing_ok=True)


def read(folder: Path, settings: Mapping[str, Any] | None = None) -> State | None:
    """The state saved in a folder, or None if there is none.

    Args:
        folder: where.
        settings: those of the run that wants to go on; None takes any.

    Raises:
        CheckpointError: if the file is damaged or not one of ours, or if the settings differ (they are named).
    """
    path = folder / FILE
    if not path.exists():
        return None
    opened = require("safetensors", "train", "a checkpoint").safe_open
    try:
        with opened(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format reads {metadata.get('format')!r}, expected {FORMAT!r}")
        about = json.loads(metadata["about"])
        state = _assembled(tensors, about)
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint of fit: {error}; delete it, or pass resume=False to write over it"
        ) from error
    differ = [] if settings is None else _differences(state.settings, settings)
    if differ:
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(differ)}. Use another folder, or resume=False to start again"
        )
    return state


def _assembled(tensors: dict[str, Tensor], about: dict[str, Any]) -> State:
    module: dict[str, Tensor] = {}
    optimiser: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, key = name.partition(".")
        if kind == "module":
            module[key] = value
        elif kind == "optimiser":
            number, _, moment = key.partition(".")
            optimiser.setdefault(int(number), {})[moment] = value
    told = tensors.get("parameter_losses")
    return State(module, optimiser, tensors["losses"], about["seconds"], about["settings"], about["notes"], told)


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    plain = json.loads(json.dumps(dict(now)))
    return [
        f"{key} was {_brief(saved.get(key))}, now {_brief(plain.get(key))}"
        for key in sorted({*saved, *plain})
        if saved.get(key) != plain.get(key)
    ]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

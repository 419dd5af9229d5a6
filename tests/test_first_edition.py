"""Files that the first edition wrote still load, and give the outputs that it gave.

`tests/data/first_edition` holds three models saved by version 0.1.0, each beside its base, an input, the settings of θ,
and the outputs that were computed then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import weightmorph as wm

FOLDER = Path(__file__).parent / "data" / "first_edition"

NETWORKS = {
    "grown": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3),
    ),
    "several": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5),
    ),
    "estimator": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(196, 3)
    ),
}  # fmt: skip


def read(name: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    with safe_open(FOLDER / f"{name}.outputs.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["theta"])  # noqa: SIM118


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_of_the_first_edition_loads_to_the_same_outputs(name: str) -> None:
    """Law 7 across editions: each saved setting, shared or one per sample, gives what it gave."""
    tensors, settings = read(name)
    net = NETWORKS[name]()
    net.load_state_dict({key[5:]: value for key, value in tensors.items() if key.startswith("base.")})
    model = wm.load(FOLDER / f"{name}.safetensors", net.eval())
    with torch.no_grad():
        for number, theta in enumerate(settings):
            torch.testing.assert_close(model(tensors["x"], **theta), tensors[f"y.{number}"], rtol=1e-5, atol=1e-5)


def test_what_was_measured_comes_back_from_the_first_edition() -> None:
    """The plan that `autotune` wrote, the metrics and the memory limit are read too."""
    tensors, _ = read("grown")
    net = NETWORKS["grown"]()
    net.load_state_dict({key[5:]: value for key, value in tensors.items() if key.startswith("base.")})
    model = wm.load(FOLDER / "grown.safetensors", net.eval())
    assert model.plan is not None and set(model.plan["layers"]) == {"0.weight", "3.weight", "6.weight"}

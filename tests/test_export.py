"""Law 9, second half: torch.export and ONNX agree with eager, θ being an input and the batch open."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import FAMILIES, shake

import weightmorph as wm

ANGLES = torch.tensor([0.0, 10.0, 200.0, 33.0, 90.0])


def make(family: str) -> tuple[wm.Conditioned, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4 * 16, 3),
    )  # fmt: skip
    x = torch.randn(5, 1, 8, 8)
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=2)}, FAMILIES[family](), example=x)
    shake(model)
    return model.eval(), x


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_exported_program_agrees_with_eager(family: str, per_sample: bool) -> None:
    """At another batch size than the example's and other values of θ."""
    model, x = make(family)
    module = wm.export_program(model, x[:3], per_sample=per_sample).module()
    for size in (5, 2):
        theta = ANGLES[:size] if per_sample else ANGLES[3]
        with torch.no_grad():
            torch.testing.assert_close(
                module(x[:size], angle=theta), model(x[:size], angle=theta), rtol=1e-4, atol=1e-5
            )


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("everything", "warp_grown")])
def test_onnx_agrees_with_eager(family: str, per_sample: bool, tmp_path: Path) -> None:
    """In ONNX Runtime to 1e-4; the file carries the parameters."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model, x = make(family)
    path = tmp_path / "model.onnx"
    wm.export_onnx(model, path, x[:3], per_sample=per_sample)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in (5, 2):
        theta = ANGLES[:size] if per_sample else ANGLES[3]
        names = [i.name for i in session.get_inputs()]
        assert names[-1] == "angle"
        [got] = session.run(None, {names[0]: x[:size].numpy(), "angle": theta.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(got, model(x[:size], angle=theta).numpy(), rtol=1e-4, atol=1e-4)
    held = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(held["weightmorph"])["parameters"]["angle"]["unit"] == "deg"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]

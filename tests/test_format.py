"""The file format over time: what older releases wrote, what newer ones may, and what a header may hold beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_checkpoint import make, rewrite, same
from torch import Tensor, nn

import weightmorph as wm
from weightmorph import errors, storage
from weightmorph.model import load as checkpoint
from weightmorph.storage import container

FORMAT_1 = (
    '{"format": 1, "written_by": {"weightmorph": "0.1.0", "torch": "2.13.0+cpu"}, "parameters": {"angle": {"type": '
    '"Angle", "unit": "deg", "harmonics": 1, "anchor": 0.0, "affine": "rotation"}}, "transform": {"type": "Sum", '
    '"parts": [{"type": "Warp", "prior": true, "learn": false, "grow": "auto", "max_learned": 27, "max_taps": 256, '
    '"length": 2.0, "nugget": 0.0001}, {"type": "Scale"}]}, "selected": "default", "slots": [{"name": "0.weight", '
    '"layer": "0", "attribute": "weight", "kind": "conv", "shape": [1, 1, 2, 2], "groups": 1, "kernel": [2, 2], '
    '"taps": [[-0.5, 0.5], [-0.5, 0.5]], "pixel": 1.0, "fixed": false, "growable": true, "explicit": false}], '
    '"positions": {"0.weight": 1}, "folded": [], "dtype": "float32", "memory_limit": 4294967296, "metrics": '
    '{"accuracy": 0.75}, "base": {"network": "Sequential", "fingerprint": "49309ba6a1b3d963", "tensors": '
    '{"0.weight": "float32 (1, 1, 2, 2) 4c9c4f354e74153db012329d71c8562ec23e498148174b2c49de58f45d47cdbe"}}, '
    '"tensors": {"transform.warp.0.weight.trust": "float32 () '
    'e00e5eb9444182f352323374ef4e08ebcb784725fdd4fd612d7730540b3e0c8c", "transform.scale.0.weight.slope": "float32 '
    '(2, 1) 309e0f400509b556a7b3077b766bb77657985e6b83f78e66e12d4ede90d78f19"}, "shared": {}, "sha256": '
    '"846ac9ef3278582805a350d1c2393dc26d1feee4b52e579da4b36b3244c7de5d"}'
)
"""The header that 0.1.0 wrote of the model below; what that release answered for θ = 30° is in the test."""


def old_file(path: Path) -> nn.Module:
    """What 0.1.0 wrote, and its base."""
    net = nn.Sequential(nn.Conv2d(1, 1, 2, bias=False))
    with torch.no_grad():
        net.get_parameter("0.weight").copy_(torch.arange(4.0).reshape(1, 1, 2, 2))
    tensors = {
        "transform.warp.0.weight.trust": torch.tensor(1.0),
        "transform.scale.0.weight.slope": torch.tensor([[0.5], [0.625]]),
    }
    save_file(tensors, path, {"weightmorph": FORMAT_1})
    return net


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_file_of_format_1_is_read_for_ever(path: Path) -> None:
    """With the answer that it gave when it was written; from before there were plans."""
    model = wm.load(path, old_file(path))
    got = model(torch.arange(4.0).reshape(1, 1, 2, 2), angle=30.0).item()
    assert got == pytest.approx(16.630903244018555, abs=1e-4)
    record = checkpoint.peek(path)
    assert (record.metrics, record.plan, record.written_by["weightmorph"]) == ({"accuracy": 0.75}, None, "0.1.0")


def test_an_older_format_is_migrated_step_by_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a future in which two numbers have passed: each step gets what the last one gave, and the file stays."""
    net = old_file(path)
    content = path.read_bytes()
    steps: list[tuple[int, str]] = []

    def second(data: dict[str, Any]) -> dict[str, Any]:
        steps.append((1, data["selected"]))
        return data | {"selected": "once"}

    def third(data: dict[str, Any]) -> dict[str, Any]:
        steps.append((2, data["selected"]))
        return data | {"selected": "twice"}

    monkeypatch.setattr(container, "FORMAT", 3)
    with pytest.raises(errors.CheckpointError, match="format 1, and nothing leads from there to 3"):
        wm.load(path, net)
    monkeypatch.setattr(container, "MIGRATIONS", {1: second, 2: third})
    assert wm.load(path, net).selected == "twice" and steps == [(1, "default"), (2, "once")]
    assert path.read_bytes() == content
    wm.load(path, net).save(path)
    assert checkpoint.peek(path).selected == "twice" and len(steps) == 4


def test_a_migration_does_not_see_a_damaged_header(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = old_file(path)
    monkeypatch.setattr(container, "FORMAT", 2)
    monkeypatch.setattr(container, "MIGRATIONS", {1: lambda data: pytest.fail("a damaged header was migrated")})
    header = json.loads(FORMAT_1) | {"selected": "other"}
    save_file({"x": torch.ones(1)}, path, {"weightmorph": json.dumps(header)})
    with pytest.raises(errors.CheckpointError, match="does not have its checksum"):
        wm.load(path, net)


def test_keys_that_an_older_release_does_not_know_are_overlooked(path: Path) -> None:
    """What may be overlooked is added without raising the number."""
    net, model, x = make()
    model.save(path)
    rewrite(path, lambda header, tensors: header.update(weather="fine"))
    same(wm.load(path, net), model, x)


def test_a_plan_is_stored_and_restored(path: Path) -> None:
    """What `autotune` measured, as plain data; the model without one has none."""
    net, model, x = make("lowrank")
    model.save(path)
    assert checkpoint.peek(path).plan is None and wm.load(path, net).plan is None
    model.autotune(x, angle=torch.tensor([0.0, 10.0, 200.0, 33.0]), rounds=1)
    assert model.plan
    model.save(path)
    assert checkpoint.peek(path).plan == json.loads(json.dumps(model.plan))
    again = wm.load(path, net)
    assert again.plan == model.plan
    same(again, model, x)


PLANS = [
    "fast", 3, [1, 2], True, {"0.weight": 7}, {"x": [{"route": "?"}]}, {"version": 2, "layers": {}},
    {"version": 1, "layers": 3}, {"version": 1, "layers": {"0.weight": "x"}},
    {"version": 1, "layers": {"0.weight": [7, {"batch": "?"}, {"batch": 4, "positions": None, "training": []}]}},
]  # fmt: skip
"""What is no plan, or one that no layer has measured: by an edited file, or by another release."""


@pytest.mark.parametrize("plan", PLANS, ids=repr)
def test_a_plan_that_does_not_read_is_ignored(plan: Any, path: Path) -> None:
    """It is no reason not to load the model, which answers as ever."""
    net, model, x = make("lowrank")
    model.save(path)
    rewrite(path, lambda header, tensors: header.update(plan=plan))
    same(wm.load(path, net), model, x)


def test_the_same_model_gives_the_same_bytes(path: Path) -> None:
    _, model, _ = make()
    model.save(path)
    first = path.read_bytes()
    model.save(path)
    assert path.read_bytes() == first


def test_a_shared_tensor_must_be_in_the_file(path: Path) -> None:
    """A header that says of a tensor that it is another one, which is not there."""
    net, model, _ = make("lowrank")
    model.save(path)
    rewrite(path, lambda header, tensors: header["shared"].update({"transform.a": "transform.b"}))
    with pytest.raises(errors.CheckpointError, match=r"not in the file: transform\.a is transform\.b"):
        wm.load(path, net)


def test_other_kinds_are_named(path: Path) -> None:
    """What a newer release may put into such a file."""
    net, _, _ = make("lowrank")
    storage.save(path, storage.pack("model", {"kind": "sketch"}, {"x": torch.ones(1)}))
    with pytest.raises(
        errors.CheckpointError, match="expected a model, and the file holds something of the kind 'sketch'"
    ):
        wm.load(path, net)


def written(tensors: dict[str, Tensor]) -> bytes:
    return storage.pack("model", {}, tensors)


def test_what_safetensors_cannot_hold_is_said() -> None:
    with pytest.raises(errors.CheckpointError, match=r"x: safetensors cannot store a tensor of layout torch\.sparse"):
        written({"x": torch.ones(2).to_sparse()})
    with pytest.raises(errors.CheckpointError, match="extra state of type int"):
        written({"x": 3})  # type: ignore[dict-item]

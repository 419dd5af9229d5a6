"""Law 7: saving, loading, moving; and files that are damaged or belong to another base."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from zoo import FAMILIES, Bend, shake

import weightmorph as wm
from weightmorph import errors

SAVED = [f for f in FAMILIES if f != "custom"]


def make(family: str = "sum", seed: int = 0) -> tuple[nn.Module, wm.Conditioned, Tensor]:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    )
    x = torch.randn(4, 1, 8, 8)
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=2)}, FAMILIES[family](), example=x)
    shake(model)
    return net, model, x


THETA = ([0.0, 10.0, 200.0, 33.0], 33.0)


@pytest.mark.parametrize("family", SAVED)
def test_save_and_load_give_the_same_model(family: str, tmp_path: Path) -> None:
    """Bit for bit, and with the same keys; the base's weights are not in the file."""
    net, model, x = make(family)
    path = tmp_path / "model.safetensors"
    model.save(path)
    again = wm.load(path, net)
    assert list(again.state_dict()) == list(model.state_dict())
    for theta in THETA:
        assert torch.equal(again(x, angle=theta), model(x, angle=theta))
    content = path.read_bytes()
    for tensor in net.state_dict().values():
        if tensor.numel() > 8:
            assert tensor.numpy().tobytes() not in content
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_users_own_module_comes_from_the_user(tmp_path: Path) -> None:
    net, _, x = make()
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=2)}, wm.Custom(Bend()), example=x)
    path = tmp_path / "model.safetensors"
    model.save(path)
    with pytest.raises(errors.CheckpointError, match="transform="):
        wm.load(path, net)
    again = wm.load(path, net, transform=wm.Custom(Bend()))
    assert torch.equal(again(x, angle=33.0), model(x, angle=33.0))


def test_loading_onto_another_base_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    net, model, _ = make()
    path = tmp_path / "model.safetensors"
    model.save(path)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(errors.BaseError, match=r"0\.weight") as caught:
        wm.load(path, other)
    from weightmorph.storage import Fingerprint
    from weightmorph.view import View

    for network in (net, other):
        assert str(Fingerprint.of(View(network).tensors())) in str(caught.value)


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_damaged_files_are_refused(kind: str, tmp_path: Path) -> None:
    """Two hundred of each: always our own error, or, where the damage is in padding, the same model."""
    net, model, x = make("lowrank")
    path = tmp_path / "model.safetensors"
    model.save(path)
    whole = path.read_bytes()
    expected = model(x, angle=33.0)
    generator = random.Random(0)
    refused = 0
    for _ in range(200):
        broken = bytearray(whole)
        if kind == "truncated":
            broken = broken[: generator.randrange(len(whole))]
        else:
            broken[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(broken))
        try:
            again = wm.load(path, net)
        except (errors.CheckpointError, errors.BaseError):
            refused += 1
        else:
            assert torch.equal(again(x, angle=33.0), expected)
    assert refused == 200 if kind == "truncated" else refused > 180


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _net, model, _x = make("lowrank")
    path = tmp_path / "model.safetensors"
    model.save(path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    shake(model, seed=9)
    with pytest.raises(OSError, match="disk full"):
        model.save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_moves_copies_and_pickles_round_trip(family: str) -> None:
    """state_dict, deepcopy, pickle, and float to double and back."""
    net, model, x = make(family)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).double().float()):
        for theta in THETA:
            torch.testing.assert_close(other(x, angle=theta), model(x, angle=theta), rtol=1e-6, atol=1e-6)
    fresh = wm.condition(net, {"angle": wm.Angle("deg", harmonics=2)}, FAMILIES[family](), example=x)
    assert not torch.allclose(fresh(x, angle=33.0), model(x, angle=33.0))
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(x, angle=33.0), model(x, angle=33.0), rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(fresh(x, angle=0.0), net.eval()(x)) or not fresh.anchored


def test_keys_are_readable() -> None:
    """Family, slot name, tensor."""
    _, model, _ = make()
    assert list(model.state_dict())[:3] == [
        "transform.warp.0.weight.taps", "transform.warp.0.weight.trust", "transform.warp.4.weight.taps",
    ]  # fmt: skip
    assert "transform.lowrank.4.weight.left" in model.state_dict()
    assert "transform.scale.1.bias.slope" in model.state_dict()


def test_low_precision_comes_back_near() -> None:
    _, model, x = make()
    rough = copy.deepcopy(model).bfloat16()
    assert rough(x.bfloat16(), angle=33.0).dtype == torch.bfloat16
    torch.testing.assert_close(rough.float()(x, angle=33.0), model(x, angle=33.0), rtol=0.1, atol=0.1)


def test_without_safetensors_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.split(".")[0] == "safetensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    _, model, _ = make()
    with pytest.raises(errors.MissingDependencyError, match=r"pip install 'weightmorph\["):
        model.save(tmp_path / "model.safetensors")

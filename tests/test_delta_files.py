"""Deltas in files: what is in them, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from test_delta import SPACE, make, same_weights
from torch import Tensor, nn
from zoo import FAMILIES, shake

import weightmorph as wm
from weightmorph import errors, storage
from weightmorph.deploy.delta.change import Change, Piece
from weightmorph.terms import Term


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_file_gives_the_same_weights(family: str, tmp_path: Path) -> None:
    """Bit for bit; and the same bytes for the same model."""
    net, model, _ = make(family)
    for angle in (30.0, 0.0):
        delta = wm.Delta.of(model, angle=angle)
        path = delta.save(tmp_path / "delta.safetensors")
        again = wm.Delta.load(path)
        assert again.theta == {"angle": angle} and list(again.changes) == list(delta.changes)
        with wm.apply_delta(net, again):
            same_weights(net, model.bake(angle=angle))
        content = path.read_bytes()
        again.save(path)
        assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["delta.safetensors"]


def test_factors_stay_factors(tmp_path: Path) -> None:
    """U, g and V of a low rank; a row's scale; the small matrix of a warp; and nothing of the base."""
    net, model, _ = make("sum")
    path = wm.Delta.of(model, angle=30.0).save(tmp_path / "d.safetensors")
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
    mine = {name.partition("/")[2]: shape for name, shape in shapes.items() if name.startswith("6.weight/")}
    assert mine == {"0.mix": (16, 16), "1.left": (1, 3, 2), "1.gain": (2,), "1.right": (1, 2, 128), "2.gain": (3,)}
    assert shapes["1.weight/0.gain"] == (8,) and shapes["6.bias/0.delta"] == (3,)
    content = path.read_bytes()
    for tensor in net.state_dict().values():
        assert tensor.numel() < 9 or tensor.numpy().tobytes() not in content


def test_what_is_smaller_as_a_tensor_is_stored_as_one(tmp_path: Path) -> None:
    """A mix of weight sets takes a multiple of the weight; the difference takes the weight's own size."""
    _net, model, _ = make("subspace")
    delta = wm.Delta.of(model, angle=30.0)
    path = delta.save(tmp_path / "d.safetensors")
    loaded = wm.Delta.load(path)
    assert {p.kind for c in loaded.changes.values() for p in c.pieces} == {"Dense"}
    assert loaded.nbytes == delta.nbytes == sum(4 * model.slots[n].outputs * _columns(model, n) for n in delta.changes)


def _columns(model: wm.Conditioned, name: str) -> int:
    return torch.Size(model.slots[name].shape).numel() // model.slots[name].outputs


def test_a_term_of_ones_own_is_stored_as_its_tensor() -> None:
    class Own(Term):
        @property
        def carrier(self) -> tuple[Tensor, int]:
            return self.value, 2

        value = torch.ones(3, 4)

        def dense(self) -> Tensor:
            return 2 * self.value

    slot = wm.condition(nn.Linear(4, 3), SPACE, wm.LowRank(1)).slots["weight"]
    piece = Piece.of(Own(slot), torch.zeros(3, 4))
    assert piece.kind == "Dense" and torch.equal(piece.tensors["delta"], torch.full((3, 4), 2.0))
    assert torch.equal(Change(slot, (piece,)).expression(torch.ones(3, 4)).dense(), torch.full((3, 4), 3.0))


def test_a_delta_does_not_follow_training_and_can_be_pickled() -> None:
    net, model, _ = make()
    delta = wm.Delta.of(model, angle=30.0)
    expected = model.bake(angle=30.0)
    shake(model, seed=9)
    again = pickle.loads(pickle.dumps(copy.deepcopy(delta)))
    with wm.apply_delta(net, again):
        same_weights(net, expected)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    net, model, _ = make("lowrank")
    model.save(tmp_path / "model.safetensors")
    path = wm.Delta.of(model, angle=30.0).save(tmp_path / "delta.safetensors")
    with pytest.raises(errors.CheckpointError, match=r"expected a delta.* holds a model: weightmorph\.load"):
        wm.Delta.load(tmp_path / "model.safetensors")
    with pytest.raises(errors.CheckpointError, match=r"expected a model, and the file holds a delta: .*Delta\.load"):
        wm.load(path, net)
    with pytest.raises(FileNotFoundError):
        wm.Delta.load(tmp_path / "none.safetensors")


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an unknown term": (lambda h: h["changes"]["0.weight"]["pieces"][0].update(kind="Cubic"), "'Cubic' is not known"),
    "an unknown field": (lambda h: h["changes"]["0.weight"]["pieces"][0]["options"].update(a=1), "has no a"),
    "no setting": (lambda h: h.pop("theta"), "lacks 'theta'"),
    "no base": (lambda h: h.update(base={}), "lacks 'tensors'"),
    "a tensor's place": (lambda h: h["changes"].pop("0.weight"), "lacks '0.weight'"),
    "no slot": (lambda h: h["changes"]["0.weight"].update(slot={}), "lacks 'name'"),
}


@pytest.mark.parametrize("edit", list(EDITS))
def test_what_is_wrong_with_a_delta_is_said(edit: str, tmp_path: Path) -> None:
    """A header that somebody wrote by hand, its checksum right."""
    _, model, _ = make("lowrank")
    path = wm.Delta.of(model, angle=30.0).save(tmp_path / "d.safetensors")
    alter, words = EDITS[edit]
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["weightmorph"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    alter(header)
    for key in ("sha256", "format", "tensors", "shared"):
        del header[key]
    storage.save(path, storage.pack("delta", header, tensors))
    with pytest.raises(errors.CheckpointError, match=words) as caught:
        wm.Delta.load(path)
    assert str(path) in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = make("lowrank")
    delta = wm.Delta.of(model, angle=30.0)
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        delta.save(path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [path.name]

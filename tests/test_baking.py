"""Many settings baked, a file each: what the files hold, what is taken up again, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_delta import make, same_weights
from torch import Tensor, nn
from zoo import FAMILIES, shake

import weightmorph as wm
from weightmorph import errors
from weightmorph.deploy import baking
from weightmorph.deploy.export import onnx as onnx_files

ANGLES = (0.0, 30.0, 200.5)


def same_outputs(path: Path, net: nn.Module, x: Tensor) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for size in (len(x), 1):
            [got] = session.run(None, {session.get_inputs()[0].name: x[:size].numpy()})
            np.testing.assert_allclose(got, net(x[:size]).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["lowrank", "sum"])
def test_weights_are_those_of_bake(family: str, tmp_path: Path) -> None:
    """A file that torch and safetensors read alone; the index says which layers have grown, and how."""
    net, model, x = make(family)
    baked = wm.bake_many(model, {"angle": list(ANGLES)}, tmp_path)
    assert list(baked.files) == ["angle=0", "angle=30", "angle=200.5"] == list(baked.written)
    index = json.loads(baked.index.read_text())
    assert index["form"] == "weights" and dict(wm.ParameterSpace.from_config(index["parameters"])) == dict(model.space)
    for angle, (name, path) in zip(ANGLES, baked.files.items(), strict=True):
        entry = index["settings"][name]
        assert entry["theta"] == {"angle": angle} and entry["file"] == path.name
        assert entry["bytes"] == path.stat().st_size
        plain = copy.deepcopy(net)
        for layer, told in entry.get("widened", {}).items():
            for key, value in told.items():
                setattr(plain.get_submodule(layer), key, value if isinstance(value, str) else tuple(value))
        assert ("widened" in entry) == (family == "sum" and angle != 0)
        state = load_file(path)
        for key, value in state.items():  # grown kernels are new parameters
            if key in dict(plain.named_parameters()):
                owner, _, attribute = key.rpartition(".")
                setattr(plain.get_submodule(owner), attribute, nn.Parameter(torch.empty_like(value)))
        plain.load_state_dict(state)
        same_weights(plain, model.bake(angle=angle))
        with torch.no_grad():
            assert torch.equal(plain(x), model.bake(angle=angle)(x))


def test_deltas_stand_alone(tmp_path: Path) -> None:
    net, model, _ = make("sum")
    settings = {"gate-7": {"angle": 30.0}, "gate-8": {"angle": 200.5}, "yard": {"angle": 0.0}}
    baked = wm.bake_many(model, settings, tmp_path, form="delta")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "gate-7.safetensors", "gate-8.safetensors", "index.json", "yard.safetensors",
    ]  # fmt: skip
    for name, theta in settings.items():
        with wm.apply_delta(net, wm.Delta.load(baked.files[name])):
            same_weights(net, model.bake(**theta))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["lowrank", "sum"])
def test_onnx_graphs_are_traced_once_and_equal_eager(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are exchanged in one graph; where kernels grow away from the anchor, in two."""
    _, model, x = make(family)
    traced: list[int] = []
    exported = onnx_files._exported
    monkeypatch.setattr(onnx_files, "_exported", lambda *a, **k: traced.append(1) or exported(*a, **k))
    baked = wm.bake_many(model, {"angle": list(ANGLES)}, tmp_path, form="onnx", example=x[:1])
    assert len(traced) == (2 if family == "sum" else 1)
    for angle, (name, path) in zip(ANGLES, baked.files.items(), strict=True):
        same_outputs(path, model.bake(angle=angle), x)
        import onnx

        about = json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["weightmorph"])
        assert about["baked"] == {"angle": angle}, name
        assert dict(wm.ParameterSpace.from_config(about["parameters"])) == dict(model.space)


@pytest.mark.slow
def test_a_graph_in_which_equal_tensors_were_merged_is_not_patched(tmp_path: Path) -> None:
    """Were one initializer kept for two equal tensors, exchanging it would change both: then each is traced."""
    _, model, x = make("scale")
    graph = onnx_files.PlainGraph(model.bake(angle=0.0), x)
    state = model.bake(angle=30.0).state_dict()
    assert graph.fits(state)
    twin = dict(state) | {"0.weight": torch.zeros(9, 9)}
    assert not graph.fits(twin)
    del graph.model.graph.initializers["4.weight"]
    assert not graph.fits(state)


def test_an_interrupted_call_is_taken_up_again(tmp_path: Path) -> None:
    """Files are whole, the index lists them; the same call writes what is missing and nothing else."""
    _, model, _ = make("lowrank")
    settings = {f"c{i}": {"angle": 10.0 * i} for i in range(4)}

    class Stop(Exception):
        pass

    def stop(name: str) -> None:
        if name == "c1":
            raise Stop

    with pytest.raises(Stop):
        wm.bake_many(model, settings, tmp_path, progress=stop)
    index = json.loads((tmp_path / "index.json").read_text())
    assert list(index["settings"]) == ["c0", "c1"]
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("c*")}
    baked = wm.bake_many(model, settings, tmp_path)
    assert (baked.kept, baked.written) == (("c0", "c1"), ("c2", "c3"))
    assert {p: (tmp_path / p).stat().st_mtime_ns for p in before} == before
    assert not list(tmp_path.glob(".*"))
    # A file that was damaged or lost is written again; new settings join the others.
    (tmp_path / "c0.safetensors").write_bytes(b"half a fi")
    (tmp_path / "c3.safetensors").unlink()
    baked = wm.bake_many(model, {**settings, "c9": {"angle": 90}}, tmp_path)
    assert (baked.kept, baked.written) == (("c1", "c2"), ("c0", "c3", "c9"))
    assert list(wm.bake_many(model, {"c9": {"angle": 90}}, tmp_path).kept) == ["c9"]
    assert set(json.loads(baked.index.read_text())["settings"]) == {"c0", "c1", "c2", "c3", "c9"}


def test_a_folder_of_another_model_is_not_overwritten_unasked(tmp_path: Path) -> None:
    """A model that was trained on, another form, another θ under one name: refused, or replaced on request."""
    _, model, _ = make("lowrank")
    wm.bake_many(model, {"a": {"angle": 10.0}, "b": {"angle": 20.0}}, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(errors.CheckpointError, match=r"a had another θ before \(a: \{'angle': 10\.0\}, now"):
        wm.bake_many(model, {"a": {"angle": 11.0}}, tmp_path)
    with pytest.raises(errors.CheckpointError, match=r"another form \('weights'"):
        wm.bake_many(model, {"a": {"angle": 10.0}}, tmp_path, form="delta")
    shake(model, seed=9)
    with pytest.raises(errors.CheckpointError, match="another model, or of the same one at another time"):
        wm.bake_many(model, {"a": {"angle": 10.0}}, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    baked = wm.bake_many(model, {"a": {"angle": 10.0}}, tmp_path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "index.json"] and baked.written == ("a",)
    assert (tmp_path / "a.safetensors").read_bytes() != before["a.safetensors"]


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', '{"format": "x"}', "{" * 5000], ids=repr)
def test_a_broken_index_is_said(content: str, tmp_path: Path) -> None:
    _, model, _ = make("scale")
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(errors.CheckpointError, match="not an index of bake_many"):
        wm.bake_many(model, {"angle": [1.0]}, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["index.json"]
    wm.bake_many(model, {"angle": [1.0]}, tmp_path, overwrite=True)
    (tmp_path / "index.json").write_text('{"format": 9}')
    with pytest.raises(errors.CheckpointError, match=r"format 9.*pip install -U weightmorph"):
        wm.bake_many(model, {"angle": [1.0]}, tmp_path)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": ({}, errors.ParameterError, "got none"),
    "no mapping": ([1, 2], errors.ParameterError, "got none"),
    "an unknown column": ({"tilt": [1.0]}, errors.UnknownParameterError, "no parameter 'tilt'"),
    "an unknown parameter": (
        {"a": {"tilt": 1.0}},
        errors.UnknownParameterError,
        "setting 'a': unknown parameter 'tilt'",
    ),
    "a number": ({"angle": 3.0}, errors.ParameterLengthError, "columns of one length"),
    "twice": ({"angle": [3, 3.0]}, errors.ParameterLengthError, "2 rows hold 1 different"),
    "not a number": ({"a": {"angle": 1.0}, "b": {"angle": float("nan")}}, errors.ParameterValueError, "setting 'b'"),
    "several": ({"a": {"angle": [1.0, 2.0]}}, errors.ParameterLengthError, "setting 'a': expected one value"),
    "a path": ({"../a": {"angle": 1.0}}, errors.CheckpointError, "cannot name a file"),
    "a hidden file": ({".a": {"angle": 1.0}}, errors.CheckpointError, "cannot name a file"),
    "the index": ({"index": {"angle": 1.0}}, errors.CheckpointError, "not 'index'"),
    "two of one": ({"Gate": {"angle": 1.0}, "gate": {"angle": 2.0}}, errors.CheckpointError, "'Gate' and 'gate'"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_settings_that_cannot_be_used_are_named_and_nothing_is_written(what: str, tmp_path: Path) -> None:
    _, model, _ = make("scale")
    settings, kind, words = REFUSED[what]
    with pytest.raises(kind, match=words):
        wm.bake_many(model, settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_form_and_a_missing_example_are_said(tmp_path: Path) -> None:
    _, model, _ = make("scale")
    with pytest.raises(errors.CheckpointError, match="expected one of 'weights', 'delta', 'onnx', got 'int8'"):
        wm.bake_many(model, {"angle": [1.0]}, tmp_path, form="int8")  # type: ignore[arg-type]
    with pytest.raises(errors.ExecutionError, match="example="):
        wm.bake_many(model, {"angle": [1.0]}, tmp_path, form="onnx")


def test_categories_keep_their_names_and_columns_can_be_tensors(tmp_path: Path) -> None:
    net, _, x = make("scale")
    space = {"turn": wm.Angle("deg"), "season": wm.Categorical(("dry", "wet"))}
    model = wm.condition(net, space, FAMILIES["scale"](), example=x)
    shake(model)
    columns = {"turn": torch.tensor([0.0, 30.25]), "season": ["wet", "dry"]}
    baked = wm.bake_many(model, columns, tmp_path, form="delta")
    assert list(baked.files) == ["turn=0,season=wet", "turn=30.25,season=dry"]
    entries = json.loads(baked.index.read_text())["settings"]
    assert entries["turn=0,season=wet"]["theta"] == {"turn": 0.0, "season": "wet"}
    with wm.apply_delta(net, wm.Delta.load(baked.files["turn=0,season=wet"])):
        same_weights(net, model.bake(turn=0.0, season="wet"))
    assert wm.bake_many(model, columns, tmp_path, form="delta").written == ()


def test_tied_tensors_are_written_under_each_name(tmp_path: Path) -> None:
    """So that the file loads with strict=True into the network that ties them."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    model = wm.condition(net, {"p": wm.Interval(0.0, 1.0)}, wm.LowRank(2))
    shake(model)
    [path] = wm.bake_many(model, {"p": [0.7]}, tmp_path).files.values()
    again = copy.deepcopy(net)
    again.load_state_dict(load_file(path))
    same_weights(again, model.bake(p=0.7))


def test_a_failed_write_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = make("scale")
    written: list[Path] = []
    replace = baking.os.replace

    def fail(source: Any, target: Any) -> None:
        if "b.safetensors" in str(target):
            raise OSError("disk full")
        written.append(Path(target))
        replace(source, target)

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        wm.bake_many(model, {"a": {"angle": 1.0}, "b": {"angle": 2.0}}, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "index.json"]
    assert list(json.loads((tmp_path / "index.json").read_text())["settings"]) == ["a"]

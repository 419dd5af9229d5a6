"""The command line: from a YAML file to a result with the configuration beside it that gives it again."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from shell import run, standing_in
from torch import nn

import weightmorph as wm
from weightmorph.cli import DONE, FAILED, UNUSABLE
from weightmorph.cli import data as sources
from weightmorph.cli.files import dump, read_mapping
from weightmorph.cli.parse import parse
from weightmorph.cli.recipes import entries, input_transform, parameters, weight_transform
from weightmorph.cli.sources import tensors
from weightmorph.errors import ConfigError, MissingDependencyError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with standing_in(tmp_path, monkeypatch) as here:
        yield here


def fitted(folder: Path) -> Path:
    """A trained model."""
    assert run("fit", "--config", "config.yaml").code == DONE
    return folder / "run" / "model.safetensors"


# From a configuration to results


def test_fit_evaluate_and_what_lies_beside(folder: Path) -> None:
    """A result has the configuration beside it that gives the very same result again, from any folder."""
    done = run("fit", "--config", "config.yaml")
    assert done.code == DONE, done.err
    assert "trained for 2 steps" in done.out
    assert sorted(p.name for p in (folder / "run").iterdir()) == ["checkpoint", "fit.yaml", "model.safetensors"]
    judged = run("evaluate", "--config", "run/fit.yaml")
    assert judged.code == DONE, judged.err
    assert "conditioned" in judged.out
    assert "inverse" in judged.out
    found = wm.Evaluation.load(folder / "run" / "evaluation.json")
    assert found.images == 48
    assert len(found.settings) == 2

    made = yaml.safe_load((folder / "run" / "fit.yaml").read_text())
    assert made["made"]["versions"]["torch"] == torch.__version__
    assert made["seed"] == 0
    assert made["trainer"]["lr"] == 3e-3
    again = yaml.safe_load((folder / "run" / "evaluate.yaml").read_text())
    assert again["trainer"] == made["trainer"], "what the file says to other commands stays in it"

    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)
    assert run("fit", "--config", "../run/fit.yaml", "--out", "twin").code == DONE
    twin = load_file(elsewhere / "twin" / "model.safetensors")
    first = load_file(folder / "run" / "model.safetensors")
    assert list(twin) == list(first)
    assert all(torch.equal(twin[name], first[name]) for name in first)
    assert run("evaluate", "--config", "../run/evaluate.yaml", "--out", "twin").code == DONE
    assert wm.Evaluation.load("twin/evaluation.json") == found


def test_flags_prevail_wherever_they_stand(folder: Path) -> None:
    for argv in (["--seed", "7", "--config", "config.yaml"], ["--config=config.yaml", "--seed=7"]):
        assert parse(["fit", *argv]).options.seed == 7
    job = parse(["fit", "--config", "config.yaml", "--trainer.lr", "0.1", "--base_options.classes", "5"])
    assert job.options.trainer.lr == 0.1
    assert job.options.trainer.steps == 2
    assert job.options.base_options == {"width": 3, "classes": 5}
    assert job.rest["grid"] == 2


def test_the_next_command_can_be_pasted(folder: Path) -> None:
    done = run("fit", "--config", "config.yaml", "--trainer.steps", "0", "--out", "my run")
    assert "weightmorph evaluate --config 'my run/fit.yaml'" in done.out


def test_the_model_may_come_first(folder: Path) -> None:
    assert parse(["summary", "m.safetensors", "--base", "a:b"]).options.model == "m.safetensors"


def test_paths_are_relative_to_the_file_that_names_them(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "config.yaml").rename(folder / "sub" / "config.yaml")
    (folder / "tiny.py").rename(folder / "sub" / "tiny.py")
    job = parse(["fit", "--config", "sub/config.yaml"])
    assert job.options.base == f"{folder / 'sub' / 'tiny.py'}:Net"
    assert job.options.out == str(folder / "sub" / "run")
    assert parse(["fit", "--base", "tiny.py:Net"]).options.base == "tiny.py:Net"


def test_a_transform_of_your_own_is_given_again(folder: Path) -> None:
    """Code is not in a model's file; the configuration names it."""
    argv = ["--config", "config.yaml", "--transform", "{type: tiny.py:Mine}"]
    assert run("fit", *argv, "--objective", "distillation").code == DONE
    assert run("evaluate", "--config", "run/fit.yaml").code == DONE
    silent = run("summary", "run/model.safetensors", "--base", "tiny.py:Net", "--base_options.width", "3")
    assert silent.code == UNUSABLE
    assert "transform: " in silent.err
    assert re.search(r"code of your own \(.*<Mine>.*\): give it again", silent.err)


def test_summary_export_and_doctor(folder: Path) -> None:
    fitted(folder)
    shown = run("summary", "--config", "run/fit.yaml", "--device", "cpu")
    assert shown.code == DONE
    for device in ("gpu", "cuda:99"):
        refused = run("summary", "--config", "run/fit.yaml", "--device", device)
        assert refused.code == UNUSABLE
        assert f"device: expected one that this machine has, got '{device}'" in refused.err
    assert "conv.weight" in shown.out
    assert "conditioned on angle" in shown.out
    doctor = run("doctor", "--config", "run/fit.yaml")
    assert doctor.code == DONE
    for word in ("torch", "threads", "devices", "[serve]", "parameter angle", "it loads onto this base"):
        assert word in doctor.out
    other = run("doctor", "run/model.safetensors", "--base", "tiny.py:Net", "--base_options.width", "3", "--seed", "5")
    assert other.code == FAILED
    assert "it cannot be used" in other.out
    assert "another base" in other.out


def data(source: str, take: Any = None, **arguments: Any) -> Any:
    """What `--data` gives."""
    return sources.read({"data": source, "data_options": arguments, "data_take": take}, "data")


def base() -> nn.Module:
    """The network of the configuration."""
    torch.manual_seed(0)
    net: nn.Module = sys.modules["tiny"].Net(3)
    return net


def test_bake_one_and_many(folder: Path) -> None:
    """One setting to a file, many to a folder; each is the network that `model.bake` makes."""
    fitted(folder)
    assert run("bake", "--config", "run/fit.yaml", "--at.angle", "30").code == DONE
    model = wm.load("run/model.safetensors", base())
    expected = model.bake(angle=30.0).state_dict()
    one = load_file("run/baked.safetensors")
    assert all(torch.equal(one[name], value) for name, value in expected.items())
    again = run("bake", "--config", "run/baked.bake.yaml", "--to", "twin.safetensors")
    assert again.code == DONE, again.err
    assert Path("twin.safetensors").read_bytes() == Path("run/baked.safetensors").read_bytes()

    assert (
        run("bake", "--config", "run/fit.yaml", "--at.angle", "30", "--form", "delta", "--to", "d.safetensors").code
        == DONE
    )
    net = base().eval()
    wm.apply_delta(net, wm.Delta.load("d.safetensors"))
    torch.testing.assert_close(net.state_dict()["conv.weight"], expected["conv.weight"])

    assert run("bake", "--config", "run/fit.yaml", "--each", "3").code == DONE
    assert {p.name for p in (folder / "run" / "baked").glob("*.safetensors")} == {
        "angle=0.safetensors", "angle=120.safetensors", "angle=240.safetensors",
    }  # fmt: skip
    (folder / "gates.csv").write_text("name,angle\ngate-7,30\ngate-8,60.5\n")
    (folder / "gates.yaml").write_text("gate-7: {angle: 30}\ngate-8: {angle: 60.5}\n")
    for file in ("gates.csv", "gates.yaml"):
        done = run("bake", "--config", "run/fit.yaml", "--settings", file, "--to", f"of-{file}")
        assert done.code == DONE, done.err
        assert torch.equal(load_file(f"of-{file}/gate-7.safetensors")["conv.weight"], expected["conv.weight"])
    (folder / "list.json").write_text('[{"angle": 30}, {"angle": "north"}]')
    for argv, told in (
        (["--settings", "list.json"], "settings: 2: parameter 'angle'"),
        (["--each", "2", "--at.angle", "3"], "expected one of at, settings and each, got at and each"),
        ([], "expected one of at, settings and each, got none"),
        (["--at.angl", "3"], "at: unknown parameter 'angl'"),
        (["--each", "-1"], "each: expected 1 or more"),
    ):
        refused = run("bake", "--config", "run/fit.yaml", *argv)
        assert refused.code == UNUSABLE
        assert told in refused.err


@pytest.mark.slow
def test_a_report(folder: Path) -> None:
    fitted(folder)
    done = run("evaluate", "--config", "run/fit.yaml", "--report", "true", "--grid", "2", "--rounds", "0")
    assert done.code == DONE, done.err
    assert "report.html" in done.out
    assert "<html" in (folder / "run" / "report.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "program"])
def test_export(folder: Path, form: str) -> None:
    """The written graph takes θ in degrees and agrees with the model."""
    fitted(folder)
    done = run("export", "--config", "run/fit.yaml", "--format", form, "--per_sample", "true")
    assert done.code == DONE, done.err
    model = wm.load("run/model.safetensors", base())
    x, angle = torch.rand(3, 1, 6, 6), torch.tensor([0.0, 40.0, 200.0])
    if form == "program":
        got = torch.export.load("run/model.pt2").module()(x, angle=angle)
    else:
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession("run/model.onnx", providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        got = torch.from_numpy(session.run(None, dict(zip(names, (x.numpy(), angle.numpy()), strict=True)))[0])
    torch.testing.assert_close(got, model(x, angle=angle).detach(), atol=1e-4, rtol=1e-4)
    assert (folder / "run" / "model.export.yaml").exists()


# Sources


def test_weights_are_read_without_running_code(folder: Path) -> None:
    torch.manual_seed(3)
    net = nn.Linear(3, 2)
    save_file(net.state_dict(), "w.safetensors")
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, "w.pt")
    argv = ["summary", "x", "--base", "torch.nn:Linear", "--base_options", "{in_features: 3, out_features: 2}"]
    from weightmorph.cli.sources import network

    for more in (["--weights", "w.safetensors"], ["--weights", "w.pt", "--weights_key", "state_dict"]):
        again = network(parse([*argv, *more]).options)
        assert torch.equal(again.state_dict()["weight"], net.weight)
        assert not again.training
    with pytest.raises(ConfigError, match=r"w.pt is no state_dict \(it holds state_dict, epoch\); name its entry"):
        tensors(Path("w.pt"))
    with pytest.raises(ConfigError, match="size mismatch for weight"):
        network(parse([*argv, "--weights", "w.safetensors", "--base_options.in_features", "4"]).options)

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "ran"),)

    torch.save({"weight": Bomb()}, "bomb.pt")
    with pytest.raises(ConfigError, match="a file that holds code is never run"):
        tensors(Path("bomb.pt"))
    assert not (folder / "ran").exists()


def test_timm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timm:NAME` asks timm, downloads nothing unless told, and says how to get timm."""
    from weightmorph.cli.sources import network

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match="pip install timm"):
        network(parse(["summary", "--base", "timm:resnet18"]).options)
    asked: list[Any] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        return nn.Linear(2, 2)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    network(parse(["summary", "--base", "timm:resnet18"]).options)
    assert asked == [("resnet18", {})]


def test_a_folder_of_images(folder: Path) -> None:
    for label, value in (("cat", 0), ("dog", 255)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (10, 8), (value, 0, 0)).save(folder / "photos" / label / f"{number}.png")
    photos = data("folder:photos", size=[4, 6], mean=0.5, std=[1.0, 1.0, 0.5])
    assert len(photos) == 4
    assert photos.names == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    x, y = photos[3]
    assert x.shape == (3, 4, 6)
    assert (int(y), photos.classes) == (1, ["cat", "dog"])
    torch.testing.assert_close(x[:, 0, 0], torch.tensor([0.5, -0.5, -1.0]))
    assert sources.example(photos, "data").shape == (1, 3, 4, 6)
    assert data("folder:photos/cat", channels=1)[0].shape == (1, 8, 10)
    with pytest.raises(ConfigError, match="class subfolders"):
        sources.labelled({"data": "folder:photos/cat", "data_options": {}, "data_take": None}, "data")
    (folder / "photos" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"0\.png cannot be read as an image"):
        photos[0]


def test_idx_and_npz(folder: Path) -> None:
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)

    def idx(array: np.ndarray[Any, Any]) -> bytes:
        return np.array([0x0800 + array.ndim, *array.shape], ">i4").tobytes() + array.tobytes()

    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(pixels))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([1, 2], np.uint8)))
    x, y = data("idx:.", split="test")
    assert x.shape == (2, 1, 3, 4)
    assert float(x.max()) == pytest.approx(23 / 255)
    assert y.tolist() == [1, 2]
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([1, 2], np.uint8))[:-1])
    with pytest.raises(ConfigError, match="no IDX file of bytes with 1 axes, or is cut short"):
        data("idx:.", split="test")
    np.savez(folder / "some.npz", x=np.zeros((5, 1, 6, 6), np.float32), y=np.zeros(5, np.int64))
    x, y = data("npz:some.npz")
    assert x.shape == (5, 1, 6, 6)
    np.savez(folder / "code.npz", x=np.array([print], object))
    with pytest.raises(ConfigError, match=r"cannot be read as .npz"):
        data("npz:code.npz")


# Recipes


def test_recipes_in_their_forms() -> None:
    forms: list[Any] = [
        "Warp + LowRank(8)",
        ["Warp", {"type": "LowRank", "rank": 8}],
        {"type": "Sum", "parts": [{"type": "Warp"}, {"type": "LowRank", "rank": 8}]},
        [{"class_path": "weightmorph.Warp"}, {"class_path": "LowRank", "init_args": {"rank": 8}}],
    ]
    made = [weight_transform(form) for form in forms]
    assert {tuple(str(part.config()) for part in one.parts) for one in made} == {
        tuple(str(part.config()) for part in (wm.Warp() + wm.LowRank(8)).parts)
    }
    space = parameters({"tilt": {"type": "Interval", "low": -10, "high": 10, "unit": "deg", "affine": "rotation"}})
    both = input_transform([{"type": "Rotate", "parameter": "tilt"}, "Blur(2)"], space)
    assert dict(both.parameters)["tilt"] is space["tilt"]
    assert list(both.parameters) == ["tilt", "blur"]
    flip = parameters({"flip": "Categorical([no, yes], affine=flip_x)"})["flip"]
    assert flip == wm.Categorical(("no", "yes"), affine="flip_x")
    assert parameters({"iso": "LogInterval(100, 6400, unit=ISO)"})["iso"].unit == "ISO"
    hidden = weight_transform({"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}})
    assert isinstance(hidden, wm.Custom)


@pytest.mark.parametrize(
    "text", ["Warp -", "Warp * 2", "f'{1}'", "Warp(**x)", "Warp(print())", "Warp.a", "lambda: 0", "[Warp]", "(" * 3000]
)
def test_a_recipe_is_read_and_never_run(text: str) -> None:
    with pytest.raises(ConfigError, match="transform: "):
        entries(text, "transform")


def test_yaml_is_read_as_people_mean_it(tmp_path: Path) -> None:
    """Words stay words, numbers become numbers, and what is written is read as it was."""
    (tmp_path / "a.yaml").write_text("lr: 1e-3\nflip: no\nclock: 1:30\nday: 2024-01-01\nn: 08.5\nnone: ~\nyes: true\n")
    assert read_mapping(tmp_path / "a.yaml") == {
        "lr": 1e-3, "flip": "no", "clock": "1:30", "day": "2024-01-01", "n": 8.5, "none": None, "yes": True,
    }  # fmt: skip
    data = {
        "words": ["no", "1e-3", "null", "", "12", "a: b", "θ", "true", ".5", "0x1f", "line\nbreak"],
        "x": [1e-5, 1, None],
    }
    (tmp_path / "b.yaml").write_text(dump(data), encoding="utf-8")
    assert read_mapping(tmp_path / "b.yaml") == data

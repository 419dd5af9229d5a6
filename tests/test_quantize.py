"""Static int8 quantisation of baked networks through ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_delta import make
from torch import Tensor, nn

import weightmorph as wm
from weightmorph import errors
from weightmorph.deploy.export import PlainGraph

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, Tensor]:
    """A small classifier of where the bright spot is, baked and exported; images and labels."""
    torch.manual_seed(0)
    x = 0.3 * torch.randn(512, 1, 8, 8)
    y = torch.randint(0, 4, (512,))
    for i, label in enumerate(y.tolist()):
        x[i, 0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 4)
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    model = wm.condition(net.eval(), {"p": wm.Interval(0.0, 1.0)}, wm.Scale(), example=x[:1])
    path = tmp_path_factory.mktemp("float") / "net.onnx"
    plain = model.bake(p=0.0)
    PlainGraph(plain, x[:1]).save(plain.state_dict(), path, {})
    return path, x, y


def outputs(path: Path, x: Tensor) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def right(path: Path, x: Tensor, y: Tensor) -> float:
    """The share of images that a file classifies correctly."""
    return float((outputs(path, x).argmax(1) == y.numpy()).mean())


def test_the_int8_file_is_as_good_as_its_calibration(trained: tuple[Path, Tensor, Tensor], tmp_path: Path) -> None:
    """Its weights are int8, and it is nearly as accurate; calibrated on inputs of the wrong scale, it is bad."""
    import onnx

    source, x, y = trained
    written = wm.quantize_onnx(source, tmp_path / "int8.onnx", x[:64])
    assert written.bytes_int8 == written.path.stat().st_size and written.bytes_float == source.stat().st_size
    graph = onnx.load(written.path).graph
    assert sum(i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1 for i in graph.initializer) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["int8.onnx"]
    accuracy = right(source, x[64:], y[64:])
    assert accuracy > 0.9 and right(written.path, x[64:], y[64:]) > accuracy - 0.03
    wm.quantize_onnx(source, written.path, 1e-4 * x[:64])
    assert right(written.path, x[64:], y[64:]) < accuracy - 0.1


def test_calibration_comes_in_many_forms(trained: tuple[Path, Tensor, Tensor], tmp_path: Path) -> None:
    """Equal inputs give equal files, whatever they are packed in."""
    source, x, y = trained
    forms: list[Any] = [
        x[:64], [(x[:32], y[:32]), (x[32:64], y[32:64])], [{"input": x[:32]}, {"input": x[32:64].numpy()}],
        list(x[:64].split(32)),
    ]  # fmt: skip
    files = []
    for number, form in enumerate(forms):
        wm.quantize_onnx(source, tmp_path / f"{number}.onnx", form)
        files.append((tmp_path / f"{number}.onnx").read_bytes())
    assert len(set(files)) == 1


def test_a_graph_with_a_fixed_batch(tmp_path: Path) -> None:
    """Calibration inputs are split into its batches; the result is that of a graph with an open batch."""
    _, model, x = make("scale")
    plain = model.bake(angle=30.0)
    results = []
    for name, dynamic in (("fixed", False), ("open", True)):
        PlainGraph(plain, x, dynamic_batch=dynamic).save(plain.state_dict(), tmp_path / f"{name}.onnx", {})
        more = torch.zeros(0 if dynamic else 1, *x.shape[1:])  # too few for another batch
        wm.quantize_onnx(tmp_path / f"{name}.onnx", tmp_path / f"{name}8.onnx", torch.cat([x, x.flip(0), more]))
        results.append(outputs(tmp_path / f"{name}8.onnx", x))
    np.testing.assert_allclose(*results, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_weights_that_follow_an_input_are_refused_and_constant_ones_are_not(tmp_path: Path) -> None:
    """A model with θ as an input can be quantised in its form with constant weights."""
    _, model, x = make("lowrank")
    wm.export_onnx(model, tmp_path / "computed.onnx", x)
    with pytest.raises(errors.ExecutionError, match=r"computed from the graph's inputs.*bake_many"):
        wm.quantize_onnx(tmp_path / "computed.onnx", tmp_path / "int8.onnx", x)
    wm.export_onnx(model, tmp_path / "constant.onnx", x, constant_weights=True)
    batches = [{"input": x, "angle": np.array(a, dtype=np.float32)} for a in (0.0, 33.0, 200.0)]
    wm.quantize_onnx(tmp_path / "constant.onnx", tmp_path / "int8.onnx", batches)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), providers=["CPUExecutionProvider"])
    [got] = session.run(None, {"input": x.numpy(), "angle": np.array(33.0, dtype=np.float32)})
    with torch.no_grad():
        expected = model(x, angle=33.0).numpy()
    assert np.abs(got - expected).max() < 0.15 * np.abs(expected).max()


def test_what_cannot_be_quantised_is_said(trained: tuple[Path, Tensor, Tensor], tmp_path: Path) -> None:
    source, x, _ = trained
    target = tmp_path / "int8.onnx"
    with pytest.raises(errors.InputError, match="at least one batch"):
        wm.quantize_onnx(source, target, [])
    with pytest.raises(errors.InputError, match="expected a tensor of inputs or batches"):
        wm.quantize_onnx(source, target, 3)
    with pytest.raises(errors.InputError, match="inputs are input, and a batch holds image"):
        wm.quantize_onnx(source, target, [{"image": x}])
    with pytest.raises(errors.InputError, match="input input: expected a tensor, got str"):
        wm.quantize_onnx(source, target, ["x"])
    with pytest.raises(errors.ExecutionError, match="ONNX Runtime cannot quantise it"):
        wm.quantize_onnx(source, target, x[:8, :, :5])
    with pytest.raises(FileNotFoundError):
        wm.quantize_onnx(tmp_path / "none.onnx", target, x[:8])
    (tmp_path / "letter.onnx").write_text("dear runtime")
    with pytest.raises(errors.ExecutionError, match=r"not an ONNX model|cannot run it"):
        wm.quantize_onnx(tmp_path / "letter.onnx", target, x[:8])
    assert [p.name for p in tmp_path.iterdir()] == ["letter.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages_the_message_says_what_to_install(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(errors.MissingDependencyError, match=rf"'{package}'.*pip install 'weightmorph\[onnx\]'"):
        wm.quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", torch.zeros(1))
